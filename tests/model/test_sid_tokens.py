"""SID tokens: ordinary, in order, and starting from what their codes mean."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from tiny_backbones import FAMILIES, new_model, tokenizer

from onesearch.errors import UserError
from onesearch.model.backbone import make_room
from onesearch.model.sid_tokens import add_sid_tokens, embedding_tables, fingerprint, level_start, start_rows
from onesearch.ragged import Ragged
from onesearch.sid import SidTable

SIZES = (3, 2)
CODES = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.int32)
TABLE = SidTable(pl.Series(["w", "x", "y", "z"]), CODES, SIZES, np.arange(4, dtype=np.int32))
TEXTS = Ragged.of([[3, 4], [3], [5, 6], [6]])


def test_the_tokens_are_ordinary_and_in_order() -> None:
    known = tokenizer()
    size = len(known)
    assert add_sid_tokens(known, TABLE) == (size, size + 3)
    ids = known("cold <a_2><b_1>").input_ids
    assert ids[1:] == [size + 2, size + 4]
    assert "<a_2>" in known.decode(ids, skip_special_tokens=True), "special ones would vanish"
    assert add_sid_tokens(known, TABLE) == (size, size + 3), "added once"


def test_a_tokenizer_without_the_tokens_or_with_them_out_of_order_is_told() -> None:
    with pytest.raises(UserError, match=r"here: a tokenizer without the SID tokens, the first: '<a_0>'"):
        level_start(tokenizer(), TABLE, "here")
    mixed = tokenizer()
    mixed.add_tokens(["<a_1>", "<a_0>", "<a_2>", "<b_0>", "<b_1>"])
    with pytest.raises(UserError, match="level 0 are not in order"):
        level_start(mixed, TABLE)


def test_the_fingerprint_knows_other_codes_and_not_later_items() -> None:
    grown = SidTable(
        pl.Series(["w", "x", "y", "z", "new"]), np.vstack([CODES, [[2, 0]]]).astype(np.int32), SIZES,
        np.arange(5, dtype=np.int32),
    )  # fmt: skip
    assert fingerprint(grown, 4) == fingerprint(TABLE, 4)
    other = replace(TABLE, codes=CODES[::-1])
    assert fingerprint(other, 4) != fingerprint(TABLE, 4)


def test_rows_start_from_the_texts_of_their_items() -> None:
    model = new_model("llama")
    first = len(model.get_input_embeddings().weight)
    make_room(model, first + 5)
    before = model.get_input_embeddings().weight[:first].detach().clone()
    start_rows(model, (first, first + 3), TABLE, "text", TEXTS, None, 0)
    weight = model.get_input_embeddings().weight.detach()
    assert torch.equal(weight[:first], before)
    said = torch.stack([before[row].mean(0) for row in TEXTS.rows()])
    length = before[[3, 4, 5, 6]].norm(dim=1).mean()
    expected = (said[0] + said[1]) / 2 - said.mean(0)
    torch.testing.assert_close(weight[first], expected / expected.norm() * length)
    torch.testing.assert_close(weight[first + 3], -weight[first + 4], msg="two codes lie on both sides of the mean")
    torch.testing.assert_close(weight[first : first + 5].norm(dim=1), length.expand(5))


def test_rows_start_from_the_codebook() -> None:
    """Where vectors are a linear picture of the embeddings, the map takes a centroid to what it stands for."""
    model = new_model("llama")
    first = len(model.get_input_embeddings().weight)
    make_room(model, first + 5)
    embedding = model.get_input_embeddings().weight[:first].detach()
    said = torch.stack([embedding[row].mean(0) for row in TEXTS.rows()])
    turn = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))[0]
    start_rows(model, (first, first + 3), TABLE, "codebook", TEXTS, (said @ turn).numpy(), 0)
    weight = model.get_input_embeddings().weight.detach()
    centroid = (said[0] + said[1]) / 2 - said.mean(0)
    residual = said - said.mean(0) - torch.stack([centroid, centroid, -centroid, -centroid])
    for row, expected in ((first, centroid), (first + 3, (residual[0] + residual[2]) / 2)):
        assert torch.cosine_similarity(weight[row], expected, dim=0) > 0.97


@pytest.mark.parametrize("family", FAMILIES)
def test_every_table_of_a_model_gets_rows(family: str) -> None:
    model = new_model(family)
    first = len(model.get_input_embeddings().weight)
    make_room(model, first + 5)
    start_rows(model, (first, first + 3), TABLE, "random", TEXTS, None, 0)
    tables = embedding_tables(model)
    assert len(tables) == (2 if family == "llama-untied" else 1)
    for weight in tables:
        norm = weight[first:].norm(dim=1)
        assert len(norm) == 5 and (norm > 0.5 * weight[:first].norm(dim=1).mean()).all()
