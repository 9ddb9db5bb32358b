"""What every learned quantizer must do; what only one of them does is in its own file."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from quantizers import Quantizer, load_quantizer, reconstruction_error
from quantizers.fsq import FSQ
from quantizers.rq_kmeans_plus import RQKMeansPlus
from quantizers.rq_vae import RQVAE
from quantizers.vrq import VRQ

Make = Callable[[], Quantizer]
ALL: dict[str, Make] = {
    "RQVAE": lambda: RQVAE((8, 8), latent=6, hidden=(16,), steps=60, batch=64, learning_rate=0.02, seed=3),
    "RQVAE, balanced": lambda: RQVAE(
        (8, 8), latent=6, hidden=(), assignment="sinkhorn", steps=60, batch=64, learning_rate=0.02
    ),
    "RQKMeansPlus": lambda: RQKMeansPlus((8, 8), hidden=16, steps=60, batch=64),
    "FSQ": lambda: FSQ(((4, 2), (5,)), hidden=(16,), steps=60, batch=64),
    "VRQ": lambda: VRQ((8, 8, 8)),
    "VRQ, tail": lambda: VRQ((8, 8, 8), tail=(4, 4)),
}
learned = pytest.mark.parametrize("make", ALL.values(), ids=ALL)


def vectors(n: int, width: int = 12, seed: int = 0) -> np.ndarray:
    """Around eight directions, far from zero and of no particular size."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((8, width))[rng.integers(8, size=n)] + 0.3 * rng.standard_normal((n, width))
    return (40 * x + 100).astype(np.float32)


@learned
def test_codes_say_more_than_the_mean_and_more_codes_say_more(make: Make) -> None:
    x = vectors(600)
    quantizer = make().fit(x)
    codes = quantizer.encode(x)
    assert codes.dtype == np.int32
    assert codes.shape == (600, len(quantizer.level_sizes))
    assert ((codes >= 0) & (codes < quantizer.level_sizes)).all()
    decoded = quantizer.decode(codes)
    assert decoded.dtype == np.float32
    assert decoded.shape == x.shape
    first, all_of_them = reconstruction_error(x, quantizer.decode(codes[:, :1])), reconstruction_error(x, decoded)
    assert all_of_them < first < 1


@learned
def test_codes_do_not_depend_on_what_else_is_encoded(make: Make) -> None:
    x = vectors(2100, width=33)
    quantizer = make().fit(x[:500])
    codes = quantizer.encode(x)
    decoded = quantizer.decode(codes)
    for rows in (slice(0, 1), slice(7, 8), slice(1000, 1050), slice(1023, 2100)):
        np.testing.assert_array_equal(quantizer.encode(x[rows]), codes[rows])
        np.testing.assert_array_equal(quantizer.encode(np.asfortranarray(x[rows])), codes[rows])
        np.testing.assert_array_equal(quantizer.decode(codes[rows]), decoded[rows])
    assert quantizer.encode(x[:0]).shape == (0, len(quantizer.level_sizes))


@learned
def test_one_seed_gives_the_same_bits_on_any_number_of_threads(make: Make, tmp_path: Path) -> None:
    x = vectors(600, width=40)
    before, runs = torch.get_num_threads(), []
    for threads in (1, 2, 2):
        torch.manual_seed(threads)  # must not matter, and must not be used up
        drawn = torch.rand(3)
        torch.manual_seed(threads)
        torch.set_num_threads(threads)
        with threadpool_limits(limits=threads):
            quantizer = make().fit(x)
        assert torch.get_num_threads() == threads
        assert torch.equal(torch.rand(3), drawn)
        quantizer.save_pretrained(tmp_path)
        runs.append((tmp_path / "model.safetensors").read_bytes())
    torch.set_num_threads(before)
    assert runs[0] == runs[1] == runs[2]


