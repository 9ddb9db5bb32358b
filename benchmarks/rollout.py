"""Samples a second of a rollout: our constrained sampling beside `trl.GRPOTrainer`'s own generation with a trie.

    python -m benchmarks.rollout                    # about two minutes on one core
    python -m benchmarks.rollout --words 8000 --tokens 128
    python -m benchmarks.rollout --words 100 --items 1000 --prompts 4 --turns 1

An untrained Llama (4 layers, width 256), whose vocabulary is as many words as SmolLM2's, the smallest language model of
`configs/language`, and the codes; random semantic IDs of 4 levels of 256 codes, float32, temperature 1, one thread,
G = 8 samples for each of the prompts. Seconds are those of the processor. Works take turns:

- sample: what our GRPO does for `rollout: sample`: reads each prompt once and draws G semantic IDs, code by code, among
  the children of each prefix; the log-probability of every draw is a by-product. `distinct`, the default of our GRPO,
  draws without replacement;
- generate: `GRPOTrainer._generate_single_turn` of TRL with the same weights and its own attention: G copies of each
  prompt, `model.generate` with a logits processor that leaves the children of each prefix. The trie is a Python dict,
  made beforehand, and the processor looks rows up in it and masks all of them at once. The same distribution as
  `sample`, without log-probabilities;
- scored: generate, and `_get_per_token_logps_and_entropies`, with which TRL gets log-probabilities where a rollout
  serves several updates (`num_iterations`); those are of the whole vocabulary, not of the trie's children;
- floor: the model's bare forward over the tokens of our rollout, with logits: the prompts once, then G sequences of one
  token for each of the 3 later codes, without any attention to the prompt.

What TRL can reach is bounded: it reads T tokens G times, we read them once. With 3 more codes to read for every sample
that is G (T + 3) / (T + 3 G) times the work, which is printed as `tokens_ratio`; the rest is the output layer and the
softmax over all words, masks, and copies of keys and values.

Before the clock starts both sides draw from a small catalogue, where what they draw is compared with the exact
probabilities: `off_ours` and `off_trl` are the largest differences of a frequency in units of its standard error (2 to
3 where all is right). Everything that is drawn on the clock must be in the catalogue. The last line is one JSON object;
`speedup_vs_trl` is the median over the turns of generate's seconds over those of `sample` right before and after it,
`speedup_vs_trl_scored` that of scored.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any, Final

import datasets
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from trl import GRPOConfig, GRPOTrainer

from benchmarks.search import LEVELS, random_ids
from onesearch.model.language import language_model
from onesearch.noise import hashed
from onesearch.prefix import PrefixIndex
from onesearch.search import LanguageScorer, codes_of, sample, sample_without_replacement
from onesearch.search.scores import item_log_prob

GROUP: Final = 8
CHECKED: Final = 256
"""Prompts, all the same one, whose samples are compared with the exact probabilities."""
FEW: Final = 24
"""Items of that check."""
WORDS: Final = 49_152


def backbone(words: int, tokens: int) -> PreTrainedModel:
    """An untrained model with places for prompts of so many tokens."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=words + sum(LEVELS), hidden_size=256, intermediate_size=1024, num_hidden_layers=4,
            num_attention_heads=4, max_position_embeddings=tokens + 8, bos_token_id=None, eos_token_id=None,
        )
    ).eval()  # fmt: skip


def starts(words: int) -> Tensor:
    """(L,) the token of each level's code 0."""
    return words + torch.tensor([0, *LEVELS[:-1]]).cumsum(0)


def trie_of(tokens: NDArray[np.int64]) -> dict[tuple[int, ...], list[int]]:
    """The tokens that may follow each prefix of (N, L) different semantic IDs."""
    trie: dict[tuple[int, ...], list[int]] = {}
    for depth in range(tokens.shape[1]):
        for row in np.unique(tokens[:, : depth + 1], axis=0).tolist():
            trie.setdefault(tuple(row[:depth]), []).append(row[depth])
    return trie


class TrieProcessor(LogitsProcessor):
    """Leaves the tokens that may follow what was generated after a prompt of `begin` tokens."""

    def __init__(self, trie: dict[tuple[int, ...], list[int]]) -> None:
        self.trie, self.begin = trie, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        allowed = [self.trie[tuple(said)] for said in input_ids[:, self.begin :].tolist()]
        column = torch.tensor(list(chain.from_iterable(allowed)))
        row = torch.arange(len(allowed)).repeat_interleave(torch.tensor(list(map(len, allowed))))
        left = torch.full_like(scores, -torch.inf)
        left[row, column] = scores[row, column]
        return left


