"""The project's own generator, with the context builder that it was trained with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate.utils import send_to_device
from numpy.typing import NDArray

from onesearch.context.batch import ContextBuilder
from onesearch.corpus import Corpus, Requests, make_split
from onesearch.corpus.offers import Offers
from onesearch.embed import load_text_encoder
from onesearch.model import Generator
from onesearch.model.catalogue import Catalogue
from onesearch.model.karma import TEMPERATURE
from onesearch.model.saved import read_whole
from onesearch.prefix import PrefixIndex
from onesearch.run import Run
from onesearch.search import GeneratorScorer
from onesearch.search.interest import InterestIndex
from onesearch.sid import SidTable


class GeneratorReader:
    """A `Generator`, bound to the items on sale."""

    interest = None

    def __init__(self, table: SidTable, builder: ContextBuilder, model: Generator) -> None:
        self.builder = builder
        self.model = model.bind(on_sale(table, builder)).eval()
        self.interest = None if model.interest is None else _interest_index(self.model)

    @classmethod
    def load(cls, run: Run, folder: Path, corpus: Corpus, table: SidTable) -> GeneratorReader:
        """Read what `training/sft.py` wrote."""
        transformers.utils.logging.disable_progress_bar()  # loading takes milliseconds
        encoder, split = load_text_encoder(run.settings.encoder), make_split(corpus, run.settings.split)
        builder = ContextBuilder.load(corpus, split, encoder, table.codes, folder, run)
        return cls(table, builder, read_whole(Generator, folder))

    @property
    def offers(self) -> Offers:
        return self.builder.offers

    @property
    def index(self) -> PrefixIndex:
        return self.model.bound.index

    @property
    def device(self) -> torch.device:
        return self.model.device

    def read(self, requests: Requests) -> GeneratorScorer:
        inputs, _ = self.builder.inputs(requests)
        return GeneratorScorer(self.model, self.model.read(**send_to_device(inputs, self.device)))

    def given(self, requests: Requests) -> NDArray[np.int64]:
        return self.builder.inputs(requests)[1].event


@torch.inference_mode()
def _interest_index(model: Generator) -> InterestIndex:
    index = model.bound.index
    leaves = torch.arange(len(index.below[-1]) - 1, device=model.device).repeat_interleave(index.below[-1].diff())
    scale, share = 1 / TEMPERATURE, model.config.interest_share
    return InterestIndex(model.leaf_vectors(model.bound, leaves), index.items.long(), scale, share)


def on_sale(table: SidTable, builder: ContextBuilder) -> Catalogue:
    """What is generated from: the items that were not removed. The others stay in histories and in the counts."""
    rows = table.on_sale
    index = PrefixIndex.build(table.codes[rows], table.order[rows])
    return builder.catalogue(replace(index, items=torch.from_numpy(rows)[index.items]))
