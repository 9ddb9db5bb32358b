import numpy as np
import pytest

from benchmarks.agreement import (
    LEVELS,
    QUANTIZERS,
    SEEDS,
    Pictures,
    compare,
    measures,
    never_held_out,
    principal,
    split,
)


def test_products_are_split_once_and_whole() -> None:
    known, unseen = split(50, seed=3)
    assert (len(known), len(unseen)) == (40, 10)
    assert sorted([*known, *unseen]) == list(range(50))
    assert not np.array_equal(unseen, split(50, seed=4)[1])
    np.testing.assert_array_equal(unseen, split(50, seed=3)[1])


def test_settings_are_chosen_on_products_that_no_seed_holds_out() -> None:
    chosen = never_held_out(100)
    held = [set(split(100, seed)[1]) for seed in SEEDS]
    assert set(chosen) == set(range(100)) - set.union(*held)
    assert 40 <= len(chosen) < 80


def test_a_part_has_its_views_and_new_numbers() -> None:
    vectors = np.eye(6, 3, dtype=np.float32)
    pictures = Pictures(vectors, np.array([0, 0, 1, 2, 2, 2]), np.array([5, 5, 6, 5, 5, 5]))
    part = pictures.of(np.array([0, 2]))
    np.testing.assert_array_equal(part.vectors, vectors[[0, 1, 3, 4, 5]])
    assert part.product.tolist() == [0, 0, 1, 1, 1]
    assert part.category.tolist() == [5] * 5


def test_a_product_is_the_mean_of_its_views_at_unit_length() -> None:
    pictures = Pictures(np.array([[1, 0], [0, 1], [0, 1]], np.float32), np.array([0, 0, 1]), np.zeros(3, np.int64))
    np.testing.assert_allclose(pictures.means(), [[0.5**0.5, 0.5**0.5], [0, 1]], atol=1e-6)


def test_few_directions_keep_what_lies_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.agreement.WIDTH", 2)
    plane = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 2)))[0]
    angles = np.linspace(0, 3, 7)
    vectors = (np.stack([np.cos(angles), np.sin(angles)], axis=1) @ plane.T).astype(np.float32)
    seen = Pictures(vectors, np.arange(7), np.arange(7)).along(principal(vectors)).vectors
    assert seen.shape == (7, 2)
    np.testing.assert_allclose(seen @ seen.T, vectors @ vectors.T, atol=1e-5)


def test_the_measures_by_hand() -> None:
    product, category = np.array([0, 0, 0, 1, 1]), np.array([7, 7, 7, 8, 8])
    views = np.array([[1, 1, 1], [1, 1, 2], [2, 0, 0], [1, 1, 3], [1, 3, 0]], np.int32)
    items = np.array([[1, 1, 2], [1, 1, 0]], np.int32)
    found = measures(Pictures(np.zeros((5, 2), np.float32), product, category), views, items)
    # pairs within: (0,1) (0,2) (1,2) of product 0 and (3,4) of product 1
    assert [found[f"agreement@{level}"] for level in (1, 2, 3)] == [2 / 4, 1 / 4, 0]
    # pairs across, six: 0-3 0-4 1-3 1-4 agree on the first code, 0-3 and 1-3 on two
    assert [found[f"others@{level}"] for level in (1, 2, 3)] == [4 / 6, 2 / 6, 0]
    assert [found[f"lands@{level}"] for level in (1, 2, 3)] == [4 / 5, 3 / 5, 1 / 5]
    assert found["purity@1"] == 1 / 2  # one code for two products of two categories
    assert (found["bits@1"], found["bits@2"]) == (0, 0)  # both products begin with 1, 1
    assert (found["ICR@3"], found["ICR"]) == (1, 1)


def test_levels_of_the_tail_count_for_the_whole_icr_only() -> None:
    items = np.array([[1, 1, 2, 0], [1, 1, 2, 1]], np.int32)
    pictures = Pictures(np.zeros((2, 2), np.float32), np.arange(2), np.full(2, -1))
    found = measures(pictures, items, items)
    assert (found["ICR@3"], found["ICR"]) == (0, 1)
    assert "purity@1" not in found  # no category is known


def test_bits_are_those_of_prefixes() -> None:
    items = np.array([[0, 1, 0], [0, 2, 0], [1, 1, 0], [1, 1, 0]], np.int32)
    pictures = Pictures(items.astype(np.float32), np.arange(4), np.full(4, -1))
    found = measures(pictures, items, items)
    assert (found["bits@1"], found["bits@2"]) == (1, 1.5)


@pytest.mark.slow
def test_all_quantizers_are_compared_on_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.agreement.HELD_OUT", 0.25)
    rng = np.random.default_rng(0)
    product = np.repeat(np.arange(120), 4)
    vectors = rng.standard_normal((120, 16))[product] + 0.3 * rng.standard_normal((480, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    pictures = Pictures(vectors, product, product % 5)
    rows = compare(pictures, seeds=(0,), others={"photos": pictures.of(np.arange(3))})
    assert {row["products"] for row in rows} == {"all", "fitted", "held out", "photos"}
    assert len(rows) == 4 * len(QUANTIZERS)
    for row in rows:
        assert 1 >= row["agreement@1"] >= row["agreement@2"] >= row[f"agreement@{len(LEVELS)}"] >= 0
        assert row["agreement@1"] > row["others@1"]
