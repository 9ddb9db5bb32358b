"""A trained run that answers requests: of known users, of unknown ones, untidy and impossible ones."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from onesearch.cli import app
from onesearch.corpus import TEST, make_split, sample_requests
from onesearch.errors import UserError
from onesearch.retriever import Answer, Request, Retriever
from onesearch.sid import SidTable
from onesearch.where import EVERYTHING, Filter


@pytest.fixture(scope="module")
def retriever(trained_run: Path) -> Retriever:
    return Retriever.load(trained_run)


def onesearch(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ids(answer: Answer) -> list[str]:
    return [hit.item_id for hit in answer.hits]


def test_hits_are_items_of_the_catalogue_best_first_and_none_twice(retriever: Retriever) -> None:
    items = retriever.corpus.items
    (answer,) = retriever.search([Request("cold cereal", "u3")], 10)
    assert len(answer.hits) == 10 == len(set(ids(answer)))
    for hit in answer.hits:
        row = items["item_id"].to_list().index(hit.item_id)
        assert (hit.title, hit.brand, hit.price) == items.select("title", "brand", "price").row(row)
        assert hit.sid == retriever.table.text(row)
        past = retriever.corpus.item[retriever.corpus.offsets[3] : retriever.corpus.offsets[4]]
        assert answer.user == retriever.corpus.users["user_id"][3] or hit.bought_before == 0 or past.size
    scores = [hit.score for hit in answer.hits]
    assert scores == sorted(scores, reverse=True) and scores[0] < 0
    assert "cold cereal" in answer.hits[0].title, "it has learnt what the query means"


def test_what_was_bought_before_is_counted_and_what_the_model_was_given_is_told(retriever: Retriever) -> None:
    corpus = retriever.corpus
    user = corpus.users["user_id"].to_list().index("u7")
    own = corpus.items["item_id"].gather(corpus.item[corpus.offsets[user] : corpus.offsets[user + 1]]).to_list()
    (answer,) = retriever.search([Request("ground coffee", "u7")], 48)
    assert answer.known_user and answer.note is None
    assert {hit.item_id: hit.bought_before for hit in answer.hits} == {hit: own.count(hit) for hit in ids(answer)}
    assert answer.given and all(given.times == own.count(given.item_id) > 0 for given in answer.given)
    assert all(given.days_ago is not None and given.days_ago > 0 for given in answer.given)
    assert "coffee" in answer.given[0].title, "the most relevant purchase first"


def test_two_users_get_different_answers_to_one_query(retriever: Retriever) -> None:
    answers = retriever.search([Request("potato chips", f"u{user}") for user in range(8)], 5)
    assert len({tuple(ids(answer)) for answer in answers}) > 1
    assert len({answer.given[0].item_id for answer in answers}) > 1


def test_an_unknown_user_is_answered_without_history_and_told_so(retriever: Retriever) -> None:
    unknown, nobody = retriever.search([Request("dog food", "stranger"), Request("dog food")], 5)
    assert not unknown.known_user and unknown.given == []
    assert unknown.note == "user 'stranger' is not in the log: answered without history"
    assert nobody.note is None and nobody.given == []
    assert ids(unknown) == ids(nobody) and all(hit.bought_before == 0 for hit in unknown.hits)


def test_a_wrong_letter_changes_no_answer_and_what_was_read_is_told(retriever: Retriever, trained_run: Path) -> None:
    right, wrong = retriever.search([Request("cold cereal", "u3"), Request("Cold ceraal", "u3")], 10)
    assert wrong.query == "Cold ceraal" and wrong.note == "read as “Cold cereal”" and right.note is None
    assert [hit.item_id for hit in wrong.hits] == [hit.item_id for hit in right.hits]
    said = onesearch("generate", "--run", trained_run, "--query", "cold ceraal", "--user", "u3").output
    assert "“cold ceraal” for household u3" in said and "read as “cold cereal”" in said


@pytest.mark.parametrize("query", ["", "   ", "狗粮 ☕ \x00", "zzzz", "coffee " * 250])
def test_any_query_is_answered(retriever: Retriever, query: str) -> None:
    known, unknown = retriever.search([Request(query, "u0"), Request(query)], 5)
    assert len(known.hits) == len(unknown.hits) == 5
    assert all(np.isfinite(hit.score) for hit in (*known.hits, *unknown.hits))


def test_a_query_of_a_hundred_thousand_characters_is_refused(retriever: Retriever) -> None:
    with pytest.raises(UserError, match=r"request 2: query too long: .*100,002 characters.*use at most 2,000"):
        retriever.search([Request("tea"), Request("x" * 100_000)], 5)


def test_a_request_is_answered_alike_alone_and_among_others(retriever: Retriever) -> None:
    requests = [Request("coffee", "u1"), Request("", None), Request("dish soap large", "u2"), Request("x y z", "u9")]
    for request, answer in zip(requests, retriever.search(requests, 6), strict=True):
        (alone,) = retriever.search([request], 6)
        assert ids(alone) == ids(answer) and alone.given == answer.given
        assert [hit.score for hit in alone.hits] == pytest.approx([hit.score for hit in answer.hits], abs=1e-4)
    assert retriever.search([], 6) == []


def test_more_than_the_catalogue_holds_gives_all_of_it_once(retriever: Retriever) -> None:
    total = len(retriever.corpus.items)
    (answer,) = retriever.search([Request("juice", "u0")], total + 20)
    assert sorted(ids(answer)) == sorted(retriever.corpus.items["item_id"])
    assert sum(np.exp(hit.score) for hit in answer.hits) == pytest.approx(1, abs=1e-3)


def test_it_finds_more_of_what_is_bought_next_than_popularity_does(retriever: Retriever) -> None:
    """On held-out requests; the favourite brand cannot be known from the query."""
    corpus = retriever.corpus
    split = make_split(corpus)
    requests = sample_requests(corpus, split, TEST, 60, seed=0)
    items, scores = retriever.rank(requests, 3)
    assert items.shape == scores.shape == (len(requests), 3)
    popular = np.argsort(-np.bincount(corpus.item[split == 0], minlength=len(corpus.items)), kind="stable")[:3]
    found = (items == requests.target[:, None]).any(1).mean()
    assert found > 2 * np.isin(requests.target, popular).mean() and found > 0.25


def test_generate_prints_a_table_and_json(trained_run: Path, retriever: Retriever) -> None:
    arguments = ("generate", "--run", trained_run, "--query", "orange juice", "--user", "u5", "-k", "4")
    shown, machine = onesearch(*arguments), onesearch(*arguments, "--json")
    assert shown.exit_code == machine.exit_code == 0, shown.output + machine.output
    answer = json.loads(machine.stdout)
    (expected,) = retriever.search([Request("orange juice", "u5")], 4)
    assert [hit["item_id"] for hit in answer["hits"]] == ids(expected)
    assert answer["known_user"] is True and answer["given"][0]["times"] == expected.given[0].times
    assert expected.hits[0].title in shown.stdout
    assert (answer["exact"], answer["mass"]) == (expected.exact, None), (
        "the generator's probabilities are the catalogue's"
    )
    assert ("no other item scores higher" in shown.stdout) == expected.exact


def test_answers_that_are_said_to_be_exact_are_those_of_scoring_every_item(retriever: Retriever) -> None:
    corpus = retriever.corpus
    requests = sample_requests(corpus, make_split(corpus), TEST, 60, seed=0)
    every = retriever.ranked(requests, 2, beams=len(corpus.items))
    narrow = retriever.ranked(requests, 2, beams=1)
    assert every.exact.all() and every.mass is None
    assert narrow.exact.any() and not narrow.exact.all(), "both occur"
    np.testing.assert_array_equal(narrow.items[narrow.exact], every.items[narrow.exact])
    np.testing.assert_allclose(narrow.scores[narrow.exact], every.scores[narrow.exact], atol=1e-4)


def test_generate_streams_a_file(trained_run: Path, retriever: Retriever, tmp_path: Path) -> None:
    lines = [{"query": "dish soap", "user": "u1", "k": 2}, {"query": "coffee", "user": "stranger"}, {"query": "chips"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ("generate", "--run", trained_run, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    done = onesearch(*arguments, "-k", "3")
    assert done.exit_code == 0, done.output
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [len(answer["hits"]) for answer in answers] == [2, 3, 3]
    assert "stranger" in answers[1]["note"] and answers[2]["note"] is None
    (tmp_path / "in.jsonl").write_text('{"query": "tea"}\n' + json.dumps({"query": "x" * 100_000}))
    (tmp_path / "out.jsonl").unlink()
    refused = onesearch(*arguments)
    (line,) = refused.stderr.splitlines()
    assert refused.exit_code == 2 and line.startswith(f"onesearch: {tmp_path / 'in.jsonl'} line 2: query too long")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"], "nothing half-written is left"


def test_a_filter_leaves_what_matches_in_the_same_order_with_the_same_scores(retriever: Retriever) -> None:
    total = len(retriever.corpus.items)
    filters = [EVERYTHING, Filter("price < 20 and brand = 'acme'"), Filter(deny=("i0", "i5")), Filter("price > 40")]
    whole, *answers = retriever.search([Request("cold cereal", "u3", one) for one in filters], total)
    price = {hit.item_id: hit.price or 0 for hit in whole.hits}
    brand = {hit.item_id: hit.brand for hit in whole.hits}
    kept = [
        [one for one in ids(whole) if price[one] < 20 and brand[one] == "acme"],
        [one for one in ids(whole) if one not in ("i0", "i5")],
        [one for one in ids(whole) if price[one] > 40],
    ]
    scores = {hit.item_id: hit.score for hit in whole.hits}
    for answer, expected in zip(answers, kept, strict=True):
        assert ids(answer) == expected and 0 < len(expected) < total
        assert [hit.score for hit in answer.hits] == pytest.approx([scores[one] for one in expected], abs=1e-4)
        assert answer.note == f"only {len(expected)} items match the filter"


def test_a_filter_that_leaves_few_returns_all_of_them_whatever_the_beam(retriever: Retriever) -> None:
    corpus = retriever.corpus
    requests = sample_requests(corpus, make_split(corpus), TEST, 20, seed=0)
    three = Filter(allow=("i47", "i3", "i20"))
    items, scores = retriever.rank(requests, 3, beams=1, filters=[three] * len(requests))
    expected = [corpus.items["item_id"].to_list().index(one) for one in three.allow or ()]
    assert (np.sort(items, 1) == np.sort(expected)).all() and np.isfinite(scores).all()
    assert (np.diff(scores, axis=1) <= 0).all()


def test_the_answer_says_how_many_match(retriever: Retriever) -> None:
    filters = [Filter("price > 1e6"), Filter(allow=("i7",)), Filter("price > 1"), Filter(allow=())]
    notes = [answer.note for answer in retriever.search([Request("coffee", None, one) for one in filters], 5)]
    nothing = "no item matches the filter"
    assert notes == [nothing, "only 1 item matches the filter", None, nothing]
    (answer,) = retriever.search([Request("coffee", "stranger", filters[0])], 5)
    assert answer.hits == []
    assert answer.note == f"user 'stranger' is not in the log: answered without history; {nothing}"


def test_many_different_filters_are_searched_in_parts(retriever: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request("dish soap", f"u{n % 9}", Filter(deny=(f"i{n % 40}",))) for n in range(60)]
    together = retriever.search(requests, 4)
    monkeypatch.setattr("onesearch.retriever.FILTER_BYTES", 1)  # one filter at once
    for one, other in zip(together, retriever.search(requests, 4), strict=True):
        assert ids(one) == ids(other)
    assert all(request.filter.deny[0] not in ids(one) for request, one in zip(requests, together, strict=True))


def test_filters_that_are_wrong_name_the_request(retriever: Retriever) -> None:
    with pytest.raises(UserError, match=r"request 2: unknown column in 'where': 'prize' \(did you mean 'price'\?\)"):
        retriever.search([Request("tea"), Request("tea", None, Filter("prize < 5"))], 5)
    with pytest.raises(UserError, match="request 1: unknown item in 'deny': 'gone'"):
        retriever.search([Request("tea", None, Filter(deny=("gone",)))], 5)


def test_items_that_were_removed_match_no_filter(trained_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    removed = onesearch("quantize", "--run", run, "--remove", "i4", "--remove", "i40")
    assert removed.exit_code == 0, removed.output
    (answer,) = Retriever.load(run).search(
        [Request("coffee", "u1", Filter("price > 40", allow=("i4", "i40", "i41")))], 5
    )
    assert ids(answer) == ["i41"] and answer.note == "only 1 item matches the filter"


def test_a_model_of_which_weights_are_missing_is_refused(trained_run: Path, tmp_path: Path) -> None:
    """The library would go on with random ones."""
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    path = run / "models/sft/model.safetensors"
    weights = load_file(path)
    weights["prior_gate.bias"] = weights.pop("sources.prior_gate.bias")
    save_file(weights, path, {"format": "pt"})
    refused = onesearch("generate", "--run", run, "--query", "orange juice")
    assert refused.exit_code == 2
    assert "models/sft: the files of this model lack weights: 'sources.prior_gate.bias' (" in refused.stderr


def test_generate_with_filters(trained_run: Path, tmp_path: Path) -> None:
    arguments = ("generate", "--run", trained_run, "--query", "orange juice", "--user", "u5", "-k", "4")
    (tmp_path / "shelf.jsonl").write_text("".join(f'{{"item_id": "i{n}"}}\n' for n in range(40, 45)))
    lists = ("--allow", tmp_path / "shelf.jsonl", "--allow", "i46", "--deny", "i41", "--deny", "i42")
    done = onesearch(*arguments, *lists, "--where", "price > 42 or brand = 'none'", "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert sorted(hit["item_id"] for hit in answer["hits"]) == ["i43", "i44", "i46"]
    assert answer["note"] == "only 3 items match the filter"
    nothing = onesearch(*arguments, "--where", "price < 0")
    assert "no item fits" in nothing.stdout and "no item matches the filter" in nothing.stdout
    for wrong, message in (
        (("--where", "price < 'abc'"), "command line: wrong type in 'where', cannot compare string with"),
        (("--deny", "nothing"), "command line: unknown item in 'deny': 'nothing' (name items of the catalogue)"),
    ):
        refused = onesearch(*arguments, *wrong)
        (line,) = refused.stderr.splitlines()
        assert refused.exit_code == 2 and message in line


def test_a_file_of_requests_with_filters(trained_run: Path, tmp_path: Path) -> None:
    lines = [
        {"query": "chips", "k": 3, "where": "brand = 'dune'", "deny": ["i7"]},
        {"query": "chips", "k": 3},
        {"query": "chips", "user": "u2", "k": 3, "allow": ["i2", "i1"]},
    ]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines * 30))
    arguments = ("generate", "--run", trained_run, "--input", source, "--output", target)
    done = onesearch(*arguments)
    assert done.exit_code == 0, done.output
    answers = [json.loads(line) for line in target.read_text().splitlines()]
    assert {hit["brand"] for hit in answers[0]["hits"]} == {"dune"} and len(answers[0]["hits"]) == 3
    assert sorted(hit["item_id"] for hit in answers[2]["hits"]) == ["i1", "i2"]
    one, same = answers[0]["hits"], answers[87]["hits"]  # float32 in one batch: scores agree to some 1e-6
    assert [hit.pop("score") for hit in one] == pytest.approx([hit.pop("score") for hit in same], abs=1e-4)
    assert one == same and answers[1]["note"] is None
    for wrong, message in (
        ({"where": "prize < 5"}, "unknown column in 'where': 'prize' (did you mean 'price'?)"),
        ({"allow": ["i1", "i99"]}, "unknown item in 'allow': 'i99' (name items of the catalogue)"),
    ):
        source.write_text(json.dumps(lines[0]) + "\n" + json.dumps({"query": "chips", **wrong}) + "\n")
        refused = onesearch(*arguments)
        assert refused.exit_code == 2
        assert refused.stderr.splitlines() == [f"onesearch: {source} line 2: {message}"]


def test_a_run_without_a_model_says_how_to_train_one(quantized_run: Path) -> None:
    result = onesearch("generate", "--run", quantized_run, "--query", "tea")
    assert result.exit_code == 2
    assert f"no trained generator (onesearch train --run {quantized_run})" in result.stderr


def test_semantic_ids_of_another_catalogue_are_noticed(trained_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    table = SidTable.load(run / "sid")
    other = SidTable(pl.Series([f"x{n}" for n in range(len(table.codes))]), table.codes, table.level_sizes, table.order)
    other.save(run / "sid")
    with pytest.raises(UserError, match=r"the SID table is of another catalogue \(onesearch quantize --run"):
        Retriever.load(run)
