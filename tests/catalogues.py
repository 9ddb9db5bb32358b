"""Small catalogues of random semantic IDs, and untrained generators over them, for tests that compare two ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BartConfig, PreTrainedConfig, T5Config

from onesearch.corpus.offers import Offers
from onesearch.model import Generator, GeneratorConfig
from onesearch.model.catalogue import Catalogue
from onesearch.prefix import PrefixIndex

TEXT = 20
"""Text pieces; ids below 3 are padding, unknown and the beginning."""

SNAPSHOTS, PRIORS, FEATURES, CONTENT, TASTE, TERMS, OFFER_ROWS = 3, 2, 5, 6, 2, 16, 4


def backbone(family: str, width: int = 16) -> PreTrainedConfig:
    """One encoder layer, one decoder layer."""
    if family == "t5":
        return T5Config(
            d_model=width, d_kv=width // 2, d_ff=width, num_heads=2, num_layers=1, num_decoder_layers=1, dropout_rate=0
        )
    return BartConfig(
        d_model=width,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=width,
        decoder_ffn_dim=width,
        max_position_embeddings=64,
        dropout=0.0,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=None,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
    )


def random_codes(rng: np.random.Generator, items: int, sizes: tuple[int, ...], unique: bool) -> NDArray[np.int32]:
    """(N, L) codes; all different if `unique`, otherwise some semantic IDs are likely to be shared."""
    if unique:
        flat = rng.choice(int(np.prod(sizes)), items, replace=False)
        return np.stack(np.unravel_index(flat, sizes), -1).astype(np.int32)
    return np.stack([rng.integers(0, size, items) for size in sizes], -1).astype(np.int32)


def random_offers(rng: np.random.Generator, items: int, kinds: int) -> Offers:
    """Rows in which about a third of the items are on offer; nothing is in the first."""
    bits = rng.integers(min(kinds, 1), 2**kinds, (OFFER_ROWS, items)) * (rng.random((OFFER_ROWS, items)) < 0.3)
    bits[0] = 0
    row, item = np.nonzero(bits)
    return Offers(
        kinds=tuple("abcdefgh"[:kinds]),
        places=np.zeros(0, np.int64),
        cuts=np.arange(OFFER_ROWS - 1),
        key=row * items + item,
        kind=bits[row, item].astype(np.uint8),
        row_count=OFFER_ROWS,
        items=items,
    )


def random_generator(
    seed: int,
    codes: NDArray[np.int32],
    sizes: tuple[int, ...],
    family: str = "bart",
    *,
    copy: bool = True,
    prior: bool = True,
    content: bool = True,
    spelling: bool = True,
    offers: int = 0,
    order: NDArray[np.int32] | None = None,
    spread: float = 0.4,
    **more: Any,
) -> Generator:
    """A generator whose weights are drawn so wide that its distributions are far from uniform.

    Args:
        spread: of the weights; with 0 they are as a training begins, and the same for every seed.
        more: options of `GeneratorConfig`.
    """
    torch.manual_seed(0)
    config = GeneratorConfig(
        backbone=backbone(family),
        text_vocabulary=TEXT,
        begin_token=2,
        level_sizes=list(sizes),
        history_features=FEATURES,
        content=CONTENT if content else 0,
        taste=TASTE if content else 0,
        spelling=spelling,
        priors=PRIORS if prior else 0,
        offers=offers,
        copy=copy,
        **more,
    )
    model = Generator(config).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters() if spread else ():
            parameter.normal_(0, spread, generator=random)
    counts = torch.rand(PRIORS, SNAPSHOTS, len(codes), generator=random) * 20
    vectors = torch.randn(len(codes), CONTENT + TASTE, generator=random)
    bits = torch.randint(0, 256, (len(codes), TERMS // 8), generator=random, dtype=torch.uint8)
    known = random_offers(np.random.default_rng(seed), len(codes), offers)
    return model.bind(Catalogue.build(PrefixIndex.build(codes, order), list(counts), vectors, bits, known))


def random_request(rng: np.random.Generator, codes: NDArray[np.int32], slots: int, tokens: int) -> dict[str, Tensor]:
    """The inputs of one request with so many past purchases and query tokens, without any padding but what is needed
    to have one position at least."""
    chosen = rng.integers(0, len(codes), slots)
    slot_codes = np.full((1, max(slots, 1), codes.shape[1]), -1, np.int64)
    slot_codes[0, :slots] = codes[chosen]
    features = np.zeros((1, max(slots, 1), FEATURES), np.float32)
    features[0, :slots] = rng.random((slots, FEATURES))
    return {
        "query_ids": torch.from_numpy(rng.integers(3, TEXT, (1, tokens))),
        "query_mask": torch.ones(1, tokens, dtype=torch.bool),
        "slot_codes": torch.from_numpy(slot_codes),
        "slot_features": torch.from_numpy(features),
        "slot_coverage": torch.from_numpy(features[..., 1]),
        "query_vector": torch.from_numpy(rng.standard_normal((1, CONTENT + 2 * TASTE), np.float32)),
        "terms": torch.from_numpy(rng.choice(TERMS, (1, tokens), replace=False)),
        "term_weights": torch.full((1, tokens), 1 / tokens),
        "snapshot": torch.from_numpy(rng.integers(0, SNAPSHOTS, 1)),
        "offer_row": torch.from_numpy(rng.integers(0, OFFER_ROWS, 1)),
    }


def batch(requests: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Several requests as one, padded to the longest."""
    slots = max(one["slot_codes"].shape[1] for one in requests)
    tokens = max(one["query_ids"].shape[1] for one in requests)  # and as many terms

    def padded(name: str, length: int, value: float) -> Tensor:
        parts = []
        for one in requests:
            tensor = one[name]
            empty = torch.full((1, length - tensor.shape[1], *tensor.shape[2:]), value, dtype=tensor.dtype)
            parts.append(torch.cat([tensor, empty], 1))
        return torch.cat(parts)

    return {
        "query_ids": padded("query_ids", tokens, 0),
        "query_mask": padded("query_mask", tokens, False),
        "terms": padded("terms", tokens, 0),
        "term_weights": padded("term_weights", tokens, 0),
        "slot_codes": padded("slot_codes", slots, -1),
        "slot_features": padded("slot_features", slots, 0),
        "slot_coverage": padded("slot_coverage", slots, 0),
        **{name: torch.cat([one[name] for one in requests]) for name in ("query_vector", "snapshot", "offer_row")},
    }


def random_batch(rng: np.random.Generator, codes: NDArray[np.int32], requests: int = 3) -> list[dict[str, Tensor]]:
    """Requests with histories of 0 to 5 purchases and queries of 1 to 6 tokens."""
    return [random_request(rng, codes, int(rng.integers(0, 6)), int(rng.integers(1, 7))) for _ in range(requests)]


@torch.inference_mode()
def code_log_prob(model: Generator, inputs: Mapping[str, Tensor], codes: NDArray[np.int32]) -> Tensor:
    """(B, N, L) teacher-forced log-probability of every code of every item, one forward pass a request."""
    labels = torch.from_numpy(codes.astype(np.int64))
    scores = []
    for row in range(len(inputs["snapshot"])):
        repeated = {name: value[row : row + 1].expand(len(codes), *value.shape[1:]) for name, value in inputs.items()}
        scores.append(model(**repeated, labels=labels).log_prob)
    return torch.stack(scores)