@learned
def test_saved_and_loaded_it_is_the_same_to_the_bit(make: Make, tmp_path: Path) -> None:
    x = vectors(300)
    quantizer = make().fit(x)
    quantizer.save_pretrained(tmp_path / "q")
    loaded = load_quantizer(tmp_path / "q")
    assert type(loaded) is type(quantizer)
    assert loaded.level_sizes == quantizer.level_sizes
    codes = quantizer.encode(x)
    np.testing.assert_array_equal(loaded.encode(x), codes)
    np.testing.assert_array_equal(loaded.decode(codes), quantizer.decode(codes))
    loaded.save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "q" / name).read_bytes()
    np.testing.assert_array_equal(loaded.fit(x).encode(x), codes)


@learned
def test_a_folder_that_does_not_fit_itself_is_told(make: Make, tmp_path: Path) -> None:
    make().fit(vectors(100)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name, value in (("width", 13), ("seed", None), ("level_sizes", [9]), ("scalars", [[2]])):
        if name in config:
            (tmp_path / "config.json").write_text(json.dumps({**config, name: value}))
            with pytest.raises(ValueError, match=f"not a saved {config['class']}"):
                load_quantizer(tmp_path)


@learned
@pytest.mark.parametrize(("distinct", "copies"), [(1, 1), (1, 50), (2, 1), (3, 40)])
def test_few_or_repeated_vectors(make: Make, distinct: int, copies: int) -> None:
    x = np.repeat(vectors(distinct), copies, axis=0)
    quantizer = make().fit(x)
    codes = quantizer.encode(x)
    decoded = quantizer.decode(codes)
    assert np.isfinite(decoded).all()
    np.testing.assert_array_equal(codes, np.repeat(codes[::copies], copies, axis=0))
    if distinct == 1:
        np.testing.assert_allclose(decoded, x, rtol=1e-2)
        loose = quantizer.encode(x + 1e4)
        assert np.isfinite(quantizer.decode(loose)).all()


@learned
def test_broken_input_is_named(make: Make) -> None:
    x = vectors(17_500)
    quantizer = make().fit(x[:100])
    for broken in (np.nan, np.inf, 1e30):
        bad = x.copy()
        bad[17_003, 5] = broken
        with pytest.raises(ValueError, match="row 17003 "):
            quantizer.encode(bad)
        with pytest.raises(ValueError, match="row 17003 "):
            make().fit(bad)
    with pytest.raises(ValueError, match=r"shape \(N, 12\)"):
        quantizer.encode(vectors(3, width=5))
    with pytest.raises(ValueError, match="nothing to fit on"):
        make().fit(np.zeros((0, 4), np.float32))
    for unfitted in (lambda: make().encode(x), lambda: make().decode(np.zeros((1, 2), int))):
        with pytest.raises(ValueError, match="call fit first"):
            unfitted()
    size, levels = quantizer.level_sizes[1], len(quantizer.level_sizes)
    with pytest.raises(ValueError, match=f"row 1: code {size} of level 1"):
        quantizer.decode(np.array([[0, 0], [0, size]]))
    with pytest.raises(ValueError, match="shape"):
        quantizer.decode(np.zeros((1, levels + 1), int))


@learned
def test_a_memory_map_is_the_same(make: Make, tmp_path: Path) -> None:
    x = vectors(700)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    quantizer = make().fit(mapped)
    np.testing.assert_array_equal(quantizer.encode(mapped), make().fit(x).encode(x))


def test_settings_are_checked_before_any_data_is_seen() -> None:
    wrong: list[tuple[str, Callable[[], Quantizer]]] = [
        ("level_sizes", lambda: RQVAE(())),
        ("level_sizes", lambda: RQKMeansPlus((4, 0))),
        ("hidden", lambda: RQVAE(hidden=(0,))),
        ("learning_rate", lambda: RQVAE(learning_rate=0.0)),
        ("assignment", lambda: RQVAE(assignment="optimal")),
        ("batch", lambda: RQKMeansPlus(batch=0)),
        ("scalars", lambda: FSQ(((8, 1),))),
        ("scalars", lambda: FSQ(((8,), ()))),
        ("shallow", lambda: VRQ((8, 8), shallow=3)),
        ("tail", lambda: VRQ(tail=(16, 8))),
    ]
    for told, make in wrong:
        with pytest.raises(ValueError, match=told):
            make()
