"""Constrained search: only items of the catalogue can come out."""

from onesearch.search.beam import BeamFound, beam_search
from onesearch.search.diverse import diverse_beam_search
from onesearch.search.found import Found, codes_of
from onesearch.search.sampling import Sampled, sample, sample_without_replacement
from onesearch.search.scorer import GeneratorScorer, LanguageScorer, Scorer

__all__ = [
    "BeamFound",
    "Found",
    "GeneratorScorer",
    "LanguageScorer",
    "Sampled",
    "Scorer",
    "beam_search",
    "codes_of",
    "diverse_beam_search",
    "sample",
    "sample_without_replacement",
]
