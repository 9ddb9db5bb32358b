"""Items that come and go: what moves (nothing), what is found at once, what is never half-written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from onesearch import assortment
from onesearch.assortment import NEXT, change, finish
from onesearch.cli import app
from onesearch.corpus import Corpus
from onesearch.drift import Drift, refit, vectors_of
from onesearch.embed import load_text_encoder
from onesearch.embed.store import embed_catalogue
from onesearch.errors import UserError
from onesearch.files import read_json
from onesearch.pipeline import STEPS
from onesearch.retriever import Request, Retriever
from onesearch.run import Run, stamps
from onesearch.sid import SidTable

NEW = (
    {"item_id": "n1", "title": "pickled zebra radish", "brand": "dune", "price": 3.5},
    {"item_id": "n2", "title": "cold cereal giant", "brand": "acme"},
    {"item_id": "n3", "title": "ground coffee small", "brand": "acme", "price": 9.0},
    {"item_id": "n4", "title": "velvet umbrella", "brand": None},
)


def write(path: Path, rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def onesearch(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def content(folder: Path) -> dict[str, Any]:
    return stamps(folder)


def sids(folder: Path) -> dict[str, str]:
    table = SidTable.load(folder / "sid")
    return {name: table.text(row) for row, name in enumerate(table.item_ids)}


@pytest.fixture
def run(new_run: Callable[[str], Path]) -> Run:
    return Run.open(new_run("run"))


@pytest.fixture
def trained(trained_run: Path, tmp_path: Path) -> Run:
    import shutil

    return Run.open(Path(shutil.copytree(trained_run, tmp_path / "trained")))


def test_corpus_vectors_and_table_grow_together_and_nothing_moves(run: Run, tmp_path: Path) -> None:
    before, vectors = sids(run.folder), np.load(run.folder / "embeddings/vectors.npy")
    items = Corpus.load(run.folder / "corpus").items
    report = change(run, write(tmp_path / "new.jsonl", NEW), [])
    corpus, table = Corpus.load(run.folder / "corpus"), SidTable.load(run.folder / "sid")
    assert corpus.items["item_id"].to_list() == table.item_ids.to_list() == [*items["item_id"], "n1", "n2", "n3", "n4"]
    assert corpus.items.head(len(items)).equals(items) and corpus.info["items"] == len(items) + 4
    after, grown = sids(run.folder), np.load(run.folder / "embeddings/vectors.npy")
    assert {name: after[name] for name in before} == before and len(set(after.values())) == len(after)
    np.testing.assert_array_equal(grown[: len(items)], vectors)
    encoder = load_text_encoder("wordllama")
    np.testing.assert_allclose(grown[-1], encoder.encode(["velvet umbrella"])[0], atol=1e-6)
    assert table.version == report.version == 2 and table.added[-4:].tolist() == [2] * 4
    assert report.added == 4 == report.alone + report.next_rank + report.moved and report.on_sale == len(items) + 4
    assert table.history[-1]["file"] == "new.jsonl" and not (run.folder / NEXT).exists()


def test_the_vectors_are_those_that_the_step_embed_would_make(run: Run, tmp_path: Path) -> None:
    from onesearch.corpus import item_texts

    change(run, write(tmp_path / "new.jsonl", NEW), [])
    texts = item_texts(Corpus.load(run.folder / "corpus"))
    embed_catalogue(texts, load_text_encoder("wordllama"), tmp_path / "anew")
    np.testing.assert_allclose(
        np.load(tmp_path / "anew/vectors.npy"), np.load(run.folder / "embeddings/vectors.npy"), atol=1e-6
    )
    assert read_json(tmp_path / "anew/vectors.json") == read_json(run.folder / "embeddings/vectors.json")


def test_later_steps_do_not_refit_but_training_is_due(run: Run, tmp_path: Path) -> None:
    change(run, write(tmp_path / "new.jsonl", NEW), ["i3"])
    before, silent = content(run.folder / "sid"), lambda done, total: None
    for name in ("prepare", "embed", "quantize"):
        assert not STEPS[name].do(run, silent), name
    assert content(run.folder / "sid") == before
    outputs = run.manifest["steps"]["quantize"]["outputs"]["sid"]
    assert outputs == before


def test_a_new_item_is_found_at_once_by_the_old_model(trained: Run, tmp_path: Path) -> None:
    model, before = content(trained.folder / "models"), sids(trained.folder)
    change(trained, write(tmp_path / "new.jsonl", NEW), [])
    retriever = Retriever.load(trained.folder)
    for one in (NEW[0], NEW[3]):
        (answer,) = retriever.search([Request(str(one["title"]))], 5)
        assert one["item_id"] in [hit.item_id for hit in answer.hits]
        (personal,) = retriever.search([Request(str(one["title"]), "u3")], 10)
        assert one["item_id"] in [hit.item_id for hit in personal.hits]
    assert content(trained.folder / "models") == model
    assert {name: sids(trained.folder)[name] for name in before} == before
    (everything,) = retriever.search([Request("coffee")], 100)
    assert {hit.item_id: hit.sid for hit in everything.hits} == sids(trained.folder), "by brute force: all are found"
    assert sum(np.exp(hit.score) for hit in everything.hits) == pytest.approx(1, abs=1e-3)


def test_the_words_of_a_new_item_are_no_typing_errors(trained: Run, tmp_path: Path) -> None:
    def note() -> str | None:
        return Retriever.load(trained.folder).search([Request("ground coffea")], 1)[0].note

    assert note() == "read as “ground coffee”"
    change(trained, write(tmp_path / "new.jsonl", [{"item_id": "n1", "title": "coffea arabica"}]), [])
    assert note() is None


def test_removed_items_are_never_answered_but_stay_as_history(trained: Run) -> None:
    (first,) = Retriever.load(trained.folder).search([Request("dog food", "u3")], 48)
    gone = [hit.item_id for hit in first.hits if hit.bought_before][:2]
    before = sids(trained.folder)
    report = change(trained, None, gone)
    assert report.removed == 2 == report.held_by_removed and report.on_sale == 46 and report.now is None
    retriever = Retriever.load(trained.folder)
    (answer,) = retriever.search([Request("dog food", "u3")], 100)
    assert sorted(hit.item_id for hit in answer.hits) == sorted(set(before) - set(gone))
    assert sum(np.exp(hit.score) for hit in answer.hits) == pytest.approx(1, abs=1e-3)
    assert {hit.item_id: hit.sid for hit in answer.hits}.items() <= before.items()
    assert {given.item_id for given in answer.given} == {given.item_id for given in first.given}
    assert sids(trained.folder) == before


def test_removed_semantic_ids_are_not_given_away_and_return_with_their_item(run: Run, tmp_path: Path) -> None:
    titles = dict(Corpus.load(run.folder / "corpus").items.select("item_id", "title").iter_rows())
    before = sids(run.folder)
    change(run, None, ["i5"])
    twin = {"item_id": "twin", "title": titles["i5"], "brand": "cedar"}
    change(run, write(tmp_path / "twin.jsonl", [twin]), [])
    assert sids(run.folder)["twin"] not in before.values()
    report = change(run, write(tmp_path / "back.jsonl", [{"item_id": "i5", "title": titles["i5"], "price": 77}]), [])
    after, table = sids(run.folder), SidTable.load(run.folder / "sid")
    assert report.returned == 1 and report.added == 0 and report.held_by_removed == 0
    assert {name: after[name] for name in before} == before and not table.removed.any() and table.version == 4
    items = Corpus.load(run.folder / "corpus").items
    assert items["item_id"].to_list() == table.item_ids.to_list()
    assert items.filter(pl.col("item_id") == "i5")["price"].item() == 77, "the file's row is the newest"


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_batches_in_any_order_move_no_semantic_id(run: Run, tmp_path: Path, order: tuple[int, ...]) -> None:
    seen = sids(run.folder)
    for place in order:
        change(run, write(tmp_path / f"{place}.jsonl", [NEW[place]]), [f"i{place}"])
        after = sids(run.folder)
        assert {name: after[name] for name in seen} == seen
        seen = after
    assert SidTable.load(run.folder / "sid").version == 5


def test_items_that_share_semantic_ids_come_last_in_them(new_run: Callable[[str], Path], tmp_path: Path) -> None:
    from dataclasses import replace

    run = Run.open(new_run("shared"))
    run = Run.create(run.folder, replace(run.settings, last_level=None))
    STEPS["quantize"].do(run, lambda done, total: None)
    before = SidTable.load(run.folder / "sid")
    title, brand = Corpus.load(run.folder / "corpus").items.select("title", "brand").row(7)
    report = change(run, write(tmp_path / "new.jsonl", [{"item_id": "new", "title": title, "brand": brand}]), [])
    table = SidTable.load(run.folder / "sid")
    assert report.shared == 1 and report.full is None
    np.testing.assert_array_equal(table.codes[:-1], before.codes)
    np.testing.assert_array_equal(table.codes[-1], table.codes[7])
    leaf = np.flatnonzero((table.codes == table.codes[-1]).all(1))
    assert table.order[-1] == table.order[leaf].max() and len(np.unique(table.order[leaf])) == len(leaf)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [NEW[0], {"item_id": "i7", "title": "x"}],
            r"row 2 column item_id: the item is in the catalogue already: 'i7'",
        ),
        ([NEW[0], {"item_id": "e", "title": "  "}], r"row 2 column title: empty title: ''"),
        ([NEW[0], NEW[0]], r"row 2 column item_id: duplicate item_id: 'n1' \(keep one of the rows\)"),
        ([{**NEW[0], "price": -1}], r"row 1 column price: no price: '-1.0'"),
        ([{"id": "n1", "name": "x"}], r"missing column: 'item_id' \(the file has: id, name\)"),
    ],
)
def test_a_row_that_does_not_fit_is_named_and_nothing_changes(
    run: Run, tmp_path: Path, rows: Any, message: str
) -> None:
    before = content(run.folder)
    with pytest.raises(UserError, match=message):
        change(run, write(tmp_path / "new.jsonl", rows), [])
    assert content(run.folder) == before


def test_other_mistakes_are_named_and_nothing_changes(run: Run, tmp_path: Path) -> None:
    before = content(run.folder)
    (tmp_path / "new.xlsx").write_text("x")
    gone = write(tmp_path / "gone.jsonl", [{"item_id": "i1"}, {"item_id": "nobody"}])
    for add, remove, message in (
        (tmp_path / "new.xlsx", [], "unknown file format"),
        (tmp_path / "none.jsonl", [], "no such file"),
        (None, ["i1", "nobody"], r"--remove row 2 column item_id: unknown item: 'nobody'"),
        (None, [str(gone)], r"gone.jsonl row 2 column item_id: unknown item: 'nobody'"),
        (None, ["i1", "i1"], "duplicate item_id: 'i1'"),
        (None, [f"i{n}" for n in range(48)], "nothing would be left on sale"),
        (None, [], "nothing to add or to remove"),
    ):
        with pytest.raises(UserError, match=message):
            change(run, add, remove)
    assert content(run.folder) == before
    change(run, None, ["i1"])
    with pytest.raises(UserError, match="the item was removed before: 'i1'"):
        change(run, None, ["i1"])


def test_an_interruption_leaves_the_old_state_or_one_that_is_carried_out(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, new = content(run.folder), write(tmp_path / "new.jsonl", NEW)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(assortment, "write_usage", interrupted)  # the last thing before the change is decided
        with pytest.raises(KeyboardInterrupt):
            change(run, new, ["i2"])
    assert content(run.folder) == before
    moved: list[Path] = []
    plain = Path.replace

    def once(source: Path, target: Path) -> Path:
        if NEXT in str(source) and NEXT not in str(target):
            if len(moved) == 2:
                raise KeyboardInterrupt
            moved.append(target)
        return plain(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", once)  # two files are in their places, the others are not
        with pytest.raises(KeyboardInterrupt):
            change(run, new, ["i2"])
    assert len(moved) == 2 and (run.folder / NEXT).exists()
    done = onesearch("quantize", "--run", run.folder)
    assert done.exit_code == 0 and "already done" in done.stderr, done.output
    table = SidTable.load(run.folder / "sid")
    assert table.version == 2 and table.item_ids.equals(Corpus.load(run.folder / "corpus").items["item_id"])
    assert len(np.load(run.folder / "embeddings/vectors.npy")) == len(table.codes) == 52
    assert not (run.folder / NEXT).exists() and not finish(run)


def test_a_run_whose_semantic_ids_are_not_of_its_settings_is_refused(run: Run, tmp_path: Path) -> None:
    from dataclasses import replace

    stale = Run.create(run.folder, replace(run.settings, level_sizes=(5, 5)))
    with pytest.raises(UserError, match="semantic IDs are not made, or not of these files and settings"):
        change(stale, write(tmp_path / "new.jsonl", NEW), [])


def test_drift_is_measured_against_the_fitted_items(run: Run, tmp_path: Path) -> None:
    odd = [{"item_id": f"o{n}", "title": f"quantum {n} chromodynamics lattice {n * n}"} for n in range(60)]
    with pytest.raises(UserError, match=r"no room for \d+ new items"):
        change(
            run,
            write(
                tmp_path / "much.jsonl",
                odd * 1
                + [{**one, "item_id": one["item_id"] + "x"} for one in odd]
                + [{**one, "item_id": one["item_id"] + "y"} for one in odd],
            ),
            [],
        )
    few = change(run, write(tmp_path / "few.jsonl", odd[:3]), [])
    assert not few.refit_due and "at least 50" in few.reasons[0]
    assert few.now is not None and few.now.ratio > 2 and few.now.items == 3
    corpus, table = Corpus.load(run.folder / "corpus"), SidTable.load(run.folder / "sid")
    text = np.load(run.folder / "embeddings/vectors.npy")
    vectors = vectors_of(run, corpus, corpus.items, table, text)
    decoded = vectors.quantizer.decode(vectors.quantizer.encode(text))
    distance = np.square(text - decoded).sum(1)
    spread = np.square(text[:48] - text[:48].mean(0)).sum(1).mean()
    assert few.now.fitted_error == pytest.approx(distance[:48].mean() / spread, rel=1e-4)
    assert few.now.error == pytest.approx(distance[48:].mean() / spread, rel=1e-4)


def test_when_a_refit_is_due() -> None:
    fine = Drift(100, 0.2, 0.2, 1.0, [0.0, 0.3], [0.0, 0.25])
    assert refit(None, 0) == (False, ["no item was added since the fit"])
    assert not refit(fine, 5)[0]
    assert refit(fine, 6)[1] == ["6% of the new items found their codes full (> 5%)"]
    unseen = refit(Drift(100, 0.3, 0.2, 1.5, [0.0, 0.36], [0.0, 0.25]), 0)
    assert unseen[0] and "1.50 times" in unseen[1][0] and unseen[1][1].startswith("level 2: 36% below unseen prefixes")


def test_the_command_tells_what_changed(run: Run, tmp_path: Path) -> None:
    new = write(tmp_path / "new.jsonl", NEW[:2])
    shown = onesearch("quantize", "--run", run.folder, "--add", new, "--remove", "i4", "--json")
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.stdout)
    assert (told["version"], told["added"], told["removed"], told["refit_due"]) == (2, 2, 1, False)
    frame = pl.DataFrame([NEW[2]])
    frame.write_parquet(tmp_path / "more.parquet")
    table = onesearch("quantize", "--run", run.folder, "--add", tmp_path / "more.parquet")
    assert table.exit_code == 0 and "version 3" in table.stdout and "refit due" in table.stdout, table.output
    refused = onesearch("quantize", "--run", run.folder, "--remove", "i4")
    assert refused.exit_code == 2 and "removed before: 'i4'" in refused.stderr
