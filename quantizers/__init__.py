"""Vectors in, codes out: quantizers, how well they do it, and how codes become unique.

Nothing here knows of items, texts or users.
"""

from quantizers.metrics import (
    Collisions,
    codebook_usage,
    collisions,
    independent_coding_rate,
    level_entropy,
    prefix_usage,
    reconstruction_error,
)
from quantizers.quantizer import Quantizer, load_quantizer
from quantizers.residual_kmeans import ResidualKMeans
from quantizers.uniqueness import append_rank_level

__all__ = [
    "Collisions",
    "Quantizer",
    "ResidualKMeans",
    "append_rank_level",
    "codebook_usage",
    "collisions",
    "independent_coding_rate",
    "level_entropy",
    "load_quantizer",
    "prefix_usage",
    "reconstruction_error",
]
