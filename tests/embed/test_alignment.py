"""The map over frozen vectors: it changes nothing before it learns, keeps unit rows, and comes back as it was saved."""

from pathlib import Path

import numpy as np
import pytest
import torch

from onesearch.embed.alignment import Alignment, Projection
from onesearch.embed.text import unit_rows
from onesearch.errors import UserError


def some_vectors(count: int = 50, width: int = 12) -> np.ndarray:
    return unit_rows(np.random.default_rng(0).standard_normal((count, width)).astype(np.float32))


def learnt(width: int = 12, dimension: int = 8) -> Alignment:
    """A map whose residual part does something."""
    projection = Projection(width, dimension, hidden=16, seed=1)
    torch.nn.init.normal_(projection.outward, generator=torch.Generator().manual_seed(2))
    return Alignment(projection, "words")


def test_a_new_map_of_the_same_width_changes_nothing() -> None:
    vectors = some_vectors()
    np.testing.assert_allclose(Alignment(Projection(12, 12, 16), "words").apply(vectors), vectors, atol=1e-6)


def test_a_new_narrower_map_is_a_rotation_cut_off() -> None:
    linear = Projection(12, 5, 16, seed=3).linear
    torch.testing.assert_close(linear.T @ linear, torch.eye(5), atol=1e-5, rtol=0)


def test_rows_have_unit_length_and_zeros_stay_zero() -> None:
    vectors = some_vectors()
    vectors[7] = 0
    aligned = learnt().apply(vectors)
    assert aligned.shape == (50, 8) and aligned.dtype == np.float32
    assert (aligned[7] == 0).all()
    np.testing.assert_allclose(np.linalg.norm(np.delete(aligned, 7, axis=0), axis=1), 1, atol=1e-6)


def test_what_is_applied_is_what_was_learnt() -> None:
    alignment, vectors = learnt(), some_vectors()
    expected = alignment.projection(torch.from_numpy(vectors)).detach().numpy()
    np.testing.assert_allclose(alignment.apply(vectors), expected, atol=1e-5)


def test_by_hand() -> None:
    projection = Projection(2, 2, hidden=1)
    with torch.no_grad():
        projection.inward.copy_(torch.tensor([[1.0], [0.0]]))
        projection.outward.copy_(torch.tensor([[0.0, 1.0]]))
    # (1, 0) -> (1, 0) + gelu(1) (0, 1), and gelu(1) = 1 * Phi(1) = 0.841345
    found = Alignment(projection, "words").apply(np.array([[1.0, 0.0]]))
    np.testing.assert_allclose(found, [np.array([1, 0.841345]) / np.hypot(1, 0.841345)], atol=1e-6)


def test_a_row_does_not_depend_on_the_others() -> None:
    alignment, vectors = learnt(), some_vectors(300)
    whole = alignment.apply(vectors)
    np.testing.assert_array_equal(np.concatenate([alignment.apply(vectors[n : n + 1]) for n in range(300)]), whole)
    np.testing.assert_array_equal(alignment.apply(vectors[::-1])[::-1], whole)


def test_it_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    alignment, vectors = learnt(), some_vectors()
    alignment.save(tmp_path)
    loaded = Alignment.load(tmp_path)
    assert loaded.encoder == "words"
    np.testing.assert_array_equal(loaded.apply(vectors), alignment.apply(vectors))
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_vectors_of_another_encoder_are_refused() -> None:
    with pytest.raises(UserError, match=r"takes vectors of width 12.*\(50, 9\).*encoder 'words'"):
        learnt().apply(some_vectors(width=9))


def test_damage_and_other_versions_are_told(tmp_path: Path) -> None:
    learnt().save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"unreadable weights.*align again"):
        Alignment.load(tmp_path)
    (tmp_path / "config.json").write_text('{"version": 99}')
    with pytest.raises(UserError, match="no alignment of this version"):
        Alignment.load(tmp_path)


@pytest.mark.parametrize("dimension", [0, 13])
def test_a_width_that_cannot_be_is_refused(dimension: int) -> None:
    with pytest.raises(UserError, match=r"cannot be that wide.*use 1 to 12"):
        Projection(12, dimension, 4)
