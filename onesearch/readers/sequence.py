"""The causal model of histories, with the content vectors that it was trained with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch.nn import functional as F

from onesearch.context.sequence import ItemContent, SequenceBuilder
from onesearch.corpus import Corpus, Requests, item_texts
from onesearch.embed import load_text_encoder
from onesearch.embed.recipe import Recipe
from onesearch.model.item_tree import ItemTree
from onesearch.model.saved import read_whole
from onesearch.model.seen import once
from onesearch.model.sequence import SequenceGenerator
from onesearch.prefix import PrefixIndex
from onesearch.run import Run
from onesearch.search.interest import InterestIndex
from onesearch.search.sequence_scorer import SequenceKeys, SequenceScorer
from onesearch.sid import SidTable


class SequenceReader:
    """A `SequenceGenerator`, bound to the items on sale."""

    offers = None

    def __init__(
        self, table: SidTable, builder: SequenceBuilder, content: ItemContent, model: SequenceGenerator
    ) -> None:
        self.builder = builder
        rows = table.on_sale
        self.model = model.bind(item_tree(table, content, rows)).eval()
        self.keys = SequenceKeys.of(self.model)
        self.interest: InterestIndex | None = None
        if model.interest is not None:
            on_sale = torch.from_numpy(rows).to(model.device)
            vectors = F.normalize(self.keys.items[on_sale].float(), dim=-1)
            self.interest = InterestIndex(vectors, on_sale, model.scale, model.config.interest_share)

    @classmethod
    def load(cls, run: Run, folder: Path, corpus: Corpus, table: SidTable) -> SequenceReader:
        """Read what `training/sequence.py` wrote; items that came later are described by their texts."""
        transformers.utils.logging.disable_progress_bar()  # loading takes milliseconds
        model = read_whole(SequenceGenerator, folder)
        content = ItemContent.load(folder)
        if (known := len(content.vectors)) < len(corpus.items):
            recipe = Recipe.load(run.folder / "sid/recipe")
            new = np.load(run.folder / "embeddings/vectors.npy", mmap_mode="r")[known:]
            content = content.with_items(recipe.of_items(new, item_texts(corpus)[known:]))
        encoder = load_text_encoder(run.settings.encoder) if model.config.query else None
        return cls(table, SequenceBuilder(corpus, model.config.positions, encoder), content, model)

    @property
    def index(self) -> PrefixIndex:
        return self.model.bound.index

    @property
    def device(self) -> torch.device:
        return self.model.device

    def read(self, requests: Requests) -> SequenceScorer:
        items, queries, last = self.builder.inputs(requests)
        device = self.device
        with torch.inference_mode():
            asked = None if queries is None else queries.to(device)
            states = self.model.read(items.to(device), self.keys.items, asked)
        seen = once(items).to(device)
        return SequenceScorer(self.model, self.keys, states[torch.arange(len(last)), last], seen)

    def given(self, requests: Requests) -> NDArray[np.int64]:
        return self.builder.given(requests)


def item_tree(table: SidTable, content: ItemContent, rows: NDArray[np.int64]) -> ItemTree:
    """What is generated from: the items `rows`. The others stay in histories."""
    index = PrefixIndex.build(table.codes[rows], table.order[rows])
    if len(rows) < len(table.codes):
        items = torch.from_numpy(rows)[index.items.long()]
        index = PrefixIndex(items, index.code, index.child, index.below, index.widest)
    return ItemTree.build(index, torch.from_numpy(table.codes), torch.from_numpy(content.vectors))
