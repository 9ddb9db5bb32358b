"""Vectors of texts and of behaviour."""

from onesearch.embed.behaviour import behaviour_vectors
from onesearch.embed.store import embed_catalogue
from onesearch.embed.text import TextEncoder, load_text_encoder

__all__ = ["TextEncoder", "behaviour_vectors", "embed_catalogue", "load_text_encoder"]
