"""The ranking evaluation of a run: its lists, its scorers and their fusions."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from eval.baselines import Scorer, System
from eval.baselines.bm25 import BM25
from eval.baselines.cascade import Cascade
from eval.baselines.dense import Dense
from eval.baselines.fit import fit_baselines, fit_history_baselines
from eval.baselines.history import OwnHistory
from eval.baselines.popularity import PopularitySystem
from eval.baselines.sasrec import SASRec
from eval.calibration import BINS
from eval.generator import GeneratorSystem
from eval.rank_fusion import KINDS, Fusion
from eval.ranked_lists import ALL, PARTS, RankedLists, from_impressions, from_union
from eval.ranking_report import Measured, Scored, measure
from eval.recall import CONTENT
from eval.scorers import GeneratorScores, scores_of
from eval.scorers_reward import GIVEN, RewardScorer
from onesearch.context.sequence import ItemContent
from onesearch.corpus import TRAIN, Corpus, Requests, make_split, sample_requests
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.embed import load_text_encoder
from onesearch.errors import UserError
from onesearch.retriever import Retriever
from onesearch.reward import RewardModel
from onesearch.run import Run
from onesearch.semantic_ids import item_vectors

logger = logging.getLogger(__name__)

DEPTH: Final = 50
"""Items of each system in a union."""

AGAINST: Final = ("cascade", "sasrec", "popularity")
"""What the others are compared with if nothing else is said: the first of these that is there."""

QUERY_BASELINES: Final = (PopularitySystem.name, BM25.name, Dense.name, OwnHistory.name, Cascade.name)
LOG_BASELINES: Final = (PopularitySystem.name, SASRec.name)
"""For a log with and without queries."""

REWARD: Final = "reward"
"""The stage of the reward model."""

Named = TypeVar("Named", GeneratorScores, GeneratorSystem)
FIELDS: Final = ("category", "brand")


@dataclass(frozen=True)
class Options:
    """What is evaluated; see `--help`."""

    stage: Sequence[str] = ("sft",)
    lists: str = "auto"
    label: str = "click"
    part: str = "test"
    searches: int | None = None
    depth: int = DEPTH
    scorers: Sequence[str] = ()
    against: str | None = None
    field: str = "category"
    bins: int = BINS


@dataclass(frozen=True)
class Ranking:
    """What came out.

    Attributes:
        scored: per scorer, what it made of the lists. users: (Q) ids, for files.
    """

    lists: RankedLists
    scored: dict[str, Scored]
    measured: dict[str, Measured]
    report: dict[str, Any]
    users: list[str]


class Bench:
    """A run, ready to be asked for lists and scores: its systems are fitted once, and only if they are needed."""

    def __init__(self, folder: Path, options: Options) -> None:
        self.run, self.options, self.notes = Run.open(folder), options, list[str]()
        self._retrievers: dict[str, Retriever] = {}
        if (self.run.folder / "models/sft/config.json").exists() or tuple(options.stage) != ("sft",):
            self._retrievers = {stage: Retriever.load(folder, stage) for stage in options.stage}
        else:
            self.notes.append("the run has no trained generator yet: baselines only")
        self.corpus = Corpus.load(self.run.folder / "corpus")
        self.split = make_split(self.corpus, self.run.settings.split)
        self.impressions = _impressions(self.corpus, options)
        self._systems: list[Any] | None = None
        self._own: list[Scorer] = [
            _named(one, stage, len(options.stage) > 1)
            for stage, retriever in self._retrievers.items()
            for one in GeneratorScores.all(retriever, one_answer=not self.impressions)
        ]
        self._own += _reward_scorers(self.run, self.corpus)
        if options.part in ("train", ALL):
            self.notes.append(
                "the scorers have learnt from these very searches: the figures do not say how good they are"
            )
        if options.part == "valid":
            self.notes.append("settings and weights were chosen on these very searches")

    @property
    def names(self) -> list[str]:
        """Of all scorers that the run has."""
        fitted = QUERY_BASELINES if self.corpus.queries else LOG_BASELINES
        return [*fitted, *(one.name for one in self._own)]

    def requests(self, part: str) -> Requests:
        """Searches of a part of the split, as `eval.recall` samples them."""
        settings = self.run.settings
        size = settings.valid_requests if part == "valid" else settings.test_requests
        size = self.options.searches or size if part == self.options.part else size
        split = np.full(len(self.split), TRAIN, np.int8) if part == ALL else self.split
        return sample_requests(self.corpus, split, TRAIN if part == ALL else PARTS[part], size, settings.seed)

    @property
    def systems(self) -> list[Any]:
        """The baselines, tuned on validation searches, each a system and a scorer."""
        if self._systems is None:
            valid, settings = self.requests("valid"), self.run.settings
            if len(valid) == 0:
                self.notes.append(
                    "no validation searches: settings of the baselines are chosen on all searches of the log"
                )
                valid = self.requests(ALL)
            if len(valid) == 0:
                raise UserError("no searches", place=self.corpus.folder, remedy="the log needs clicks or purchases")
            if self.corpus.queries:
                encoder = load_text_encoder(settings.encoder)
                self._systems = list(fit_baselines(self.corpus, self.split, valid, encoder, seed=settings.seed))
            else:
                content = ItemContent.fit(item_vectors(self.run, self.corpus, self.split), CONTENT).vectors
                self._systems = list(fit_history_baselines(self.corpus, self.split, valid, content, seed=settings.seed))
        return self._systems

    def lists(self, part: str) -> RankedLists:
        """The lists of a part of the split."""
        options, settings = self.options, self.run.settings
        if self.impressions:
            size = settings.valid_requests if part == "valid" else options.searches or settings.test_requests
            return from_impressions(self.corpus, self.split, part, size, options.label, settings.seed)
        requests = self.requests(part)
        if len(requests) == 0:
            raise UserError(f"no searches in the part {part!r}", place=self.corpus.folder, remedy="see --part")
        systems: list[System] = [*self.systems]
        for stage, retriever in self._retrievers.items():
            systems += [_named(one, stage, len(options.stage) > 1) for one in GeneratorSystem.all(retriever)]
        found = {system.name: system.rank(requests, options.depth)[0] for system in systems}
        return from_union(found, requests, self.corpus, settings.seed, part)

    def scorers(self) -> list[Scorer]:
        """Those that were asked for, all without any wish."""
        wanted = self.wanted
        enough = set(wanted) <= {one.name for one in self._own}  # then no baseline needs to be fitted
        known: list[Scorer] = [*([] if enough else self.systems), *self._own]
        return [one for one in known if one.name in wanted]

    @property
    def wanted(self) -> list[str]:
        """The names of the scorers that were asked for, all without any wish; fusions are none.

        Raises:
            UserError: an unknown one.
        """
        names = self.names
        for name in self.options.scorers:
            if name not in (*names, *KINDS):
                remedy = f"known: {', '.join([*names, *KINDS])}"
                raise UserError("unknown scorer", place="--scorers", value=name, remedy=remedy)
        return [name for name in self.options.scorers if name not in KINDS] or names


def rank_run(folder: Path, options: Options) -> Ranking:
    """Let the scorers of a run order its lists.

    Raises:
        UserError: an unknown scorer, no lists, nothing right in them, scores that are not numbers.
    """
    bench = Bench(folder, options)
    against = against_of(options.against, bench.wanted)  # told before minutes are spent
    lists, scorers = bench.lists(options.part), bench.scorers()
    scores = _scored(scorers, lists)
    scored = {one.name: Scored(scores[one.name], _probability(one, scores[one.name])) for one in scorers}
    fusions = _fusions(bench, scorers, lists, scores)
    scored |= {one.name: Scored(one(scores, lists.there)) for one in fusions}
    field = _field(bench.corpus, options.field)
    report, measured = measure(lists, scored, against, field=field, bins=options.bins, seed=bench.run.settings.seed)
    report |= {
        "lists_from": "impressions" if bench.impressions else "union",
        "part": options.part,
        "field": options.field,
        "fusions": {one.name: one.weights for one in fusions},
        "notes": bench.notes,
    }
    users = bench.corpus.users["user_id"].gather(lists.user).to_list()
    return Ranking(lists, scored, measured, report, users)


def _reward_scorers(run: Run, corpus: Corpus) -> list[Scorer]:
    """The reward model of the run, if there is one: its reward, and each of its heads."""
    if not (run.folder / "models" / REWARD / "model.safetensors").exists():
        return []
    model = RewardModel.load(run, REWARD, corpus)
    return [RewardScorer(model, given) for given in GIVEN]


def _named(one: Named, stage: str, several: bool) -> Named:
    """With the name of its stage, where there are several."""
    if several:
        one.name = f"{one.name}-{stage}"
    return one


def _impressions(corpus: Corpus, options: Options) -> bool:
    has = bool((corpus.kind == EVENT_KINDS.index("impression")).any())
    if options.lists == "impressions" and not has:
        raise UserError("the log has no impressions", place=corpus.folder, remedy="use --lists union")
    return has if options.lists == "auto" else options.lists == "impressions"


def _scored(scorers: Sequence[Scorer], lists: RankedLists) -> dict[str, NDArray[np.float64]]:
    scores = {}
    for scorer in scorers:
        began = time.perf_counter()
        scores[scorer.name] = scores_of(scorer, lists)
        logger.info("%s scored %d lists in %.1f s", scorer.name, len(lists), time.perf_counter() - began)
    return scores


def _fusions(
    bench: Bench, scorers: Sequence[Scorer], lists: RankedLists, scores: Mapping[str, NDArray[np.float64]]
) -> list[Fusion]:
    """The fusions that were asked for, tuned on validation lists; none of a single scorer."""
    asked = bench.options.scorers
    names = [name for name in KINDS if not asked or name in asked]
    if len(scorers) < 2 or not names:
        return []
    if bench.options.part == "valid":
        valid, known = lists, scores
    else:
        try:
            valid = bench.lists("valid")
        except UserError as error:
            bench.notes.append(f"fusions have equal weights, since there are no validation lists: {error.problem}")
            return [Fusion(name, KINDS[name], dict.fromkeys(scores, 1.0)) for name in names]
        known = _scored(scorers, valid)
    return [Fusion.tuned(name, KINDS[name], known, valid.there, valid.right) for name in names]


def _probability(scorer: Scorer, scores: NDArray[np.float64]) -> NDArray[np.float64] | None:
    if not scorer.calibrated:
        return None
    return np.exp(scores) if scorer.logarithmic else np.where(np.isfinite(scores), scores, 0.0)


def against_of(wanted: str | None, names: Sequence[str]) -> str:
    """What the others are compared with: the wanted one, else the first of AGAINST that is there.

    Raises:
        UserError: the wanted one is none of the names.
    """
    if wanted is not None and wanted not in names:
        raise UserError("unknown scorer", place="--against", value=wanted, remedy=f"known: {', '.join(names)}")
    return wanted or next((name for name in AGAINST if name in names), names[0])


def _field(corpus: Corpus, field: str) -> NDArray[np.int64]:
    """(N,) number of the value that each item has in a field; items without one share a value."""
    column = corpus.items["brand"] if field == "brand" else corpus.items["categories"].list.first()
    return column.fill_null("").rank("dense").to_numpy().astype(np.int64) - 1
