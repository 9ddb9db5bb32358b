import json
import tracemalloc
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from quantizers import ResidualKMeans, load_quantizer, reconstruction_error
from quantizers.balance import capacity_of
from quantizers.residual_kmeans import POINTS_PER_CENTROID


def vectors(n: int, width: int = 12, seed: int = 0) -> np.ndarray:
    """Unit vectors around eight directions."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((8, width))[rng.integers(8, size=n)] + 0.3 * rng.standard_normal((n, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("normalize", [False, True])
def test_each_level_takes_the_nearest_centroid_of_what_is_left(normalize: bool) -> None:
    x = vectors(500)
    quantizer = ResidualKMeans((8, 8, 8), normalize_residuals=normalize).fit(x)
    codes = quantizer.encode(x)
    residual = x.astype(np.float64)
    for level, codebook in enumerate(quantizer.codebooks):
        if level and normalize:
            residual /= np.linalg.norm(residual, axis=1, keepdims=True)
        np.testing.assert_array_equal(
            codes[:, level], np.square(residual[:, None] - codebook).sum(axis=2).argmin(axis=1)
        )
        residual = residual - codebook[codes[:, level]]
    if not normalize:
        np.testing.assert_allclose(x - quantizer.decode(codes), residual, atol=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_more_levels_lose_less(normalize: bool) -> None:
    x = vectors(2000)
    quantizer = ResidualKMeans((16, 16, 16), normalize_residuals=normalize).fit(x)
    codes = quantizer.encode(x)
    lost = [reconstruction_error(x, quantizer.decode(codes[:, :levels])) for levels in (1, 2, 3)]
    assert 0.5 > lost[0] > lost[1] > lost[2] > 0


def test_a_first_level_vector_is_its_own_nearest() -> None:
    quantizer = ResidualKMeans((16,)).fit(vectors(400))
    codes = np.arange(16, dtype=np.int32)[:, None]
    np.testing.assert_array_equal(quantizer.encode(quantizer.decode(codes)), codes)


def test_one_seed_gives_the_same_codes_on_any_number_of_threads() -> None:
    x = np.tile(np.random.default_rng(0).standard_normal((3000, 256)), (2, 1)).astype(np.float32)  # every bit matters
    runs, threads_before = [], faiss.omp_get_max_threads()
    for threads in (1, 2, 2):
        with threadpool_limits(limits=threads):
            faiss.omp_set_num_threads(threads)
            runs.append(ResidualKMeans((256,), seed=3).fit(x).encode(x))
            assert faiss.omp_get_max_threads() == threads
    faiss.omp_set_num_threads(threads_before)
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[1], runs[2])
    assert (ResidualKMeans((256,), seed=1).fit(x).encode(x) != runs[0]).any()


@pytest.mark.parametrize("normalize", [False, True])
def test_a_memory_map_is_read_in_blocks_and_sampled(tmp_path: Path, normalize: bool) -> None:
    x = vectors(40_000, width=4)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert len(x) > POINTS_PER_CENTROID * 16
    quantizer = ResidualKMeans((16, 16), normalize_residuals=normalize).fit(mapped)
    codes = quantizer.encode(mapped)
    some = np.arange(0, len(x), 997)
    np.testing.assert_array_equal(codes[some], quantizer.encode(x[some]))
    np.testing.assert_array_equal(ResidualKMeans((16, 16), normalize_residuals=normalize).fit(x).encode(x), codes)


@settings(max_examples=25, deadline=None)
@given(distinct=st.integers(1, 40), copies=st.integers(1, 30), size=st.integers(1, 24))
def test_few_or_repeated_vectors(distinct: int, copies: int, size: int) -> None:
    x = np.repeat(vectors(distinct), copies, axis=0)
    quantizer = ResidualKMeans((size, size)).fit(x)
    codes = quantizer.encode(x)
    decoded = quantizer.decode(codes)  # raises for a code without a centroid
    assert quantizer.level_sizes == (size, size)
    assert (codes < size).all()
    assert all(len(codebook) == size for codebook in quantizer.codebooks)
    if distinct <= size:  # every vector is its own centroid
        np.testing.assert_allclose(decoded, x, atol=1e-6)
        assert len(np.unique(codes[:, 0])) == len(np.unique(x, axis=0))
    np.testing.assert_array_equal(codes, np.repeat(codes[::copies], copies, axis=0))


@pytest.mark.parametrize("broken", [np.nan, np.inf, 1e30])
def test_a_vector_that_is_not_finite_is_named(broken: float) -> None:
    x = vectors(20_000)
    quantizer = ResidualKMeans((4,)).fit(x[:100])
    x[17_003, 5] = broken
    with pytest.raises(ValueError, match="row 17003 "):
        quantizer.encode(x)
    with pytest.raises(ValueError, match="row 17003 "):
        ResidualKMeans((4,)).fit(x)


def test_what_makes_no_sense_is_refused() -> None:
    quantizer = ResidualKMeans((8, 8)).fit(vectors(3))
    with pytest.raises(ValueError, match="row 1: code 3 of level 0 has no centroid"):
        quantizer.decode(np.array([[2, 0], [3, 0]]))
    with pytest.raises(ValueError, match="shape"):
        quantizer.encode(vectors(3, width=5))
    with pytest.raises(ValueError, match="nothing to fit on"):
        ResidualKMeans((8,)).fit(np.zeros((0, 4), np.float32))
    with pytest.raises(ValueError, match="call fit first"):
        ResidualKMeans((8,)).encode(vectors(3))
    for sizes in ((), (4, 0)):
        with pytest.raises(ValueError, match="level_sizes"):
            ResidualKMeans(sizes)


@pytest.mark.parametrize("normalize", [False, True])
def test_saved_and_loaded_it_is_the_same_to_the_bit(tmp_path: Path, normalize: bool) -> None:
    x = vectors(300)
    quantizer = ResidualKMeans((8, 512), normalize_residuals=normalize, iterations=7, seed=3).fit(x)
    quantizer.save_pretrained(tmp_path / "q")
    assert sorted(path.name for path in (tmp_path / "q").iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_quantizer(tmp_path / "q")
    assert isinstance(loaded, ResidualKMeans)
    settings_of = [
        (q.level_sizes, q.normalize_residuals, q.iterations, q.seed, q.used_sizes) for q in (quantizer, loaded)
    ]
    assert settings_of[0] == settings_of[1]
    np.testing.assert_array_equal(loaded.encode(x), quantizer.encode(x))
    np.testing.assert_array_equal(loaded.decode(loaded.encode(x)), quantizer.decode(quantizer.encode(x)))


def test_a_damaged_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_quantizer(tmp_path)
    ResidualKMeans((4,)).fit(vectors(30)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    damages = {"unknown class": {"class": "os.system"}, "different quantizers": {"level_sizes": [5]}}
    for told, change in damages.items():
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=told):
            load_quantizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"\x08")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_quantizer(tmp_path)


KHQE = {"tail": (16, 16), "balance": "last"}


@pytest.mark.parametrize("balance", ["last", "all"])
@pytest.mark.parametrize("slack", [1.0, 1.1])
def test_a_whole_catalogue_is_assigned_within_capacities(balance: str, slack: float) -> None:
    x = vectors(5000)
    quantizer = ResidualKMeans((8, 8, 16), tail=(8, 8), balance=balance, slack=slack).fit(x)
    alone, together = quantizer.encode(x), quantizer.assign(x)
    for level, size in enumerate((8, 8, 16)):
        most = np.bincount(together[:, level]).max()
        if balance == "all" or level == 2:
            assert most <= capacity_of(5000, size, slack)
            assert np.bincount(alone[:, level]).max() < 1.3 * most  # prices do most of it
    errors = [reconstruction_error(x, quantizer.decode(codes)) for codes in (alone, together)]
    assert errors[1] < 1.25 * errors[0]
    np.testing.assert_array_equal(together, quantizer.assign(x))
    if balance == "last":
        np.testing.assert_array_equal(together[:, :2], alone[:, :2])
        stay = together[:, 2] == alone[:, 2]
        assert stay.mean() > 0.9
        np.testing.assert_array_equal(together[stay], alone[stay])


def test_without_capacities_assigning_is_encoding() -> None:
    x = vectors(600)
    quantizer = ResidualKMeans((8, 8)).fit(x)
    np.testing.assert_array_equal(quantizer.assign(x), quantizer.encode(x))


def test_a_vector_is_coded_alone_as_among_others() -> None:
    x = vectors(2000)
    quantizer = ResidualKMeans((16, 16, 16), **KHQE).fit(x)
    codes = quantizer.encode(x)
    assert codes.shape == (2000, 5)
    assert quantizer.level_sizes == (16, 16, 16, 16, 16)
    for row in (0, 7, 1999):
        np.testing.assert_array_equal(quantizer.encode(x[row : row + 1]), codes[row : row + 1])


@pytest.mark.parametrize("balance", ["none", "last", "all", "per_prefix", "per_code"])
@pytest.mark.parametrize("normalize", [False, True])
def test_every_kind_is_saved_and_loaded(tmp_path: Path, balance: str, normalize: bool) -> None:
    x = vectors(800)
    quantizer = ResidualKMeans((8, 8), normalize, tail=(4, 4, 4), balance=balance, slack=1.3).fit(x)
    quantizer.save_pretrained(tmp_path)
    loaded = load_quantizer(tmp_path)
    assert isinstance(loaded, ResidualKMeans)
    assert (loaded.tail, loaded.balance, loaded.slack) == ((4, 4, 4), balance, 1.3)
    np.testing.assert_array_equal(loaded.assign(x), quantizer.assign(x))
    codes = quantizer.encode(x)
    np.testing.assert_array_equal(loaded.decode(codes), quantizer.decode(codes))
    lost = [reconstruction_error(x, loaded.decode(codes[:, :levels])) for levels in (1, 2, 5)]
    assert lost[0] > lost[1] > lost[2]


@pytest.mark.parametrize("place", [0.3, 0.6, 0.99])
def test_a_flipped_bit_is_told(tmp_path: Path, place: float) -> None:
    ResidualKMeans((64,)).fit(vectors(200)).save_pretrained(tmp_path)
    damaged = bytearray((tmp_path / "model.safetensors").read_bytes())
    damaged[int(place * len(damaged))] ^= 1
    (tmp_path / "model.safetensors").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"damaged, or not of this config\.json"):
        load_quantizer(tmp_path)


def test_files_of_another_version_are_told(tmp_path: Path) -> None:
    ResidualKMeans((4,)).fit(vectors(30)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"format": 99}, {"format": None}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=r"its format is .* fit and save the quantizer again"):
            load_quantizer(tmp_path)
    del config["format"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="its format is none"):
        load_quantizer(tmp_path)


def test_one_vector_alone_is_decoded_exactly() -> None:
    x = vectors(1)
    for balance in ("none", "last", "all", "per_prefix", "per_code"):
        quantizer = ResidualKMeans((4, 4), tail=(4, 4), balance=balance).fit(x)
        assert quantizer.encode(x).tolist() == [[0, 0, 0, 0]]
        assert quantizer.assign(x).tolist() == [[0, 0, 0, 0]]
        np.testing.assert_allclose(quantizer.decode(quantizer.encode(x)), x, atol=1e-6)


def test_a_level_half_unused_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    ResidualKMeans((4, 16)).fit(np.repeat(vectors(6), 50, axis=0))
    assert [record.getMessage().split(" of its")[0] for record in caplog.records] == ["level 1 uses 6"]
    caplog.clear()
    ResidualKMeans((4, 4)).fit(vectors(500))
    assert not caplog.records


def test_settings_that_make_no_sense() -> None:
    for told, settings_ in {
        "tail must be equal": {"tail": (4, 8)},
        "balance must be one of": {"balance": "some"},
        "slack must be 1 or more": {"slack": 0.9},
        "needs two levels": {"level_sizes": (8,), "balance": "per_code"},
    }.items():
        with pytest.raises(ValueError, match=told):
            ResidualKMeans(**{"level_sizes": (8, 8), **settings_})


def test_memory_does_not_grow_with_the_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantizers.residual_kmeans.SAMPLE_NUMBERS", 1 << 17)
    peaks = []
    for rows in (30_000, 240_000):
        mapped = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (rows, 32))
        for start in range(0, rows, 10_000):
            mapped[start : start + 10_000] = vectors(10_000, width=32, seed=start)
        quantizer = ResidualKMeans((64, 64), tail=(16, 16), balance="last", iterations=2)
        tracemalloc.start()
        codes = quantizer.fit(mapped).encode(mapped)
        peaks.append(tracemalloc.get_traced_memory()[1] - codes.nbytes - 8 * rows)  # the answer; drawing the sample
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1_000_000
    assert peaks[1] < mapped.nbytes / 3
