"""How fast is constrained search, beside `generate` with a trie and beside the model's bare forward?

    python -m benchmarks.search            # about five minutes on two cores
    python -m benchmarks.search --quick    # without `generate` at 256 beams, without memory and scaling

An untrained Llama (4 layers, width 256, vocabulary 9,000) and a BART of 4 and 4 such layers, 4 requests of 128 tokens,
random semantic IDs of 4 levels of 256 codes, a hundred thousand and a million of them, float32. Times are medians of
runs that take turns, of

- search: reading the prompts and `beam_search`, for the 10 best items;
- generate: `transformers` with `num_beams` and `prefix_allowed_tokens_fn` over a Python trie, the same model with its
  own attention; the trie is made beforehand; it is compared with searches right before and after it;
- floor: the model's own forward for as many tokens, without any search: the prompts, with the logits of their last
  place, and for each of the 3 later levels 4 x beams sequences of one token, with their logits. So there is no prompt
  to attend to, no cache to reorder and nothing to look up, but the whole vocabulary's output layer, which the search
  does not need;
- bare: the same without the output layer: what no search with this model can be faster than;
- index: within a search with a filter for each request, which leaves half of the items: the children of prefixes,
  whether an allowed item is below them, and the items of the leaves.

Then the search at 50 beams among 10 thousand to 10 million semantic IDs, and its peak of memory for short and long
prompts and few and many beams, each in a process of its own. The last line is for machines: the Llama among a million.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from statistics import median
from time import perf_counter
from typing import Any, Final
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DynamicCache,
    EncoderDecoderCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from benchmarks.memory import peak_bytes
from onesearch.allowed import Allowed
from onesearch.model.language import language_model
from onesearch.prefix import PrefixIndex
from onesearch.search import LanguageScorer, beam, beam_search

VOCABULARY: Final = 9000
LEVELS: Final = (256, 256, 256, 256)
STARTS: Final = tuple(VOCABULARY - sum(LEVELS[level:]) for level in range(len(LEVELS)))
BATCH: Final = 4
PROMPT: Final = 128
K: Final = 10
BEAMS: Final = (10, 50, 256)
TURNS: Final = {10: 5, 50: 3, 256: 1}
"""So often `generate` is measured, which takes long, each time with six searches around it."""
log = logging.getLogger(__name__)


def backbone(family: str, prompt: int = PROMPT) -> PreTrainedModel:
    """An untrained model with places for a prompt of this length."""
    torch.manual_seed(0)
    if family == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY, hidden_size=256, intermediate_size=1024, num_hidden_layers=4,
                num_attention_heads=4, max_position_embeddings=prompt + 8, bos_token_id=None, eos_token_id=None,
            )
        ).eval()  # fmt: skip
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=VOCABULARY, d_model=256, encoder_layers=4, decoder_layers=4, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=1024, decoder_ffn_dim=1024, max_position_embeddings=prompt + 8,
            decoder_start_token_id=2, eos_token_id=None, forced_eos_token_id=None,
        )
    ).eval()  # fmt: skip


def random_ids(items: int, seed: int = 0) -> NDArray[np.int32]:
    """(N, 4) codes; few are drawn twice."""
    return np.random.default_rng(seed).integers(0, LEVELS[0], (items, len(LEVELS)), np.int32)


def trie_of(codes: NDArray[np.int32]) -> dict[tuple[int, ...], list[int]]:
    """The tokens that may follow each prefix."""
    trie: dict[tuple[int, ...], list[int]] = {}
    tokens = np.unique(codes, axis=0) + np.array(STARTS)
    for depth in range(len(LEVELS)):
        for row in np.unique(tokens[:, : depth + 1], axis=0).tolist():
            trie.setdefault(tuple(row[:depth]), []).append(row[depth])
    return trie


def generate(model: PreTrainedModel, inputs: Tensor, trie: dict[tuple[int, ...], list[int]], beams: int) -> Tensor:
    """(B * K, L) codes of what `transformers` finds."""
    begin = 1 if model.config.is_encoder_decoder else inputs.shape[1]
    out = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        num_beams=beams,
        num_return_sequences=min(K, beams),
        max_new_tokens=len(LEVELS),
        do_sample=False,
        length_penalty=0.0,
        renormalize_logits=True,
        prefix_allowed_tokens_fn=lambda _, row: trie[tuple(row[begin:].tolist())],
    )
    return out[:, -len(LEVELS) :] - torch.tensor(STARTS)


def forward_only(model: PreTrainedModel, inputs: Tensor, beams: int, head: bool) -> Callable[[], None]:
    """The floor, or without `head` the bare model."""
    one = torch.randint(0, VOCABULARY, (len(inputs) * beams, 1))
    if not model.config.is_encoder_decoder:

        def causal() -> None:
            for tokens in (inputs, *[one] * (len(LEVELS) - 1)):
                if head:
                    model(input_ids=tokens, use_cache=False, logits_to_keep=1)
                else:
                    model.base_model(input_ids=tokens, use_cache=False)

        return causal
    # One encoder place for each beam, its keys and values projected beforehand: a floor has no prompt.
    width = model.config.d_model // model.config.decoder_attention_heads
    pair = torch.randn(2, len(one), model.config.decoder_attention_heads, 1, width)
    place = torch.randn(len(one), 1, model.config.d_model)

    def seq2seq() -> None:
        states = model.get_encoder()(input_ids=inputs).last_hidden_state
        begin = torch.full((len(inputs), 1), model.config.decoder_start_token_id)
        hidden = [model.get_decoder()(input_ids=begin, encoder_hidden_states=states, use_cache=False)]
        for _ in LEVELS[1:]:
            cross = DynamicCache([tuple(pair)] * model.config.decoder_layers)
            cache = EncoderDecoderCache(DynamicCache(), cross)
            hidden.append(
                model.get_decoder()(input_ids=one, encoder_hidden_states=place, past_key_values=cache, use_cache=True)
            )
        if head:
            for out in hidden:
                model.lm_head(out.last_hidden_state)

    return seq2seq


class Clock:
    """Seconds spent in some functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = perf_counter()
            out = work(*args, **kwargs)
            self.seconds += perf_counter() - start
            return out

        return timed


