from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from histories import write_histories

from eval.baselines import sasrec
from eval.baselines.sasrec import SASRec
from onesearch.corpus import TEST, VALID, make_split, sample_requests, sources


@pytest.mark.parametrize("with_content", [False, True])
def test_it_learns_what_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_content: bool) -> None:
    for name, value in {"WIDTH": 32, "BATCH": 16, "DROPOUT": 0.1, "WARM_UP": 5, "RATE": 1e-2, "PASSES": 25}.items():
        monkeypatch.setattr(sasrec, name, value)
    corpus = sources.prepare("jsonl", tmp_path / "corpus", path=write_histories(tmp_path / "log"), on_error="mend")
    split = make_split(corpus, "leave-one-out")
    valid, test = (sample_requests(corpus, split, part, 1000, 0) for part in (VALID, TEST))
    content = np.eye(24, 8, dtype=np.float32) if with_content else None
    system = SASRec.fit(corpus, split, content, valid, seed=0)
    items, scores = system.rank(test, 30)
    assert (items[:, :24] >= 0).all() and (items[:, 24:] == -1).all(), "24 items are all there are"
    assert (np.diff(scores[:, :24], axis=1) <= 0).all()
    np.testing.assert_array_equal(system.score(test, items)[:, :24], scores[:, :24])
    assert (items[:, :3] == test.target[:, None]).any(1).mean() > 0.8
    assert 1 <= system.tuned["passes"] <= sasrec.PASSES
    again, _ = SASRec.fit(corpus, split, content, valid, seed=0).rank(test, 30)
    np.testing.assert_array_equal(items, again)
