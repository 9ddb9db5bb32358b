"""The reward model on lists of test searches: order, calibration, and what weights of its heads bring.

    python -m eval.reward --run runs/demo

Lists are drawn by the rule of the training (`training/lists.py`), from searches of the test period. AUC, gAUC, ECE,
PCOC and field-ECE (of the items' leaf categories) have intervals that draw whole users. Two calibrators are fitted
anew on the validation lists that the model's own was fitted on: the monotone one, and the one that reads the item. The
weights of the heads are compared by NDCG@10: a purchase alone, fixed weights chosen on the same validation lists, and
for each request those of a Dirichlet policy, learnt with and without the rule for the format of its weights. Writes
`eval/reward.json` of the run, or `eval/STAGE/reward.json` of another stage.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

from eval.auc import auc, group_auc
from eval.calibration import calibration_error, equal_bins, predicted_over_observed
from eval.metrics import Bootstrap, Estimate
from onesearch.corpus import TEST, TRAIN, VALID, make_split
from onesearch.errors import UserError
from onesearch.files import read_json, write_json
from onesearch.reward import Interactions, RewardModel, RewardNetwork
from onesearch.reward.calibration import MonotoneCalibrator
from onesearch.reward.fusion import HEADS, DirichletPolicy
from onesearch.reward.levels import LEVELS
from onesearch.reward.model import raw_logits
from onesearch.run import Run
from training.beams import generated
from training.grade import GradeSettings, collapse, learn_policy
from training.launch import fail
from training.lists import CandidateLists, learnt_events
from training.reward_batches import Judged, RewardBatches
from training.reward_check import Outcomes, informative, judged_lists, ndcg_of_lists
from training.reward_fit import calibrate, choose_weights
from training.reward_material import sampled

LEARNT: Final = ("click", "both")
"""Heads whose calibration is reported; a conversion is asked for few rows, and is the ratio of both."""


def evaluate(run: Run, stage: str = "reward", size: int = 4000, fit_size: int = 8000) -> dict[str, Any]:
    """Measure a reward model on test lists, and write the report.

    Args:
        size: test searches at most. fit_size: validation searches, of which half of the users fit.

    Raises:
        UserError: there is no reward model, or the log has no held-out searches.
    """
    model = RewardModel.load(run, stage)
    corpus, split = model.corpus, make_split(model.corpus, run.settings.split)
    made = read_json(run.folder / "models" / stage / "lists.json")
    seed, shown, generator = (made.pop(name) for name in ("seed", "shown", "generator"))
    interactions = Interactions.of(corpus)
    events = learnt_events(corpus)
    valid = sampled(events[split[events] == VALID], fit_size, seed)
    fit_events = valid[corpus.user[valid] % 2 == 0]
    test_events = sampled(events[split[events] == TEST], size, seed)
    if not len(fit_events) or not len(test_events):
        raise UserError("no held-out searches", place=run.folder / "corpus", remedy="the log needs more events")
    asked = np.concatenate([fit_events, test_events])
    beams = generated(run, corpus, asked, made["beam"], generator) if made["beam"] else None
    lists = CandidateLists(corpus, split == TRAIN, interactions, made, shown, seed, beams)
    judged = Judged([], np.zeros((0, 1), np.int64), np.zeros((0, 1), np.float32))
    batches = RewardBatches(model.features, lists, interactions, judged, asked)
    fit, test = (judged_lists(model.network, batches, some) for some in (fit_events, test_events))
    draws = Bootstrap(test.user, seed=seed)
    report: dict[str, Any] = {"stage": stage, "lists": len(test.items), "rows": int(test.there.sum())}
    report |= _order(test, draws)
    report["calibration"] = _calibration(model.network, fit, test, interactions.category, seed, draws)
    report["fusion"] = _fusion(model.network, fit, test, seed)
    report["levels"] = _levels(test)
    folder = run.folder / "eval" if stage == "reward" else run.folder / "eval" / stage
    write_json(folder / "reward.json", report)
    return report


def _rows(outcomes: Outcomes, head: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
    """(Q, K) which rows a head is asked for; (P,) what happened in them, and the list of each."""
    label, rows = outcomes.label(head)
    return rows, label[rows], np.nonzero(rows)[0].astype(np.int64)


def _order(test: Outcomes, draws: Bootstrap) -> dict[str, Any]:
    logits = raw_logits(torch.from_numpy(test.logits).double()).numpy()
    found: dict[str, Any] = {"order": {}}
    for place, head in enumerate(HEADS[:3]):
        rows, right, row = _rows(test, head)
        score = logits[..., place][rows]
        user = np.unique(test.user, return_inverse=True)[1][row].astype(np.int64)
        found["order"][head] = {
            "rate": float(right.mean()),
            "auc": auc(score, right, row, draws).estimate().as_dict(),
            "gauc_query": group_auc(score, right, row, row, draws).drawn.estimate().as_dict(),
            "gauc_user": group_auc(score, right, user, row, draws).drawn.estimate().as_dict(),
        }
    said = test.probabilities[..., HEADS.index("relevance")][test.there]
    found["relevance_correlation"] = float(np.corrcoef(test.labels[..., 2][test.there], said)[0, 1])
    return found


def _calibration(
    network: RewardNetwork,
    fit: Outcomes,
    test: Outcomes,
    category: NDArray[np.int64],
    seed: int,
    draws: Bootstrap,
) -> dict[str, Any]:
    """Per way of calibration and head: ECE, field-ECE, PCOC and AUC."""
    found: dict[str, Any] = {}
    for way in ("none", "monotone", "field"):
        calibrated = with_calibrators(network, way)
        if way != "none":
            calibrate(calibrated, fit, 20, seed)
        now = test.calibrated(calibrated)
        found[way] = {}
        for head in LEARNT:
            rows, right, row = _rows(now, head)
            said = now.probabilities[..., HEADS.index(head)][rows]
            field = np.unique(category[now.items[rows]], return_inverse=True)[1]
            found[way][head] = {
                "ece": calibration_error(said, right, equal_bins(said), row, draws).estimate().as_dict(),
                "field_ece": calibration_error(said, right, field, row, draws).estimate().as_dict(),
                "pcoc": predicted_over_observed(said, right, row, draws).estimate().as_dict(),
                "auc": auc(said, right, row, draws).value,
            }
    return found


def with_calibrators(network: RewardNetwork, way: str) -> RewardNetwork:
    """A copy of the network with calibrators of another kind, which know nothing yet."""
    other = copy.deepcopy(network)
    other.config.calibration = way
    field = network.config.width if way == "field" else 0
    heads = HEADS[:3] if way != "none" else ()
    other.calibrators = nn.ModuleDict({head: MonotoneCalibrator(field) for head in heads})
    return other


def _fusion(network: RewardNetwork, fit: Outcomes, test: Outcomes, seed: int) -> dict[str, Any]:
    """NDCG@10 of ways to weigh the heads, each as a mean over searches and over users, and paired differences to the
    fixed weights."""
    fixed = choose_weights(fit)
    context = torch.from_numpy(test.context)
    ways: dict[str, NDArray[np.floating[Any]]] = {
        "purchase alone": np.array([0.0, 0.0, 1.0, 0.0]),
        "PARS, equal weights": np.ones(4),
        "fixed, chosen on validation": np.asarray(fixed),
    }
    largest: dict[str, float] = {}
    weights: dict[str, list[float]] = {"fixed, chosen on validation": fixed}
    for name, start, rule in (
        ("policy", fixed, 1.0),
        ("policy from equal weights", [0.25] * 4, 1.0),
        ("policy without the format rule", fixed, 0.0),
    ):
        torch.manual_seed(seed)
        policy = DirichletPolicy(context.shape[1])
        learn_policy(policy, fit, start, seed, replace(GradeSettings(), format=rule))
        with torch.no_grad():
            ways[name] = policy.mean(context).numpy()
        largest[name] = collapse(policy, context)
        weights[name] = [float(one) for one in ways[name].mean(0)]
    told = informative(test)
    draws = Bootstrap(test.user[told], seed=seed)
    values = {name: ndcg_of_lists(test, test.rewards(one)) for name, one in ways.items()}
    best = values["fixed, chosen on validation"]
    return {
        name: {
            "ndcg@10": draws.mean(found).as_dict(),
            "difference": draws.difference(found, best).as_dict(),
            "ndcg@10_user": float(_by_user(found, draws.group).mean()),
            "difference_user": _users(found - best, draws.group, seed).as_dict(),
            **({"weights": weights[name]} if name in weights else {}),
            **({"largest_weight": largest[name]} if name in largest else {}),
        }
        for name, found in values.items()
    }


def _by_user(values: NDArray[np.float64], user: NDArray[np.int64]) -> NDArray[np.float64]:
    """(U,) mean of each user."""
    return np.bincount(user, values) / np.bincount(user)


def _users(values: NDArray[np.float64], user: NDArray[np.int64], seed: int) -> Estimate:
    """The mean of users' means."""
    means = _by_user(values, user)
    return Bootstrap(np.arange(len(means)), seed=seed).mean(means)