@contextmanager
def looking_up(clock: Clock) -> Iterator[None]:
    """Let the clock run in what a search asks of the index and the filter."""
    with (
        patch.object(PrefixIndex, "children", clock(PrefixIndex.children)),
        patch.object(Allowed, "below", clock(Allowed.below)),
        patch.object(beam, "items_below", clock(beam.items_below)),
    ):
        yield


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that it took, and what came out."""
    start = perf_counter()
    out = work()
    return perf_counter() - start, out


def seconds(works: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """The median of each, run in turns after one run that does not count."""
    found: dict[str, list[float]] = {name: [] for name in works}
    with torch.inference_mode():
        for run in range(runs + 1):
            for name, work in works.items():
                took, _ = timed(work)
                if run:
                    found[name].append(took)
    return {name: median(times) for name, times in found.items()}


def compare(
    family: str, codes: NDArray[np.int32], trie: dict[tuple[int, ...], list[int]], runs: int, slowest: int
) -> dict[str, float]:
    """Speed-up over generate up to `slowest` beams, ratios to floor and bare, share of the index, per beam width."""
    index = PrefixIndex.build(codes)
    plain = backbone(family)
    model = language_model(copy.deepcopy(plain), STARTS, LEVELS)
    inputs = torch.randint(0, STARTS[0], (BATCH, PROMPT), generator=torch.Generator().manual_seed(1))
    half = Allowed.of(index, torch.rand(BATCH, len(index), generator=torch.Generator().manual_seed(2)) < 0.5)
    figures: dict[str, float] = {}

    def scorer() -> LanguageScorer:
        return LanguageScorer(model, model.read(inputs), index)

    for beams in BEAMS:
        works = {
            "search": lambda beams=beams: beam_search(scorer(), beams, K),
            "floor": forward_only(plain, inputs, beams, head=True),
            "bare": forward_only(plain, inputs, beams, head=False),
            "filtered": lambda beams=beams: beam_search(scorer(), beams, K, half),
        }
        took = seconds(works, runs)
        clock, start = Clock(), perf_counter()
        with looking_up(clock):
            for _ in range(runs):
                works["filtered"]()
        share = clock.seconds / (perf_counter() - start)
        told = f"{1000 * took['search']:.0f} ms, {took['search'] / took['floor']:.2f} of the floor"
        told += f", {took['search'] / took['bare']:.2f} of the bare model"
        told += f", with a filter {1000 * took['filtered']:.0f} ms, index and filter {share:.1%} of it"
        figures |= {f"over_floor_beam{beams}": took["search"] / took["floor"], f"index_share_beam{beams}": share}
        if beams <= slowest:
            own, other = [], []
            for _ in range(TURNS[beams]):
                own += [timed(works["search"])[0] for _ in range(3)]
                took_generate, theirs = timed(lambda beams=beams: generate(plain, inputs, trie, beams))
                other.append(took_generate)
                own += [timed(works["search"])[0] for _ in range(3)]
            figures[f"speedup_beam{beams}"] = median(other) / median(own)
            told += f", {figures[f'speedup_beam{beams}']:.1f} times as fast as generate"
            ours = beam_search(scorer(), beams, K).items
            same = (torch.from_numpy(codes)[ours].flatten(0, 1) == theirs).all(1)
            told += f" ({same.float().mean():.1%} of the items the same)"
        log.info("%s among %d, %d beams: %s", family, len(codes), beams, told)
    return figures


def sure_of_itself(index: PrefixIndex, runs: int) -> None:
    """What stopping early gains: the output layer is scaled, as an untrained model gives all codes the same."""
    inputs = torch.randint(0, STARTS[0], (BATCH, PROMPT), generator=torch.Generator().manual_seed(1))
    for scale in (1, 3, 10):
        plain = backbone("llama")
        with torch.no_grad():
            plain.lm_head.weight.mul_(scale)
        model = language_model(plain, STARTS, LEVELS)
        scorer: Callable[[], LanguageScorer] = lambda model=model: LanguageScorer(model, model.read(inputs), index)  # noqa: E731
        for beams in BEAMS[1:]:
            works = {
                str(early): lambda beams=beams, early=early, scorer=scorer: beam_search(scorer(), beams, K, None, early)
                for early in (False, True)
            }
            took = seconds(works, runs)
            found = works["False"]()
            top = float(found.scores.exp().sum(1).mean())  # type: ignore[attr-defined]
            log.info(
                "llama, %d beams, %.2g of the probability in %d items: stopping early takes %.2f of the time",
                beams, top, K, took["True"] / took["False"],
            )  # fmt: skip


def scaling(runs: int, largest: int) -> None:
    """Time for one of 4 requests at 50 beams, by the number of semantic IDs."""
    model = language_model(backbone("llama"), STARTS, LEVELS)
    inputs = torch.randint(0, STARTS[0], (BATCH, PROMPT), generator=torch.Generator().manual_seed(1))
    works: dict[str, Callable[[], object]] = {}
    for power in range(4, largest + 1):
        index = PrefixIndex.build(random_ids(10**power))
        works[f"10^{power}"] = lambda index=index: beam_search(LanguageScorer(model, model.read(inputs), index), 50, K)
    took = seconds(works, runs)
    log.info(
        "ms a request at 50 beams by number of semantic IDs: %s",
        ", ".join(f"{name}: {1000 * value / BATCH:.1f}" for name, value in took.items()),
    )


def peak_mb(prompt: int, beams: int, threads: int) -> float:
    """Peak memory of a process that searches once."""
    torch.set_num_threads(threads)
    model = language_model(backbone("llama", prompt), STARTS, LEVELS)
    index = PrefixIndex.build(random_ids(100_000))
    inputs = torch.randint(0, STARTS[0], (BATCH, prompt), generator=torch.Generator().manual_seed(1))
    beam_search(LanguageScorer(model, model.read(inputs), index), beams, K)
    return peak_bytes() / 2**20


def memory(threads: int) -> None:
    """Peaks for short and long prompts, few and many beams, and what one copy of the keys a beam would take."""
    found = {}
    for prompt in (PROMPT, 16 * PROMPT):
        for beams in (16, 256):
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                found[prompt, beams] = pool.submit(peak_mb, prompt, beams, threads).result()
    copies = BATCH * 256 * 16 * PROMPT * 256 * 2 * 4 * 4 / 2**20
    told = ", ".join(f"prompt {prompt} x {beams} beams: {value:.0f}" for (prompt, beams), value in found.items())
    log.info("peak MB: %s (a copy of the prompt for each of the beams would be %.0f)", told, copies)


def main() -> None:
    """Parse the command line, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--largest", type=int, default=7, help="power of ten of the largest catalogue")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    if not options.quick:
        memory(options.threads)
    codes = random_ids(options.items)
    start = perf_counter()
    index = PrefixIndex.build(codes)
    build = perf_counter() - start
    size = index.nbytes / 2**20
    log.info("%d semantic IDs, %d threads: index built in %.2f s, %.0f MB", len(codes), options.threads, build, size)
    slowest = 50 if options.quick else 256
    fewer = codes[: options.items // 10]
    compare("llama", fewer, trie_of(fewer), options.runs, slowest)
    trie = trie_of(codes)
    llama = compare("llama", codes, trie, options.runs, slowest)
    compare("bart", codes, trie, options.runs, slowest)
    sure_of_itself(index, options.runs)
    if not options.quick:
        scaling(options.runs, options.largest)
    named = ["speedup_beam10", "speedup_beam50", "speedup_beam256", "over_floor_beam50", "over_floor_beam256"]
    figures: dict[str, float | None] = {name: round(llama[name], 3) if name in llama else None for name in named}
    figures["index_share"] = round(max(llama[f"index_share_beam{beams}"] for beams in BEAMS), 4)
    print(json.dumps(figures | {"build_1m_s": round(build, 3), "index_1m_mb": round(size, 1)}))


if __name__ == "__main__":
    main()
