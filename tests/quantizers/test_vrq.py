import math

import numpy as np
import pytest
import torch

from quantizers import ResidualKMeans, independent_coding_rate, level_entropy, reconstruction_error
from quantizers.shared_prefixes import TEMPERATURE, agreement, apart, info_nce
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
    learned = VRQ(SIZES, projection=16, steps=300, batch=256).fit(x, product, category)
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
    learned = VRQ(SIZES, projection=16, steps=200, batch=256).fit(x[old], product[old], category[old])
    plain = ResidualKMeans(SIZES).fit(x[old])
    new, numbers = x[~old], product[~old]
    ahead = prefix_agreement(learned.encode(new), numbers) - prefix_agreement(plain.encode(new), numbers)
    assert (ahead[:2] >= 0.10).all()


def test_categories_shape_the_first_level() -> None:
    """Eight categories that k-means hardly sees: vectors differ much more in other directions."""
    rng = np.random.default_rng(0)
    category = rng.integers(8, size=2000)
    told, other = np.eye(8)[category] + 0.2 * rng.standard_normal((2000, 8)), 2 * rng.standard_normal((2000, 6))
    x = np.concatenate([told, other], axis=1).astype(np.float32)
    purity = {}
    for name, given in (("with", category), ("without", None)):
        learned = VRQ((8, 8), shallow=1, steps=300, batch=256).fit(x, category=given)
        purity[name] = category_purity(learned.encode(x)[:, 0], category)
    assert purity["with"] > purity["without"] + 0.3


def test_the_codes_of_a_product_are_those_of_its_mean_view() -> None:
    x, product, _ = catalogue(products=60)
    learned = VRQ((8, 8), projection=16, steps=20, batch=32).fit(x, product)
    names = np.array([900, 5, 70])  # any numbers, in any order
    codes = learned.encode_products(x[:12], names[product[:12]])
    weight = learned._encoder[0][0].astype(np.float64)
    z = ((x[:12] - learned._centre.mean) / learned._centre.scale) @ weight.T
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    for row, number in enumerate(sorted(names)):
        mean = z[names[product[:12]] == number].mean(axis=0)
        residual = mean / np.linalg.norm(mean)
        for level, book in enumerate(learned.codebooks):
            assert codes[row, level] == np.square(residual - book).sum(axis=1).argmin()
            residual = residual - book[codes[row, level]]
    shuffled = np.random.default_rng(0).permutation(12)
    np.testing.assert_array_equal(learned.encode_products(x[shuffled], names[product[shuffled]]), codes)
    np.testing.assert_array_equal(learned.encode_products(x[:3], np.arange(3)), learned.encode(x[:3]))


def test_a_tail_says_more_of_an_item() -> None:
    x, product, _ = catalogue(products=600)
    bare = VRQ(SIZES, projection=16, steps=50, batch=128).fit(x, product)
    tailed = VRQ(SIZES, tail=(8, 8), projection=16, steps=50, batch=128).fit(x, product)
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
    one = VRQ((8, 8), steps=30, batch=32).fit(x, product, category)
    other = VRQ((8, 8), steps=30, batch=32).fit(x, names[product], category)
    np.testing.assert_array_equal(one.encode(x), other.encode(x))
    without = np.full_like(category, -1)
    np.testing.assert_array_equal(
        VRQ((8, 8), steps=30, batch=32).fit(x, product, without).encode(x),
        VRQ((8, 8), steps=30, batch=32).fit(x, product).encode(x),
    )


def test_what_does_not_fit_is_refused() -> None:
    x, product, category = catalogue(products=20)
    for wrong in ({"product": product[:-1]}, {"product": product, "category": category[:, None]}):
        with pytest.raises(ValueError, match="one for each vector"):
            VRQ((4, 4), steps=5).fit(x, **wrong)
    learned = VRQ((4, 4), steps=5).fit(x, product)
    with pytest.raises(ValueError, match="one for each vector"):
        learned.encode_products(x, product[:3])


def test_info_nce_by_hand() -> None:
    """Two items, orthogonal, views equal: the right one has cosine 1, the wrong one 0."""
    z = torch.eye(2) * torch.tensor([[3.0], [5.0]])  # lengths do not matter
    expected = math.log(1 + math.exp(-1 / TEMPERATURE))
    assert info_nce(z, z, torch.tensor([True, True])).item() == pytest.approx(expected, abs=1e-6)
    assert info_nce(z, z.flip(0), torch.tensor([True, True])).item() == pytest.approx(1 / TEMPERATURE, rel=1e-4)
    # an item of one view is a negative of others and asks nothing itself
    assert info_nce(z, torch.stack([z[0], z[0]]), torch.tensor([True, False])).item() == pytest.approx(
        (math.log(2) + expected) / 2, rel=1e-4
    )
    assert info_nce(z, z, torch.tensor([False, False])).item() == 0


def test_agreement_and_margin_by_hand() -> None:
    """A residual of length 1 on its code, the other code at squared distance 4: a logit 4 / TEMPERATURE lower."""
    residual, codebook = torch.tensor([[1.0]]), torch.tensor([[1.0], [-1.0]])
    assert agreement(residual, codebook, torch.tensor([1])).item() == pytest.approx(4 / TEMPERATURE, rel=1e-4)
    assert agreement(residual, codebook, torch.tensor([0])).item() == pytest.approx(0, abs=1e-4)
    one, other = torch.tensor([[0.0], [0.0]]), torch.tensor([[1.0], [3.0]])
    assert apart(one, other, torch.tensor(4.0)).item() == pytest.approx((3 / 4 + 0) / 2)


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
