"""A shopping log and a catalogue on disk and in memory."""

from onesearch.corpus.popularity import Popularity, popularity
from onesearch.corpus.reader import Corpus
from onesearch.corpus.split import TEST, TRAIN, VALID, Requests, leave_one_out, make_split, sample_requests, time_split

__all__ = [
    "TEST",
    "TRAIN",
    "VALID",
    "Corpus",
    "Popularity",
    "Requests",
    "leave_one_out",
    "make_split",
    "popularity",
    "sample_requests",
    "time_split",
]
