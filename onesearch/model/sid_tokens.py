"""Codes of semantic IDs as tokens of a language model: ordinary added tokens, and where their rows start.

They are no special tokens, because those vanish wherever text is decoded with `skip_special_tokens`. The tokens of a
level follow each other, so that a level's logits are one slice of the output layer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from transformers import PreTrainedModel

from onesearch.errors import UserError
from onesearch.ragged import Ragged
from onesearch.sid import SidTable

NewRows = Literal["codebook", "text", "random"]
RIDGE: Final = 1e-2
"""Of the least-squares map from item vectors to embeddings, as a share of the vectors' mean square."""


def add_sid_tokens(tokenizer: Any, table: SidTable) -> tuple[int, ...]:
    """Add the tokens of a SID table to a tokenizer; returns the token of each level's code 0."""
    tokenizer.add_tokens(table.tokens())
    return level_start(tokenizer, table)


def level_start(tokenizer: Any, table: SidTable, place: object = None) -> tuple[int, ...]:
    """The token of each level's code 0.

    Raises:
        UserError: the tokenizer lacks tokens of the table, or has them in another order.
    """
    names = table.tokens()
    known = tokenizer.get_vocab()
    missing = next((name for name in names if name not in known), None)
    remedy = "train again: the tokenizer and the semantic IDs belong together"
    if missing is not None:
        raise UserError("a tokenizer without the SID tokens, the first", place=place, value=missing, remedy=remedy)
    ids = np.array([known[name] for name in names])
    edges = np.cumsum([0, *table.level_sizes])
    for level, (start, end) in enumerate(pairwise(edges.tolist())):
        if (np.diff(ids[start:end]) != 1).any():
            raise UserError(f"the SID tokens of level {level} are not in order", place=place, remedy=remedy)
    return tuple(int(ids[start]) for start in edges[:-1])


def fingerprint(table: SidTable, items: int) -> str:
    """SHA-256 of what the first `items` items' semantic IDs are; items that come later do not change it."""
    codes = np.ascontiguousarray(table.codes[:items], np.int32)
    return hashlib.sha256(repr(tuple(table.level_sizes)).encode() + codes.tobytes()).hexdigest()


def embedding_tables(model: PreTrainedModel) -> list[Tensor]:
    """Every (V, H) table that has a row for each token, tied ones once: of the input, of the decoder, of the output."""
    parts = [
        getattr(model, name)
        for name in ("encoder", "decoder")
        if isinstance(getattr(model, name, None), PreTrainedModel)
    ]
    modules = [
        found
        for part in (model, *parts)
        for found in (part.get_input_embeddings(), part.get_output_embeddings())
        if found is not None
    ]
    return list({id(module.weight): module.weight for module in modules}.values())


@torch.no_grad()
def start_rows(
    model: PreTrainedModel,
    starts: Sequence[int],
    table: SidTable,
    how: NewRows,
    texts: Ragged,
    vectors: NDArray[np.floating] | None,
    seed: int,
) -> None:
    """Give the rows of the SID tokens values to start from, in every embedding table of the model.

    "text": the mean of the embeddings of the texts of the items with this code. "codebook": the code's centroid, what
    it adds to the shallower ones on average over its items, taken to the embeddings by the least-squares map from item
    vectors to the mean embeddings of the items' texts. "random": normal. Each row gets the length that embeddings of
    the texts' tokens have on average, and a code without items a random row; both are our completion.

    Args:
        texts: the tokens of the N items' texts. vectors: (N, D) of the items; only "codebook" reads them.
    """
    random = np.random.default_rng(seed)
    number, top = len(texts), min(starts)
    word = sparse.csr_array(
        (np.repeat(1 / np.maximum(texts.lengths, 1), texts.lengths), texts.ids, texts.offsets), (number, top)
    )
    used = np.unique(texts.ids)
    for weight in embedding_tables(model):
        embedding = weight[:top].float().numpy()
        length = float(np.linalg.norm(embedding[used], axis=1).mean()) if len(used) else 1.0
        said = word @ embedding
        centre = said.mean(0)
        source = said - centre
        mapping = None
        if how == "codebook" and vectors is not None:
            source = np.asarray(vectors, np.float32) - np.asarray(vectors, np.float32).mean(0)
            gram = source.T @ source
            ridge = RIDGE * float(np.trace(gram)) / len(gram)
            mapping = np.linalg.solve(gram + ridge * np.eye(len(gram), dtype=np.float32), source.T @ (said - centre))
        for level, (first, size) in enumerate(zip(starts, table.level_sizes, strict=True)):
            rows = random.standard_normal((size, embedding.shape[1])).astype(np.float32)
            rows *= length / np.linalg.norm(rows, axis=1, keepdims=True)
            if how != "random":
                code = table.codes[:, level]
                mean, count = _means(source, code, size)
                if how == "codebook":
                    source = source - mean[code]  # the next level codes what this one leaves over
                    mean = mean if mapping is None else mean @ mapping
                norm = np.linalg.norm(mean, axis=1)
                filled = (count > 0) & (norm > 1e-6 * length)
                rows[filled] = mean[filled] * (length / norm[filled, None])
            weight[first : first + size] = torch.from_numpy(rows).to(weight)


def _means(
    values: NDArray[np.float32], code: NDArray[np.integer], size: int
) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """(M, D) mean of the (N, D) values of each code, and (M,) how many there are."""
    count = np.bincount(code, minlength=size)
    each = sparse.csr_array((np.ones(len(code), np.float32), (code, np.arange(len(code)))), (size, len(code)))
    return (each @ values) / np.maximum(count, 1)[:, None].astype(np.float32), count
