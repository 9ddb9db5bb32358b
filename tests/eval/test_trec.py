import numpy as np
import pytest
import pytrec_eval

from eval.metrics import per_query
from eval.trec import write_qrels, write_run


def test_files_give_the_metrics_of_the_ranking_even_where_scores_tie(tmp_path):
    rng = np.random.default_rng(0)
    items = np.stack([rng.permutation(30)[:20] for _ in range(50)]).astype(np.int32)
    scores = -np.sort(rng.integers(0, 3, items.shape), axis=1).astype(np.float32)
    items[3, 10:] = -1
    targets = rng.integers(0, 30, 50).astype(np.int32)
    queries, ids = [f"q{q}" for q in range(50)], [f"item {i}" for i in range(30)]
    write_run(tmp_path / "a.run", "own history", queries, items, scores, ids)
    write_qrels(tmp_path / "qrels.txt", queries, targets, ids)
    with (tmp_path / "a.run").open() as run, (tmp_path / "qrels.txt").open() as qrels:
        parsed, relevant = pytrec_eval.parse_run(run), pytrec_eval.parse_qrel(qrels)
    found = pytrec_eval.RelevanceEvaluator(relevant, {"recip_rank", "ndcg_cut_10"}).evaluate(parsed)
    expected = per_query(items, targets, ["mrr@20", "ndcg@10"])
    np.testing.assert_allclose([found[q]["recip_rank"] for q in queries], expected["mrr@20"])
    np.testing.assert_allclose([found[q]["ndcg_cut_10"] for q in queries], expected["ndcg@10"])
    assert len(parsed["q3"]) == 10


def test_nothing_is_left_behind_when_writing_fails(tmp_path):
    with pytest.raises(IndexError):
        write_qrels(tmp_path / "qrels.txt", ["q"], np.array([5], np.int32), ["only one item"])
    assert list(tmp_path.iterdir()) == []
