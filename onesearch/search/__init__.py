"""Constrained search: only items of the catalogue can come out."""

from onesearch.search.beam import Found, beam_search

__all__ = ["Found", "beam_search"]
