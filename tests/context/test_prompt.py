"""The template of a prompt: what stands where, and what is dropped when it does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny_backbones import tokenizer

from onesearch.context.prompt import PromptOptions, PromptWriter, RelevantPurchases, TextTokens
from onesearch.context.relevance import RelevanceSpace
from onesearch.corpus import Corpus, Requests, item_texts
from onesearch.ragged import Ragged

LEVELS = (48, 2)


@pytest.fixture
def words() -> TextTokens:
    known = tokenizer()
    known.add_tokens([f"<a_{code}>" for code in range(LEVELS[0])] + [f"<b_{code}>" for code in range(LEVELS[1])])
    return TextTokens(known, encoder=False)


def writer(shop: Corpus, words: TextTokens, options: PromptOptions, encoder: Any = None) -> PromptWriter:
    """Item n has the semantic ID <a_n><b_0>, every query <a_0>."""
    first = words.tokenizer.convert_tokens_to_ids("<a_0>")
    items = len(shop.items)
    tokens = np.stack([first + np.arange(items), np.full(items, first + LEVELS[0])], 1)
    relevant = None
    if options.history == "relevant":
        relevant = RelevantPurchases(shop, RelevanceSpace.fit(item_texts(shop), encoder), options.items)
    return PromptWriter(shop, words, tokens, options, relevant, lambda texts: Ragged.repeated([first], len(texts)))


def texts(words: TextTokens, tokens: Ragged) -> list[str]:
    return [words.tokenizer.decode(row).replace("< ", "<").replace(" >", ">") for row in tokens.rows()]


def last_events(shop: Corpus, number: int = 5) -> np.ndarray:
    return shop.offsets[1 : number + 1] - 1


def test_the_template(shop: Corpus, words: TextTokens) -> None:
    made = writer(shop, words, PromptOptions("recent", items=2, searches=2, tokens=96))
    event = last_events(shop, 1)
    request = Requests.of(shop, event)
    (text,) = texts(words, made.write(request).tokens)
    start, end = int(request.history_start[0]), int(request.history_end[0])
    latest, searches = [], []
    for past in range(end - 1, start - 1, -1):
        if shop.item[past] not in [item for item, _ in latest]:
            latest.append((int(shop.item[past]), int((shop.item[start:end] == shop.item[past]).sum())))
        if shop.queries[shop.query[past]] not in searches:
            searches.append(shop.queries[shop.query[past]])
    bought = " ; ".join(f"<a_{item}> <b_0>" + (f" x{count}" if count > 1 else "") for item, count in latest[:2])
    expected = f"Query : {request.query[0]} Semantic ID : <a_0> Searched : {' ; '.join(searches[:2])} "
    assert " ".join(text.split()) == expected + f"Bought : {bought} Answer :"


def test_lines_without_content_are_left_out(shop: Corpus, words: TextTokens) -> None:
    nobody = Requests(
        event=np.array([-1]), user=np.array([-1], np.int32), target=np.array([-1], np.int32), time=np.array([0]),
        history_start=np.array([0]), history_end=np.array([0]), place=np.array([-1], np.int32),
        device=np.array([-1], np.int32),
        query=["cold cereal"],
    )  # fmt: skip
    made = writer(shop, words, PromptOptions("recent", query_sid=False))
    assert texts(words, made.write(nobody).tokens) == ["Query : cold cereal Answer :"]
    assert (made.write(nobody).event == -1).all()
    without = writer(shop, words, PromptOptions("none", query_sid=True)).write(Requests.of(shop, last_events(shop)))
    assert all("Bought" not in text and "<a_0>" in text for text in texts(words, without.tokens))


def test_what_does_not_fit_is_dropped_oldest_first_and_counted_and_never_the_query(
    shop: Corpus, words: TextTokens, caplog: pytest.LogCaptureFixture
) -> None:
    requests = Requests.of(shop, last_events(shop))
    whole = writer(shop, words, PromptOptions("recent", items=6, searches=3, tokens=200)).write(requests)
    assert whole.dropped == 0
    for room in (12, 24, 32, 40):
        short = writer(shop, words, PromptOptions("recent", items=6, searches=3, tokens=room))
        cut = short.write(requests)
        caplog.clear()
        short.room.report("training")
        (told,) = caplog.messages
        assert cut.dropped > 0 and told.startswith(
            f"training: {cut.dropped} past purchases and queries, the oldest of "
        )
        assert told.endswith(f" of 5 requests, did not fit into {room} positions")
        for text, query in zip(texts(words, cut.tokens), requests.query, strict=True):
            assert text.startswith(f"Query : {query} Semantic ID : <a_0>") and text.endswith("Answer :")
        if room > 12:
            assert (cut.tokens.lengths <= room).all()
        kept = [set(row[row >= 0].tolist()) for row in cut.event]
        for some, row in zip(kept, whole.event, strict=True):
            dropped = set(row[row >= 0].tolist()) - some
            assert some <= set(row.tolist()) and (not some or not dropped or max(dropped) < min(some))


def test_relevant_purchases_come_first(shop: Corpus, words: TextTokens, word_encoder: Any) -> None:
    made = writer(shop, words, PromptOptions("relevant", items=1), word_encoder)
    requests = Requests.of(shop, last_events(shop, 20))
    given = made.write(requests).event[:, 0]
    kind = [str(shop.items["title"][int(shop.item[event])]).rsplit(" ", 1)[0] for event in given]
    same = [query.startswith(one) for query, one in zip(requests.query, kind, strict=True)]
    assert np.mean(same) > 0.8, "what was bought before of the kind that is asked for"


def test_a_request_alone_reads_as_in_a_batch(shop: Corpus, words: TextTokens) -> None:
    made = writer(shop, words, PromptOptions("recent", tokens=40))
    requests = Requests.of(shop, last_events(shop))
    together = made.write(requests).tokens.rows()
    assert together == [made.write(requests.part(slice(row, row + 1))).tokens.rows()[0] for row in range(5)]


def test_keywords_follow_the_history(shop: Corpus, words: TextTokens) -> None:
    made = writer(shop, words, PromptOptions("recent"))
    requests = Requests.of(shop, last_events(shop, 1))
    (text,) = texts(words, made.write(requests, words(["acme"])).tokens)
    assert text.endswith("Keywords : acme Answer :")
    (text,) = texts(words, made.write(requests, text=False, ask="Keyword:").tokens)
    assert text.startswith("Semantic ID : <a_0>") and text.endswith("Keyword :")


def test_what_a_model_expects_around_a_text_is_kept() -> None:
    framed = TextTokens(tokenizer(frame=True), encoder=True)
    assert framed.before == [] and framed.after == [2]
    assert TextTokens(tokenizer(frame=True), encoder=False).after == [], "a causal model goes on"
