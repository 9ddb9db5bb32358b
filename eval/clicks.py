"""A click simulator: lists that a ranker shows, and what made-up users click, where the truth is known.

    python -m eval.clicks --run runs/demo --model position --eta 1 --output lists.parquet
    accelerate launch training/grpo.py --run runs/demo --rollout log --shown lists.parquet --rewards interaction \
        --num_generations 10 --scale_rewards batch --propensity position --propensity_eta 1

- Truth: how attractive an item is to the user of a search, as `eval/graded.py` has it.
- Shown: by a ranker that is not the truth. Of the 30 items whose text fits the query best (BM25) the 10 most popular
  ones at that time, the most popular first.
- Clicks: of the position-based model (`--model position`), in which a user looks at rank r = 0, 1, ... with a chance of
  (1 + r)^-eta, whatever else is there, and clicks what is looked at with a chance that is its attractiveness; or of the
  cascade model (Craswell et al., An Experimental Comparison of Click Position-Bias Models, WSDM 2008,
  https://doi.org/10.1145/1341531.1341545), in which a user looks from the top on and leaves with the first click.

The searches are training searches of the run, the file is what `training/rl/logged.py` reads: `event`, `item_id`,
`rank`, `kind`. The last share of the training period is taken, as trainings do (`recent`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from eval.baselines.bm25 import BM25, START
from eval.baselines.popularity import FreshPopularity
from eval.baselines.text import TextIndex, Texts
from eval.graded import Truth
from onesearch.corpus import Corpus, Requests, item_texts, make_split
from onesearch.errors import UserError
from onesearch.files import atomic_path
from onesearch.run import Run
from training.rl.logged import examination
from training.sft import periods

MODELS: Final = ("position", "cascade")
POOL: Final = 30
LENGTH: Final = 10
HALF_LIFE: Final = 28.0
"""Days, of the popularity that lists are ordered by."""


def position_clicks(attraction: NDArray[np.float64], eta: float, random: np.random.Generator) -> NDArray[np.bool_]:
    """(Q, K) clicks of users who look at each rank by chance; see the module."""
    looked = examination(np.arange(attraction.shape[1]), eta)
    return random.random(attraction.shape) < looked * attraction


def cascade_clicks(attraction: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.bool_]:
    """(Q, K) clicks of users who look from the top on and leave with the first click."""
    wanted = random.random(attraction.shape) < attraction
    return wanted & (wanted.cumsum(1) == 1)


def shown_lists(corpus: Corpus, requests: Requests) -> NDArray[np.int64]:
    """(Q, 10) what the shop's ranker shows, -1 where it has nothing; see the module."""
    texts, fresh = Texts.of(item_texts(corpus)), FreshPopularity(corpus)
    # the smallest weight of popularity: items that share a text are in an order, and nothing else is changed
    ranker = BM25(TextIndex(texts), texts, fresh, {**START, "popularity": 1e-4, "half_life_days": HALF_LIFE})
    fits = ranker.rank(requests, POOL)[0].astype(np.int64)
    snapshots, popularity = fresh.table(HALF_LIFE)
    liked = np.where(fits >= 0, popularity[snapshots.at(requests.time)[:, None], fits], -1.0)
    return np.take_along_axis(fits, np.argsort(-liked, axis=1, kind="stable"), 1)[:, :LENGTH]


def training_searches(run: Run, corpus: Corpus, size: int, recent: float, seed: int) -> Requests:
    """At most `size` different searches that a training with this `recent` learns from."""
    events, _ = periods(corpus, make_split(corpus, run.settings.split), recent)
    _, first = np.unique(corpus.searches(events), return_index=True)
    events = events[np.sort(first)]
    if len(events) > size:
        events = np.sort(np.random.default_rng(seed).choice(events, size, replace=False))
    return Requests.of(corpus, events)


def clicks_of(model: str, attraction: NDArray[np.float64], eta: float, seed: int) -> NDArray[np.bool_]:
    """(Q, K) clicks of a model by its name.

    Raises:
        UserError: there is none.
    """
    random = np.random.default_rng(seed)
    if model not in MODELS:
        raise UserError("no such click model", place="model", value=model, remedy=f"known: {', '.join(MODELS)}")
    return position_clicks(attraction, eta, random) if model == "position" else cascade_clicks(attraction, random)


def write_lists(
    path: Path, corpus: Corpus, requests: Requests, items: NDArray[np.int64], clicks: NDArray[np.bool_]
) -> None:
    """Write lists (Q, K) and their clicks as `training/rl/logged.py` reads them."""
    there = items >= 0
    rows = pl.DataFrame(
        {
            "event": np.repeat(requests.event, there.sum(1)),
            "item_id": corpus.items["item_id"].gather(items[there]),
            "rank": np.nonzero(there)[1].astype(np.int32),
            "kind": pl.Series(np.where(clicks[there], "click", "impression"), dtype=pl.String),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        rows.write_parquet(temporary)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m eval.clicks --run runs/demo --model position --output lists.parquet`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a run folder with a log")
    parser.add_argument("--model", default="position", help=" or ".join(MODELS))
    parser.add_argument("--eta", type=float, default=1.0, help="position: rank r is looked at with (1 + r)^-eta")
    parser.add_argument("--searches", type=int, default=4000)
    parser.add_argument("--recent", type=float, default=0.1, help="last share of the training period")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--output", type=Path, required=True, help="the Parquet file")
    options = parser.parse_args(arguments)
    try:
        run = Run.open(options.run)
        corpus = Corpus.load(run.folder / "corpus")
        requests = training_searches(run, corpus, options.searches, options.recent, options.seed)
        items = shown_lists(corpus, requests)
        attraction = Truth(corpus)(requests.target, items)
        clicks = clicks_of(options.model, attraction, options.eta, options.seed)
        write_lists(options.output, corpus, requests, items, clicks)
    except UserError as error:
        sys.stderr.write(f"onesearch: {' '.join(str(error).split())}\n")
        return 2
    sys.stdout.write(f"{len(items):,} lists, {clicks.sum():,} clicks\n")
    for name, values in {"clicks by rank": clicks, "attractiveness by rank": attraction}.items():
        sys.stdout.write(f"{name:24}{' '.join(f'{rate:.3f}' for rate in values.mean(0))}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
