"""Offline ranking: every scorer orders the same lists, whose labels are known.

    python -m eval.ranking --run runs/demo
    python -m eval.ranking --trec a.run b.run --qrels qrels.txt

The lists are what the run's held-out searches showed (impressions; right is what was clicked), or where the log has no
impressions the union of what the systems return. Scorers are the generator, every baseline, and two fusions of all,
whose weights, like all settings, are chosen on validation searches. AUC, gAUC, MRR, NDCG and calibration come with
intervals that draw whole users, and with paired differences to one scorer.

Writes `eval/ranking.json`, `eval/ranking.parquet` (values of each list) and, for scorers whose scores are
probabilities, `eval/ranking.svg` into the run folder; with `--write-trec` also run files, qrels and users.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.console import Console

from eval.calibration import BINS
from eval.rank_fusion import KINDS, Fusion
from eval.ranked_lists import ALL, PARTS, RankedLists
from eval.ranking_report import Scored, measure, ranking_table, reliability_picture
from eval.ranking_run import DEPTH, FIELDS, Options, Ranking, against_of, rank_run
from eval.scorers import checked
from eval.trec import write_labels, write_run, write_users
from eval.trec_lists import read_lists
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.errors import UserError
from onesearch.files import atomic_path, write_json, write_text

FILE_WIDTH: Final = 132
"""Columns of the tables where the output is no terminal."""


def rank_files(
    runs: Sequence[Path],
    qrels: Path,
    users: Path | None = None,
    probabilities: Sequence[str] = (),
    scorers: Sequence[str] = (),
    against: str | None = None,
    bins: int = BINS,
) -> Ranking:
    """The same for TREC run files; fusions have equal weights, since there is nothing to choose them on.

    Args:
        probabilities: names of the systems whose scores are probabilities.

    Raises:
        UserError: a broken file, an unknown name, a score of `probabilities` that is none.
    """
    lists, scores, notes = read_lists(runs, qrels, users)
    names = list(scores)
    for place, given in (("--probabilities", probabilities), ("--scorers", scorers)):
        for name in given:
            if name not in (*names, *KINDS):
                raise UserError("unknown scorer", place=place, value=name, remedy=f"known: {', '.join(names)}")
    kept = {name: one for name, one in scores.items() if not scorers or name in scorers}
    scored = {}
    for name, one in kept.items():
        values = checked(name, one, lists)
        scored[name] = Scored(values, _from_file(name, values, lists) if name in probabilities else None)
    if len(kept) > 1:
        fusions = [Fusion(name, part, dict.fromkeys(kept, 1.0)) for name, part in KINDS.items()]
        scored |= {one.name: Scored(one(kept, lists.there)) for one in fusions}
        notes.append("fusions have equal weights: files have no validation searches")
    if users is None:
        notes.append("every query counts as a user of its own; give --users to draw and to group by users")
    report, measured = measure(lists, scored, against_of(against, list(kept)), bins=bins)
    report |= {"lists_from": "trec", "notes": notes}
    return Ranking(lists, scored, measured, report, [str(user) for user in lists.user.tolist()])


def write_ranking(folder: Path, ranking: Ranking, trec: bool = False) -> None:
    """Write `ranking.json`, `ranking.parquet`, `ranking.svg` and, if wanted, `ranking-trec/`."""
    lists = ranking.lists
    frames = [
        pl.DataFrame({"scorer": [name] * len(lists), "list": lists.queries, "user": ranking.users, **one.of_lists})
        for name, one in ranking.measured.items()
    ]
    with atomic_path(folder / "ranking.parquet") as temporary:
        pl.concat(frames).write_parquet(temporary)
    picture = reliability_picture(ranking.measured)
    if picture is not None:
        write_text(folder / "ranking.svg", picture)
    if trec:
        write_trec(folder / "ranking-trec", ranking)
    write_json(folder / "ranking.json", ranking.report)


def write_trec(folder: Path, ranking: Ranking) -> None:
    """Run files of every scorer, qrels with a line for every item of every list, and the user of each query."""
    lists = ranking.lists
    for name, one in ranking.scored.items():
        order = np.argsort(-one.scores, axis=1, kind="stable")
        items, scores = np.take_along_axis(lists.items, order, axis=1), np.take_along_axis(one.scores, order, axis=1)
        items = np.where(np.isfinite(scores), items, -1)  # what a scorer cannot score it does not return
        tag = re.sub(r"[^\w.]+", "-", name)  # also the name of a file, on every system
        write_run(folder / f"{tag}.run", tag, lists.queries, items, scores.astype(np.float32), lists.item_ids)
    write_labels(folder / "qrels.txt", lists.queries, lists.items, lists.labels, lists.item_ids)
    write_users(folder / "users.txt", lists.queries, ranking.users)


def _from_file(name: str, scores: NDArray[np.float64], lists: RankedLists) -> NDArray[np.float64]:
    """Scores of a file as probabilities; what a run did not return has none."""
    returned = np.isfinite(scores)
    wrong = returned & ((scores < 0) | (scores > 1))
    if wrong.any():
        row, column = (int(place[0]) for place in np.nonzero(wrong))
        place = f"system {name!r}, query {lists.queries[row]}"
        raise UserError("no probability", place=place, value=float(scores[row, column]), remedy="see --probabilities")
    return np.where(returned, scores, 0.0)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = found.add_argument
    add("--run", type=Path, default=Path("runs/demo"), help="a run folder")
    add("--stage", nargs="+", default=["sft"], help="which of its models; several are compared with each other")
    add(
        "--lists",
        default=Options.lists,
        choices=["auto", "impressions", "union"],
        help="auto: impressions if there are any",
    )
    add("--label", default=Options.label, choices=EVENT_KINDS[1:], help="what makes an item that was shown right")
    add("--part", default=Options.part, choices=[*PARTS, ALL], help="which searches of the split")
    add("--searches", type=int, help="at most so many of them (as many as the run's settings say)")
    add("--depth", type=int, default=DEPTH, help="items of each system in a union")
    add("--scorers", nargs="+", default=[], help="names of scorers and fusions to compare (all)")
    add("--against", help="what the others are compared with (cascade, if it is there)")
    add("--field", default=Options.field, choices=FIELDS, help="the bins of field-ECE")
    add("--bins", type=int, default=BINS, help="bins of ECE")
    add("--trec", type=Path, nargs="+", help="run files instead of a run folder")
    add("--qrels", type=Path, help="their labels")
    add("--users", type=Path, help="who asked: a file of lines `query user`")
    add("--probabilities", nargs="+", default=[], metavar="SYSTEM", help="run files whose scores are probabilities")
    add(
        "--output",
        type=Path,
        help="folder of the results (of a run: eval, or eval/STAGE if the first is not sft)",
    )
    add("--write-trec", action="store_true", help="write lists and scores as run files, qrels and users, too")
    add("--json", action="store_true", help="print JSON instead of the tables")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m eval.ranking --run runs/demo`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = parser().parse_args(arguments)
    options = Options(**{name: getattr(given, name) for name in Options.__dataclass_fields__})
    try:
        _check(given)
        if given.trec:
            ranking = rank_files(
                given.trec, given.qrels, given.users, given.probabilities, given.scorers, given.against, given.bins
            )
            output = given.output
        else:
            ranking = rank_run(given.run, options)
            stage = "" if options.stage[0] == "sft" else options.stage[0]
            output = given.output or given.run / "eval" / stage
        if output is not None:
            write_ranking(output, ranking, given.write_trec)
    except UserError as error:
        sys.stderr.write(f"onesearch: {error}\n")
        return 2
    if given.json:
        sys.stdout.write(json.dumps(ranking.report, ensure_ascii=False) + "\n")
    else:
        console = Console() if sys.stdout.isatty() else Console(width=FILE_WIDTH)
        console.print(ranking_table(ranking.report))
    return 0


def _check(given: argparse.Namespace) -> None:
    """Mistakes that can be told before anything is read."""
    for name in ("searches", "depth", "bins"):
        value = getattr(given, name)
        if value is not None and value < 1:
            raise UserError("must be at least 1", place=f"--{name}", value=value)
    if given.trec and given.qrels is None:
        raise UserError("run files need labels", place="--trec", remedy="add --qrels FILE")
    if not given.trec and (given.qrels or given.users or given.probabilities):
        raise UserError("only with run files", place="--qrels, --users, --probabilities", remedy="add --trec FILE ...")


if __name__ == "__main__":
    raise SystemExit(main())