def _levels(test: Outcomes) -> dict[str, Any]:
    """How many rows of each PARS level there are, and what is expected of them."""
    found = {}
    for level in LEVELS:
        chosen = test.there & np.isclose(test.levels, level)
        if chosen.any():
            means = {head: float(test.probabilities[..., place][chosen].mean()) for place, head in enumerate(HEADS)}
            found[str(level)] = {"rows": int(chosen.sum()), **means}
    return found


def tables(report: dict[str, Any]) -> list[Table]:
    """The report for people."""
    order = Table("head", "rate", "AUC", "gAUC by search", "gAUC by user", box=SIMPLE_HEAD)
    for head, its in report["order"].items():
        order.add_row(head, f"{its['rate']:.4f}", *(_spelt(its[name]) for name in ("auc", "gauc_query", "gauc_user")))
    truth = Table("calibration", "head", "ECE", "field-ECE", "PCOC", "AUC", box=SIMPLE_HEAD)
    for way, heads in report["calibration"].items():
        for head, its in heads.items():
            truth.add_row(way, head, *(_spelt(its[name]) for name in ("ece", "field_ece", "pcoc")), f"{its['auc']:.6f}")
    fusion = Table("weights of the heads", "NDCG@10", "less fixed", "by user", "less fixed", "largest", box=SIMPLE_HEAD)
    for name, its in report["fusion"].items():
        largest = f"{its['largest_weight']:.3f}" if "largest_weight" in its else ""
        by_user = (f"{its['ndcg@10_user']:.4f}", _spelt(its["difference_user"]))
        fusion.add_row(name, _spelt(its["ndcg@10"]), _spelt(its["difference"]), *by_user, largest)
    levels = Table("level", "rows", *HEADS, box=SIMPLE_HEAD)
    for level, its in report["levels"].items():
        levels.add_row(level, f"{its['rows']:,}", *(f"{its[head]:.4f}" for head in HEADS))
    return [order, truth, fusion, levels]


def _spelt(its: dict[str, float]) -> str:
    return f"{its['mean']:.4f} ({its['low']:.4f} to {its['high']:.4f})"


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="run folder with a reward model")
    parser.add_argument("--stage", default="reward", help="which model of the run")
    parser.add_argument("--requests", type=int, default=4000, help="test searches at most")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    given = parser.parse_args(arguments)
    try:
        report = evaluate(Run.open(given.run), given.stage, given.requests)
    except UserError as error:
        raise SystemExit(fail(error)) from None
    if given.json:
        sys.stdout.write(json.dumps(report) + "\n")
        return
    for table in tables(report):
        Console(width=140).print(table)


if __name__ == "__main__":
    main()
