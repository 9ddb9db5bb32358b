"""What the generator has read of some requests: the decoder's side of it, computed once each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import EncoderDecoderCache

from onesearch.model.catalogue import Catalogue


@dataclass(frozen=True)
class Context:
    """What the decoder needs of B requests, computed once each.

    Attributes:
        catalogue: that was bound when the requests were read; a search keeps it.
        states: (B, S, D) encoder output. mask: (B, 1, 1, S) bool.
        slot_codes: (B, H, L) int64, -1 in empty slots. copy_keys: (B, H, D), copy_bias: (B, H, L), -inf
            where empty; None without a copy path.
        query_vector: (B, V). snapshot: (B,) popularity snapshot.
        terms, term_weights: (B, G), the weights scaled so that the best item's coverage is 1.
        covered_ahead: (B, A) coverage of the nodes that the first choice looks ahead to, scaled alike.
        offer_row: (B,) row of `Offers` that holds. offered_ahead: (O, B, A) shares of these nodes that are on offer.
        loss: () that views add to the training's; None where they add none.
        interest: (B, I) what the users want next, of unit length; None without an interest head.
    """

    catalogue: Catalogue
    states: Tensor
    mask: Tensor
    slot_codes: Tensor
    copy_keys: Tensor | None
    copy_bias: Tensor | None
    query_vector: Tensor
    terms: Tensor
    term_weights: Tensor
    covered_ahead: Tensor
    snapshot: Tensor
    offer_row: Tensor
    offered_ahead: Tensor
    cache: EncoderDecoderCache
    loss: Tensor | None = None
    interest: Tensor | None = None

    @property
    def batch(self) -> int:
        return len(self.states)
