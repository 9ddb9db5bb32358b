"""Query text to token ids: a sentencepiece model trained on the corpus itself."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from onesearch.errors import UserError
from onesearch.files import atomic_path


class QueryTokenizer:
    """Unigram sentencepiece over lower-cased text; id 0 pads, 1 is unknown, 2 begins the answer.

    Every character of the training text is a token at least, so a misspelt word falls into pieces that the model has
    seen instead of becoming unknown.
    """

    pad, unknown, begin = 0, 1, 2

    def __init__(self, model: bytes) -> None:
        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    def __len__(self) -> int:
        return int(self._processor.get_piece_size())

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int = 4000, most: int = 200_000) -> QueryTokenizer:
        """Learn the pieces of these texts (the first `most` distinct ones); a small corpus gets fewer."""
        distinct = list(dict.fromkeys(text.lower() for text in texts if text.strip()))[:most]
        if not distinct:
            raise UserError("no text to train the query tokenizer on", remedy="give items a title")
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(distinct),
            model_writer=model,
            vocab_size=vocabulary,
            hard_vocab_limit=False,
            model_type="unigram",
            character_coverage=1.0,
            pad_id=cls.pad,
            unk_id=cls.unknown,
            bos_id=cls.begin,
            eos_id=-1,
            num_threads=1,  # the same pieces whatever the machine
            minloglevel=2,
        )
        return cls(model.getvalue())

    def encode(self, texts: Sequence[str], most: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Token ids of many texts, one after the other, each cut after `most` tokens.

        Returns:
            ids (sum of lengths,) int32 and offsets (n + 1,) int64.
        """
        pieces = [ids[:most] for ids in self._processor.encode([text.lower() for text in texts])]
        offsets = np.zeros(len(pieces) + 1, np.int64)
        np.cumsum([len(ids) for ids in pieces], out=offsets[1:])
        flat = np.fromiter((piece for ids in pieces for piece in ids), np.int32, count=int(offsets[-1]))
        return flat, offsets

    def save(self, folder: Path) -> None:
        """Write `tokenizer.model`, readable by any sentencepiece program."""
        with atomic_path(folder / "tokenizer.model") as path:
            path.write_bytes(self._model)

    @classmethod
    def load(cls, folder: Path) -> QueryTokenizer:
        try:
            return cls((folder / "tokenizer.model").read_bytes())
        except (OSError, RuntimeError) as error:
            raise UserError("no readable tokenizer", place=folder / "tokenizer.model") from error
