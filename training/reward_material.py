"""What a reward model learns from, and a network that has seen nothing yet."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from onesearch.context.batch import ContextBuilder
from onesearch.context.views import ViewSettings
from onesearch.corpus import TRAIN, VALID, Corpus, make_split
from onesearch.corpus.split import late
from onesearch.embed import load_text_encoder
from onesearch.errors import UserError
from onesearch.reward.features import TEXT, RewardFeatures
from onesearch.reward.levels import Interactions
from onesearch.reward.model import RewardConfig, RewardNetwork
from onesearch.run import Run
from onesearch.sid import SidTable
from training.beams import generated
from training.lists import DRAWN, CandidateLists, Ints, has_impressions, learnt_events
from training.reward_batches import Judged, RewardBatches
from training.reward_options import RewardArguments

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Material:
    """What a training learns from: `events` (n,) and `held_out` events, half of whose users are for fitting."""

    run: Run
    corpus: Corpus
    split: NDArray[np.int8]
    batches: Any  # `RewardBatches`, or batches that were kept
    events: Ints
    fit: Ints
    check: Ints

    @property
    def features(self) -> RewardFeatures:
        found: RewardFeatures = self.batches.features
        return found


def gather(options: RewardArguments, seed: int) -> Material:
    """Read the run and fit what a request is read with.

    Raises:
        UserError: the log has nothing to learn from or to check with.
    """
    run = Run.open(options.run)
    corpus, table = Corpus.load(run.folder / "corpus"), SidTable.load(run.folder / "sid")
    split = make_split(corpus, run.settings.split)
    training, learnt = split == TRAIN, late(corpus, split, options.recent)
    all_events = learnt_events(corpus)
    events = sampled(all_events[(training & learnt)[all_events]], options.requests, seed)
    held_out = sampled(all_events[split[all_events] == VALID], options.valid_requests, seed)
    if not len(held_out):
        raise UserError("no validation requests", place=run.folder / "corpus", remedy="the log needs more events")
    # What a request is read with comes from the events before those to learn from, of every kind.
    before = np.flatnonzero(training & ~learnt)
    log.info("preparing %s training requests", f"{len(events):,}")
    reads = ViewSettings(views=tuple(options.views))
    encoder = load_text_encoder(run.settings.encoder)
    builder = ContextBuilder.fit(
        corpus, split, before, encoder, table.codes, options.slots, seed, reads, positions=None, run=run
    )
    interactions = Interactions.of(corpus)
    shows = has_impressions(corpus)
    numbers = options.numbers()
    if shows:  # the shown rows are the data; unexposed ones only where they are asked for
        numbers = dict.fromkeys(DRAWN, 0) | {"random": options.random}
    beams = None
    if numbers["beam"]:
        asked = np.concatenate([sampled(events, options.beam_requests, seed), held_out])
        beams = generated(run, corpus, asked, options.beam, options.generator)
    lists = CandidateLists(corpus, training, interactions, numbers, options.shown, seed, beams)
    judged = Judged.of(corpus, lists.width)
    batches = RewardBatches(RewardFeatures.of(builder), lists, interactions, judged, np.concatenate([events, held_out]))
    first = corpus.user[held_out] % 2 == 0
    fit, check = held_out[first], held_out[~first]
    if not len(fit) or not len(check):
        fit = check = held_out
    return Material(run, corpus, split, batches, events, fit, check)


def new_network(options: RewardArguments, material: Material, items: torch.Tensor | None) -> RewardNetwork:
    """A network that has seen nothing but pretrained items (N, W), where there are any."""
    features = material.features
    table = SidTable.load(material.run.folder / "sid")
    count = {"none": 0}.get(options.items, len(features.price))
    config = RewardConfig(
        width=options.width,
        heads=options.heads,
        dropout=options.dropout,
        text_vocabulary=len(features.builder.tokenizer),
        level_sizes=list(table.level_sizes),
        query=features.builder.selector.texts.vectors.shape[1],
        taste=2 * features.builder.selector.taste.shape[1],
        content=features.item_content.shape[1],
        slot_features=features.builder.slot_features,
        cross=features.crossed,
        text=len(TEXT),
        items=count,
        item_width=options.item_width if items is None else items.shape[1],
        frozen=options.frozen and items is not None,
        views=features.builder.views.sizes() or None,
        listwise=options.listwise,
        relevance=options.relevance,
        calibration=options.calibration,
        policy=options.policy,
    )
    network = RewardNetwork(config)
    if items is not None and network.own is not None:
        with torch.no_grad():
            network.own.weight.copy_(items)
    sample = material.batches([*map(int, sampled(material.events, 2000, 0))])
    there = sample["items"] >= 0
    cross = sample["cross"][there]
    network.cross_mean.copy_(cross.mean(0))
    network.cross_scale.copy_(cross.std(0).clamp(min=1e-2))
    for part in (network.calibrators, network.policy):
        if part is not None:  # fitted after the towers, which they do not change
            part.requires_grad_(False)
    return network.bind(torch.from_numpy(features.item_content), torch.from_numpy(features.builder.codes))


def pretrained_items(options: RewardArguments, material: Material) -> torch.Tensor | None:
    """(N, W) embeddings that `training/pretrain.py` wrote; None where none are asked for.

    Raises:
        UserError: there are none, or those of another catalogue.
    """
    if options.items != "pretrained":
        return None
    path = material.run.folder / "models" / options.item_stage / "items.safetensors"
    if not path.exists():
        remedy = f"accelerate launch training/pretrain.py --run {material.run.folder} --stage {options.item_stage}"
        raise UserError("no pretrained items", place=path, remedy=remedy)
    found = load_file(path)["items"]
    if len(found) != len(material.corpus.items):
        raise UserError("items of another catalogue", place=path, value=len(found), remedy="pretrain them again")
    return found


def sampled(events: Ints, most: int, seed: int) -> Ints:
    """At most so many of the events, in their order."""
    if len(events) <= most:
        return events
    return np.sort(np.random.default_rng(seed).choice(events, most, replace=False))
