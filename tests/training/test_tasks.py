"""Tasks and their mixture: what each reads and writes, and the order in which a training sees them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from tiny_backbones import tokenizer

from onesearch.context.prompt import PromptOptions, PromptWriter, TextTokens
from onesearch.corpus import TRAIN, Corpus, make_split
from onesearch.errors import UserError
from onesearch.ragged import Ragged
from training.material import Example, Material
from training.mixture import ROWS, Collator, Maker, Mixture, Stage, read_stages
from training.objective import IGNORED
from training.tasks import TASKS, find_task, missing_columns


@pytest.fixture(scope="module")
def data(shop: Corpus) -> Material:
    """Item n has the semantic ID <a_n><b_0>, every other text <a_0>."""
    known = tokenizer()
    items = len(shop.items)
    known.add_tokens([f"<a_{code}>" for code in range(items)] + ["<b_0>"])
    first = known.convert_tokens_to_ids("<a_0>")
    sid_tokens = np.stack([first + np.arange(items), np.full(items, first + items)], 1)
    writer = PromptWriter(
        shop, TextTokens(known, encoder=False), sid_tokens, PromptOptions("recent", items=2, searches=0), None,
        lambda texts: Ragged.repeated([first], len(texts)),
    )  # fmt: skip
    split = make_split(shop)
    targets = np.flatnonzero(split == TRAIN)
    return Material(shop, split, writer, sid_tokens, targets, np.arange(items), known.eos_token_id)


def said(data: Material, name: str, rows: list[int]) -> list[tuple[str, str]]:
    """Prompts and answers of a task as text."""
    example = TASKS[name].build(data, np.array(rows, np.int64))
    known = data.words.tokenizer
    return [
        (" ".join(known.decode(prompt).split()), " ".join(known.decode(answer).split()))
        for prompt, answer in zip(example.prompt.rows(), example.answer.rows(), strict=True)
    ]


def test_the_texts_and_semantic_ids_of_items_and_queries(data: Material) -> None:
    title = data.corpus.items["title"][5]
    assert said(data, "item-text-to-sid", [5]) == [(f"Item : {title} Semantic ID :", "<a_5> <b_0>")]
    assert said(data, "item-sid-to-text", [5]) == [("Semantic ID : <a_5> <b_0> Item :", f"{title} <end>")]
    query = data.corpus.queries[3]
    assert said(data, "query-text-to-sid", [3]) == [(f"Query : {query} Semantic ID :", "<a_0>")]
    assert said(data, "query-sid-to-text", [3]) == [("Semantic ID : <a_0> Query :", f"{query} <end>")]


def test_what_was_searched_and_bought(data: Material) -> None:
    event = int(data.targets[7])
    item, query = int(data.corpus.item[event]), data.corpus.queries[data.corpus.query[event]]
    title = data.corpus.items["title"][item]
    assert said(data, "query-to-item-text", [event]) == [(f"Query : {query} Item :", f"{title} <end>")]
    assert said(data, "item-to-query-text", [event]) == [(f"Item : {title} Query :", f"{query} <end>")]
    assert said(data, "query-sid-to-item-sid", [event]) == [("Semantic ID : <a_0> Bought :", f"<a_{item}> <b_0>")]
    assert said(data, "item-sid-to-query-sid", [event]) == [(f"Semantic ID : <a_{item}> <b_0> Searched :", "<a_0>")]


def test_a_personalised_example_never_sees_its_own_visit(data: Material) -> None:
    corpus = data.corpus
    events = data.targets[::9]
    requests = data.requests(events)
    given = data.writer.write(requests).event
    for event, row in zip(events, given, strict=True):
        past = row[row >= 0]
        assert (past < corpus.history_end[event]).all() and (corpus.user[past] == corpus.user[event]).all()
    for (prompt, answer), event in zip(said(data, "personalised", events.tolist()), events, strict=True):
        assert prompt.startswith(f"Query : {corpus.queries[corpus.query[event]]} ") and prompt.endswith("Answer :")
        assert answer == f"<a_{corpus.item[event]}> <b_0>"


@pytest.fixture(scope="module")
def worded(data: Material) -> Material:
    """The same with words of the titles as keywords, since the shop's only ones are its brands."""
    from onesearch.embed.keywords import Keywords

    data.__dict__["keywords"] = Keywords(["cereal", "coffee", "small", "large", "acme", "bluebird"])
    return data


def test_the_four_keyword_tasks(worded: Material) -> None:
    data, corpus = worded, worded.corpus
    query = corpus.queries.index("cold cereal large")
    assert said(data, "query-to-keywords", [query]) == [
        ("Query : cold cereal large Keywords :", "cereal , large <end>")
    ]
    assert said(data, "query-sid-to-keyword-sid", [query]) == [("Semantic ID : <a_0> Keyword :", "<a_0>")]
    event = int(data.wished_events[-1])
    ((prompt, answer),) = said(data, "user-to-keywords", [event])
    asked = corpus.queries[corpus.query[event]]
    assert prompt.startswith(f"Query : {asked} ") and prompt.endswith("Keywords :")
    assert set(answer.replace("<end>", "").replace(",", " ").split()) & set(asked.split())
    ((prompt, answer),) = said(data, "user-sid-to-keyword-sid", [event])
    assert prompt.startswith("Semantic ID : <a_0>") and asked not in prompt and answer == "<a_0>"