def free(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """A reward that costs nothing."""
    return [0.0] * len(completions)


def tokenizer_of(size: int) -> PreTrainedTokenizerFast:
    """One word a token."""
    tokenizer = Tokenizer(WordLevel({f"w{token}": token for token in range(size)}, unk_token="w1"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", eos_token="w2", unk_token="w1")


class Theirs:
    """TRL's trainer with the model and a trie.

    Args:
        prompts: (B, T) tokens.
    """

    def __init__(
        self, model: PreTrainedModel, words: int, codes: NDArray[np.int32], prompts: Tensor, folder: Path
    ) -> None:
        self.starts = starts(words)
        # Each prompt stands G times in the batch, as TRL's sampler has it.
        self.prompts = [row for row in prompts.tolist() for _ in range(GROUP)]
        rows = [{"prompt": " ".join(f"w{token}" for token in row)} for row in self.prompts]
        args = GRPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=len(self.prompts),
            num_generations=GROUP,
            max_completion_length=len(LEVELS),
            temperature=1.0,
            report_to="none",
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
        )
        self.trainer = GRPOTrainer(
            model=model,
            reward_funcs=free,
            args=args,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer_of(words + sum(LEVELS)),
        )
        self.trainer.model.train()  # as in a training step; nothing is dropped out
        self.processor, own = TrieProcessor(trie_of(codes + self.starts.numpy())), self.trainer.model.generate

        def generate(input_ids: Tensor, **options: Any) -> Tensor:
            self.processor.begin = input_ids.shape[1]
            out: Tensor = own(input_ids=input_ids, logits_processor=LogitsProcessorList([self.processor]), **options)
            return out

        self.trainer.model.generate = generate

    def generate(self) -> Tensor:
        """(B * G, L) codes."""
        completions, _ = self.trainer._generate_single_turn(self.prompts, None, {}, GROUP)
        return torch.tensor(completions) - self.starts

    def scored(self) -> Tensor:
        """The same, and what log-probabilities cost."""
        codes = self.generate()
        tokens = torch.cat([torch.tensor(self.prompts), codes + self.starts], 1)
        with torch.no_grad():
            self.trainer._get_per_token_logps_and_entropies(
                self.trainer.model, tokens, torch.ones_like(tokens), len(LEVELS)
            )
        return codes


class Ours:
    """The project's rollout with the model."""

    def __init__(self, model: PreTrainedModel, words: int, codes: NDArray[np.int32], prompts: Tensor) -> None:
        self.model = language_model(model, starts(words).tolist(), LEVELS)
        self.index, self.prompts = PrefixIndex.build(codes), prompts
        self.count = 0

    def draw(self, how: Callable[..., Any]) -> Tensor:
        """(B * G, L) codes; random numbers as in `training/rl/rollouts.py`."""
        self.count += 1
        keys = hashed(torch.arange(len(self.prompts)), 7, self.count)
        with torch.inference_mode():
            scorer = LanguageScorer(self.model, self.model.read(self.prompts), self.index)
        found = how(scorer, GROUP, 1.0, random=keys)
        assert bool(found.log_prob.isfinite().all())
        return codes_of(self.index, found.nodes).flatten(0, 1)

    def probability(self) -> NDArray[np.float64]:
        """(N,) the exact probability of every item after the first prompt."""
        with torch.inference_mode():
            scorer = LanguageScorer(self.model, self.model.read(self.prompts[:1]), self.index)
        found = item_log_prob(scorer, torch.arange(len(self.index))[None])[0].double().exp()
        return (found / found.sum()).numpy()


def places(codes: NDArray[np.int32], drawn: Tensor) -> NDArray[np.int64]:
    """(n,) the item of each of (n, L) semantic IDs; an `AssertionError` where one is not in the catalogue."""
    radix = np.cumprod([1, *LEVELS[:0:-1]])[::-1]
    known, asked = codes.astype(np.int64) @ radix, drawn.numpy().astype(np.int64) @ radix
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known[order], asked).clip(max=len(known) - 1)
    assert (known[order][place] == asked).all(), "something was drawn that is not in the catalogue"
    found: NDArray[np.int64] = order[place]
    return found


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the processor that it took, and what came out."""
    start = process_time()
    out = work()
    return process_time() - start, out


def off(drawn: NDArray[np.int64], probability: NDArray[np.float64]) -> float:
    """The largest difference of a frequency from its probability, in standard errors."""
    share = np.bincount(drawn, minlength=len(probability)) / len(drawn)
    return float((np.abs(share - probability) / np.sqrt(probability * (1 - probability) / len(drawn))).max())


def check(folder: Path) -> dict[str, float]:
    """How far both sides are from the exact probabilities of a small catalogue, by a model that is sure of itself."""
    words = 64
    plain = backbone(words, 8)
    with torch.no_grad():
        plain.lm_head.weight.mul_(10)
    codes = np.unique(np.random.default_rng(3).integers(0, 3, (FEW, len(LEVELS)), np.int32), axis=0)
    prompts = torch.randint(3, words, (1, 8), generator=torch.Generator().manual_seed(5)).expand(CHECKED, -1)
    ours, theirs = Ours(copy.deepcopy(plain), words, codes, prompts), Theirs(plain, words, codes, prompts, folder)
    probability = ours.probability()
    drawn = {"off_ours": ours.draw(sample), "off_trl": theirs.generate()}
    return {name: round(off(places(codes, one), probability), 2) for name, one in drawn.items()}


def compare(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Seconds of each work in turns, and what follows from them."""
    words, tokens, prompts = options.words, options.tokens, options.prompts
    plain, codes = backbone(words, tokens), np.unique(random_ids(options.items), axis=0)
    read = torch.randint(3, words, (prompts, tokens), generator=torch.Generator().manual_seed(1))
    bare, one = copy.deepcopy(plain), read.repeat(1, GROUP)[:, :GROUP].reshape(-1, 1)

    def floor() -> None:
        for said in (read, *[one] * (len(LEVELS) - 1)):
            bare(input_ids=said, use_cache=False, logits_to_keep=1)

    ours, theirs = Ours(copy.deepcopy(plain), words, codes, read), Theirs(plain, words, codes, read, folder)
    peers = {"generate": theirs.generate, "scored": theirs.scored}
    seconds: dict[str, list[float]] = {name: [] for name in ("sample", "distinct", "floor", *peers)}
    ratios: dict[str, list[float]] = {name: [] for name in peers}
    for turn in range(options.turns + 1):
        if turn == 1:  # the first does not count
            for values in (*seconds.values(), *ratios.values()):
                values.clear()
        for name, peer in peers.items():
            around = []
            for theirs_turn in (False, True, False):
                took, drawn = timed(peer if theirs_turn else lambda: ours.draw(sample))
                places(codes, drawn)
                seconds[name if theirs_turn else "sample"].append(took)
                around += [] if theirs_turn else [took]
            ratios[name].append(seconds[name][-1] / float(np.mean(around)))
        took, drawn = timed(lambda: ours.draw(sample_without_replacement))
        chosen = np.sort(places(codes, drawn).reshape(prompts, GROUP), axis=1)
        assert (chosen[:, 1:] != chosen[:, :-1]).all(), "an item was drawn twice"
        seconds["distinct"].append(took)
        with torch.inference_mode():
            seconds["floor"].append(timed(floor)[0])
    middle = {name: median(values) for name, values in seconds.items()}
    later = len(LEVELS) - 1
    figures = {f"speedup_vs_trl{'' if name == 'generate' else f'_{name}'}": median(ratios[name]) for name in peers}
    figures |= {
        "tokens_ratio": GROUP * (tokens + later) / (tokens + GROUP * later),
        "over_floor": middle["sample"] / middle["floor"],
    }
    figures |= {f"{name}_samples_per_second": prompts * GROUP / took for name, took in middle.items()}
    return {name: round(value, 2) for name, value in figures.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m benchmarks.rollout`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=WORDS, help="of the vocabulary, beside the codes")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48, help="of each prompt")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        figures: dict[str, float] = check(Path(folder))
        figures |= compare(options, Path(folder))
    for name, value in figures.items():
        print(f"{name:>40} {value:10,.2f}")
    names = ("words", "items", "prompts", "tokens", "threads")
    print(json.dumps(figures | {name: getattr(options, name) for name in names}))
    return 0


if __name__ == "__main__":
    logging.getLogger("onesearch").setLevel(logging.ERROR)
    raise SystemExit(main())
