import math

import numpy as np
import pytest

from quantizers import ResidualKMeans, independent_coding_rate, level_entropy, reconstruction_error
from quantizers.nearest import nearest
from quantizers.network import apply_layers
from quantizers.rows import Centre
from quantizers.shared_prefixes import (
    DISTINCT_FLOOR,
    FLOOR,
    SHRINKAGE,
    Sample,
    distinct_projection,
    draw_products,
    shared_projection,
)
from quantizers.views import category_purity, prefix_agreement, prefix_landing
from quantizers.vrq import VRQ

SIZES = (16, 16, 16)


def catalogue(
    products: int = 1200, views: int = 4, width: int = 32, signal: int = 12, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, D) views, (N,) products, (N,) categories: what a product is and how it is shown are in different directions.

    There are six ways to show one (a white background, a model wearing it, ...), which differ more than products do.
    """
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.standard_normal((width, width)))
    category = rng.integers(12, size=products)
    centre = 2 * rng.standard_normal((12, signal))[category] + rng.standard_normal((products, signal))
    product = np.repeat(np.arange(products), views)
    shown = 4 * rng.standard_normal((6, width - signal))[rng.integers(6, size=len(product))]
    parts = [
        centre[product] + 0.1 * rng.standard_normal((len(product), signal)),
        shown + rng.standard_normal((len(product), width - signal)),
    ]
    return (np.concatenate(parts, axis=1) @ rotation).astype(np.float32), product, category[product]


def mean_views(x: np.ndarray, product: np.ndarray) -> np.ndarray:
    return np.stack([x[product == number].mean(axis=0) for number in np.unique(product)])


def test_views_share_prefixes_and_products_stay_apart() -> None:
    x, product, category = catalogue()
    learned = VRQ(SIZES).fit(x, product, category)
    views, items = learned.encode(x), learned.encode_products(x, product)
    plain = ResidualKMeans(SIZES).fit(x)
    plain_views, plain_items = plain.encode(x), plain.encode(mean_views(x, product))
    ahead = prefix_agreement(views, product) - prefix_agreement(plain_views, product)
    assert (ahead[:2] >= 0.10).all()
    assert prefix_agreement(views, product)[0] > 0.9
    landed = prefix_landing(views, product, items) - prefix_landing(plain_views, product, plain_items)
    assert (landed[:2] >= 0.10).all()
    assert independent_coding_rate(items) >= independent_coding_rate(plain_items)
    assert independent_coding_rate(items) >= independent_coding_rate(
        ResidualKMeans(SIZES).fit(mean_views(x, product)).encode(mean_views(x, product))
    )
    assert category_purity(views[:, 0], category) > category_purity(plain_views[:, 0], category) + 0.3
    # agreement is not bought by using few codes
    assert (level_entropy(items, SIZES)[:2] > 0.9 * math.log2(16)).all()


def test_it_holds_for_products_it_has_not_seen() -> None:
    x, product, category = catalogue()
    old = product < 900
    learned = VRQ(SIZES).fit(x[old], product[old], category[old])
    plain = ResidualKMeans(SIZES).fit(x[old])
    new, numbers = x[~old], product[~old]
    ahead = prefix_agreement(learned.encode(new), numbers) - prefix_agreement(plain.encode(new), numbers)
    assert (ahead[:2] >= 0.10).all()


def test_categories_shape_the_first_level() -> None:
    """Eight categories that k-means hardly sees: vectors differ much more in other directions."""
    rng = np.random.default_rng(0)
    category = rng.integers(8, size=2000)
    told, other = np.eye(8)[category] + 0.2 * rng.standard_normal((2000, 8)), rng.standard_normal((2000, 6))
    x = np.concatenate([told, other], axis=1).astype(np.float32)
    purity = []
    for weight in (0.0, 0.5, 1.0):
        learned = VRQ((16, 8), shallow=1, category_weight=weight).fit(x, category=category)
        purity.append(category_purity(learned.encode(x)[:, 0], category))  # which is not told their category
    assert purity[1] > purity[0] + 0.15
    assert purity[2] > purity[0] + 0.4


def test_very_many_categories_and_unknown_ones_are_fine() -> None:
    rng = np.random.default_rng(0)
    category = np.where(rng.random(900) < 0.1, -1, rng.integers(300, size=900))
    x = (rng.standard_normal((300, 6))[category] + 0.1 * rng.standard_normal((900, 6))).astype(np.float32)
    learned = VRQ((16, 8), shallow=1).fit(x, category=category)
    assert len(np.unique(learned.encode(x)[:, 0])) == 16


def test_the_codes_of_a_product_are_those_of_its_mean_view() -> None:
    x, product, _ = catalogue(products=60)
    learned = VRQ((8, 8, 8, 8)).fit(x, product)
    names = np.array([900, 5, 70])  # any numbers, in any order
    codes = learned.encode_products(x[:12], names[product[:12]])
    seen = (x[:12] - learned._centre.mean) / learned._centre.scale
    z = seen @ learned._shared[0][0].T.astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    for row, number in enumerate(sorted(names)):
        of_product = names[product[:12]] == number
        mean = z[of_product].mean(axis=0)
        residual = mean / np.linalg.norm(mean)
        left = seen[of_product].mean(axis=0)
        for level, book in enumerate(learned.codebooks):
            if level == learned.shallow:
                residual = left @ learned._distinct[0][0].T.astype(np.float64)
            cost = np.square(residual - book).sum(axis=1) + learned._prices[level]
            assert codes[row, level] == cost.argmin()
            residual = residual - book[codes[row, level]]
            left = left - learned._values[level][codes[row, level]]
    shuffled = np.random.default_rng(0).permutation(12)
    np.testing.assert_array_equal(learned.encode_products(x[shuffled], names[product[shuffled]]), codes)
    np.testing.assert_array_equal(learned.encode_products(x[:3], np.arange(3)), learned.encode(x[:3]))


def test_a_tail_says_more_of_an_item() -> None:
    x, product, _ = catalogue(products=600)
    bare = VRQ(SIZES).fit(x, product)
    tailed = VRQ(SIZES, tail=(8, 8)).fit(x, product)
    assert tailed.level_sizes == (16, 16, 16, 8, 8)
    codes = tailed.encode_products(x, product)
    np.testing.assert_array_equal(codes[:, :3], bare.encode_products(x, product))
    items = mean_views(x, product)
    lost = [reconstruction_error(items, tailed.decode(codes[:, :levels])) for levels in (3, 5)]
    assert lost[1] < lost[0]
    assert independent_coding_rate(codes) > independent_coding_rate(codes[:, :3])


def test_the_same_views_under_other_numbers_give_the_same() -> None:
    x, product, category = catalogue(products=100)
    names = np.random.default_rng(0).choice(10_000, 100, replace=False)
    names.sort()
    one = VRQ((8, 8)).fit(x, product, category)
    other = VRQ((8, 8)).fit(x, names[product], category)
    np.testing.assert_array_equal(one.encode(x), other.encode(x))
    without = np.full_like(category, -1)
    np.testing.assert_array_equal(
        VRQ((8, 8)).fit(x, product, without).encode(x),
        VRQ((8, 8)).fit(x, product).encode(x),
    )


def test_what_does_not_fit_is_refused() -> None:
    x, product, category = catalogue(products=20)
    for wrong in ({"product": product[:-1]}, {"product": product, "category": category[:, None]}):
        with pytest.raises(ValueError, match="one for each vector"):
            VRQ((4, 4)).fit(x, **wrong)
    learned = VRQ((4, 4)).fit(x, product)
    with pytest.raises(ValueError, match="one for each vector"):
        learned.encode_products(x, product[:3])


def test_the_shared_projection_by_hand() -> None:
    """Two products at (1, 0) and (-1, 0); their views differ by 0.1 along the first axis and by 2 along the second."""
    views = np.array([[1, 2], [1, -2], [1.1, 0], [0.9, 0], [-1, 2], [-1, -2], [-1.1, 0], [-0.9, 0]], np.float32)
    sample = Sample(views, np.repeat([0, 1], 4), np.full(2, -1))
    scatter = np.array([4 * 0.1**2, 4 * 2.0**2]) / (8 - 2)
    noise = (1 - SHRINKAGE) * scatter + SHRINKAGE * scatter.mean()  # what a view's variance is taken to be
    between = (1 - scatter[0] / 4) / noise[0]
    expected = (between / (between + 1)) ** 2 / np.sqrt(noise[0])
    projection = shared_projection(sample)
    np.testing.assert_allclose(np.abs(projection[-1]), [expected, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(projection[:-1], 0, atol=1e-6)  # products do not differ along the second axis


def test_where_no_product_has_two_views_the_directions_keep_their_angles() -> None:
    x = (np.random.default_rng(0).standard_normal((50, 3)) * [9, 6, 3]).astype(np.float32)
    x -= x.mean(axis=0)
    projection = shared_projection(Sample(x, np.arange(50), np.full(50, -1))).astype(np.float64)
    alike = SHRINKAGE * FLOOR
    assert np.abs(projection @ projection.T * alike - np.eye(3)).max() < 0.01


def test_deep_codes_lie_where_items_of_equal_shallow_codes_differ() -> None:
    """Forty pairs: which pair it is shows along the first axis, and more than which of the two along the second."""
    rng = np.random.default_rng(0)
    pair = np.repeat(np.arange(40), 2)
    apart = 0.2 * rng.standard_normal((40, 1))[pair] * np.tile([[-1], [1]], (40, 1))
    left = np.concatenate([np.tile([[-5], [5]], (20, 1))[pair], apart], axis=1).astype(np.float32)
    for seed in range(5):
        learned = VRQ((2, 2), shallow=1, seed=seed)
        learned._fit_deep(left, pair)
        code = nearest(apply_layers(learned._distinct, left), learned.codebooks[0], learned._prices[0])
        assert (code[0::2] != code[1::2]).all()


def test_the_distinct_projection_makes_what_is_left_equally_long() -> None:
    rng = np.random.default_rng(0)
    left = (rng.standard_normal((4000, 5)) * [10, 8, 4, 2, 1]).astype(np.float32)
    projection = distinct_projection(left)
    variance = np.square(left @ projection.T).mean(axis=0)
    assert (variance[:-1] < variance[1:]).all()  # the floor counts most where there is least
    top = np.linalg.eigvalsh(left.T.astype(np.float64) @ left / len(left))
    np.testing.assert_allclose(variance, top / (top + DISTINCT_FLOOR * top[-1]), rtol=1e-3)
    assert np.isfinite(distinct_projection(np.zeros((3, 2), np.float32))).all()


def test_products_are_drawn_with_all_their_views(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.arange(60, dtype=np.float32).reshape(30, 2)
    index, category = np.arange(30) % 10, np.arange(10)
    centre = Centre.of(x)
    few = draw_products(x, centre, index, category, most=4, seed=0)
    assert len(few.category) == 4
    np.testing.assert_array_equal(few.count(), 3)
    for number, name in enumerate(few.category):
        np.testing.assert_allclose(few.views[few.product == number], centre.remove(x[index == name]))
    monkeypatch.setattr("quantizers.shared_prefixes.SAMPLE_NUMBERS", 14)
    assert len(draw_products(x, centre, index, category, most=4, seed=0).category) == 2
    monkeypatch.setattr("quantizers.shared_prefixes.SAMPLE_NUMBERS", 1)
    assert len(draw_products(x, centre, index, category, most=4, seed=0).category) == 1


def test_settings_are_checked() -> None:
    for told, wrong in (("shallow", {"shallow": 4}), ("tail", {"tail": (4, 8)}), ("category", {"category_weight": -1})):
        with pytest.raises(ValueError, match=told):
            VRQ(SIZES, **wrong)


def test_measures_by_hand() -> None:
    codes, product = np.array([[0, 0], [0, 0], [0, 1], [2, 2], [2, 2], [1, 1]]), np.array([1, 1, 1, 2, 2, 3])
    np.testing.assert_allclose(prefix_agreement(codes, product), [4 / 4, 2 / 4])
    assert np.isnan(prefix_agreement(codes, np.arange(6))).all()
    # equal last codes below different first ones do not agree
    np.testing.assert_allclose(prefix_agreement(np.array([[0, 5], [1, 5]]), np.array([0, 0])), [0, 0])
    assert category_purity(np.array([0, 0, 0, 1, 1, 1]), np.array([3, 3, 4, 4, 4, -1])) == pytest.approx(4 / 5)
    assert np.isnan(category_purity(np.array([0]), np.array([-1])))
    with pytest.raises(ValueError, match="one product a row"):
        prefix_agreement(codes, product[:3])