def test_a_wish_is_what_is_asked_and_what_the_user_is_known_to_like(worded: Material) -> None:
    data, corpus = worded, worded.corpus
    events = data.wished_events
    wishes, given = data.wishes(events), data.writer.write(data.requests(events)).event
    names = data.keywords.texts
    brand = corpus.items["brand"].to_list()
    liked = 0
    for event, row, past in zip(events, wishes.rows(), given, strict=True):
        words = {names[one] for one in row}
        assert {word for word in corpus.queries[corpus.query[event]].split() if word in names} <= words
        bought = brand[corpus.item[event]]
        known = {brand[corpus.item[one]] for one in past if one >= 0}
        if bought in names and len(row) < 4:
            assert (bought in words) == (bought in known)
            liked += bought in known
    assert liked > 10


def test_every_task_gives_a_prompt_and_an_answer(worded: Material) -> None:
    for name, task in TASKS.items():
        rows = task.rows(worded)
        if missing_columns(task, worded.corpus):
            assert "items.categories" in task.needs, name
            continue
        example = task.build(worded, rows[:5])
        assert (example.prompt.lengths > 0).all() and (example.answer.lengths > 0).all(), name


def test_an_unknown_task_is_told_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown task: 'personalized' \(did you mean 'personalised'\?\)"):
        find_task("personalized")
    with pytest.raises(UserError, match="no stages"):
        read_stages([], "stages")


def mixture(data: Material, batch: int, seed: int = 0) -> tuple[list[Any], list[int]]:
    tasks = [find_task("item-text-to-sid"), find_task("item-sid-to-text"), find_task("personalised")]
    first = Stage("first", 6, ((tasks[0], 3.0), (tasks[1], 1.0)))
    return tasks, list(Mixture([first, Stage("second", 4, ((tasks[2], 1.0),))], Maker(tasks, data), batch, seed))


def test_stages_follow_each_other_in_the_proportions_of_their_tasks(data: Material) -> None:
    _, numbers = mixture(data, 32)
    assert len(numbers) == 32 * 10
    kinds = [number // ROWS for number in numbers]
    assert set(kinds[: 32 * 6]) == {0, 1} and set(kinds[32 * 6 :]) == {2}
    share = Counter(kinds[: 32 * 6])
    assert 0.65 < share[0] / (share[0] + share[1]) < 0.85


def test_a_task_runs_through_its_rows_before_one_comes_again(data: Material) -> None:
    _, numbers = mixture(data, 32)
    rows = [number % ROWS for number in numbers if number // ROWS == 0]
    items = len(data.items)
    assert len(rows) > 2 * items
    assert max(Counter(rows).values()) - min(Counter(rows).values()) <= 1


def test_the_order_depends_on_the_seed_alone(data: Material) -> None:
    assert mixture(data, 32)[1] == mixture(data, 32)[1] != mixture(data, 32, seed=1)[1]


def test_batches_hold_similar_lengths(data: Material) -> None:
    tasks, numbers = mixture(data, 8)
    first = np.array(numbers[: 8 * 6])
    padded = Maker(tasks, data).prepare(first).reshape(6, 8)
    shuffled = np.random.default_rng(0).permutation(padded.ravel()).reshape(6, 8)
    assert padded.max(1).sum() < shuffled.max(1).sum()


def test_a_batch_of_several_tasks_keeps_its_order(data: Material) -> None:
    tasks, _ = mixture(data, 8)
    numbers = np.array([2 * ROWS + int(data.targets[3]), 5, ROWS + 6, 7])
    maker = Maker(tasks, data)
    maker.prepare(numbers[[3, 0, 1, 2, 0]])
    together = maker(numbers)
    for place, number in enumerate(numbers):
        alone = Maker(tasks, data)(numbers[place : place + 1])
        assert together.prompt.rows()[place] == alone.prompt.rows()[0], number
        assert together.answer.rows()[place] == alone.answer.rows()[0]


def test_labels_are_said_by_the_token_before_them() -> None:
    example = Example(Ragged.of([[5, 6], [7]]), Ragged.of([[8, 9], [10, 11]]))
    causal = Collator(None, 0, None)._tensors(example)  # type: ignore[arg-type]
    assert causal["input_ids"].tolist() == [[5, 6, 8], [7, 10, 11]]
    assert causal["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert causal["labels"].tolist() == [[IGNORED, 8, 9], [10, 11, IGNORED]]
    seq2seq = Collator(None, 0, 2)._tensors(example)  # type: ignore[arg-type]
    assert seq2seq["input_ids"].tolist() == [[5, 6], [7, 0]] and seq2seq["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert seq2seq["decoder_input_ids"].tolist() == [[2, 8], [2, 10]]
    assert seq2seq["labels"].tolist() == [[8, 9], [10, 11]]


def test_a_teacher_reads_keywords_where_an_example_is_personalised(worded: Material) -> None:
    tasks, _ = mixture(worded, 8)
    event = int(worded.wished_events[-1])
    batch = Collator(Maker(tasks, worded), 0, None, keywords=True)([2 * ROWS + event, 5])
    known = worded.words.tokenizer
    assert "Keywords" in known.decode(batch["teacher_ids"][0]) and "Keywords" not in known.decode(batch["input_ids"][0])
    assert batch["teacher_ids"][1][:4].tolist() == batch["input_ids"][1][:4].tolist()
    mine, taught = (batch[name][batch[name] != IGNORED].tolist() for name in ("labels", "teacher_labels"))
    assert mine == taught
