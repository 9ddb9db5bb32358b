"""A shopping log and a catalogue on disk and in memory."""

from onesearch.corpus.popularity import Popularity, popularity
from onesearch.corpus.reader import Corpus
from onesearch.corpus.split import TEST, TRAIN, VALID, Requests, leave_one_out, make_split, sample_requests, time_split
from onesearch.corpus.tables import Rejects, Tables
from onesearch.corpus.texts import item_texts
from onesearch.corpus.writer import write_corpus

__all__ = [
    "TEST",
    "TRAIN",
    "VALID",
    "Corpus",
    "Popularity",
    "Rejects",
    "Requests",
    "Tables",
    "item_texts",
    "leave_one_out",
    "make_split",
    "popularity",
    "sample_requests",
    "time_split",
    "write_corpus",
]
