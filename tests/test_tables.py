"""What the terminal shows, rendered from plain values."""

import io
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from onesearch.demo import ending, results_view, watched_memory
from onesearch.tables import answer_table, facts_table, slices_table, steps_table, systems_table


def rendered(part: RenderableType, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def score(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}


RESULTS: dict[str, Any] = {
    "queries": 10_000,
    "systems": {"cascade": {"mrr@10": score(0.49)}, "generator": {"mrr@10": score(0.505)}},
    "strongest_baseline": "cascade",
    "differences": {"generator": {"mrr@10": {"mean": 0.015, "low": 0.009, "high": 0.021}}},
    "slices": {
        "noise": {"clean": {"queries": 5000, "systems": {"cascade": {"mrr@10": 0.5}, "generator": {"mrr@10": 0.6}}}}
    },
}
ANSWER: dict[str, Any] = {
    "query": "cold [bold]cereal",
    "user": "1001",
    "known_user": True,
    "exact": True,
    "mass": None,
    "note": None,
    "hits": [
        {
            "item_id": "42",
            "title": "Oats [18 oz]",
            "brand": "National",
            "price": 2.5,
            "score": -1.234,
            "sid": "<a_1><b_2>",
            "bought_before": 3,
        },
        {
            "item_id": "43",
            "title": "Bran",
            "brand": None,
            "price": None,
            "score": -2.0,
            "sid": "<a_1><b_3>",
            "bought_before": 0,
        },
    ],
    "given": [{"item_id": str(n), "title": f"item {n}", "times": n + 1, "days_ago": 3.4} for n in range(7)],
}


def test_systems_with_intervals_and_the_difference() -> None:
    text = " ".join(rendered(systems_table(RESULTS)).split())
    assert "10,000 held-out searches" in text
    assert ".505" in text and ".495–.515" in text
    assert "generator +.015 − cascade +.009 to +.021" in text
    assert "Recall@1" not in text, "a metric that no system has gets no column"


def test_slices_of_every_system() -> None:
    text = rendered(slices_table(RESULTS))
    assert "noise clean" in text and "5,000" in text and ".600" in text


def test_an_answer_shows_hits_what_was_bought_before_and_why() -> None:
    text = rendered(answer_table(ANSWER), width=300)
    assert "cold [bold]cereal" in text and "Oats [18 oz]" in text, "brackets of a title are no markup"
    assert "2.50" in text and "-1.23" in text and "<a_1><b_2>" in text and "✓ 3×" in text
    assert "item 0 (1×, 3 days ago)" in text and "and 2 more" in text
    assert "on offer" not in text, "nothing is"


def test_an_answer_shows_what_is_on_offer() -> None:
    hits = [
        {**hit, "on_offer": kinds} for hit, kinds in zip(ANSWER["hits"], (["display", "[mailer]"], []), strict=True)
    ]
    text = rendered(answer_table({**ANSWER, "hits": hits}), width=300)
    assert "on offer" in text and "display, [mailer]" in text


def test_an_unknown_user_is_told_and_no_hits_are_said() -> None:
    text = rendered(answer_table({**ANSWER, "user": None, "hits": [], "given": [], "note": "answered without history"}))
    assert "answered without history" in text and "no item fits" in text and "why" not in text


def test_the_demo_ends_with_tables_searches_report_time_and_memory() -> None:
    text = rendered(results_view(RESULTS, [ANSWER, ANSWER]))
    assert text.index("MRR@10") < text.index("by slice") < text.index("two households")
    assert text.count("Oats") == 2
    last = rendered(ending(Path("runs/demo/report.html"), 754.2, 2.345))
    assert "runs/demo/report.html" in last and "12 min 34 s" in last and "2.3 GB" in last


def test_memory_is_that_of_all_processes_together() -> None:
    with watched_memory() as peak:
        deadline = time.monotonic() + 20
        while (before := peak()) == 0:
            assert time.monotonic() < deadline
        call = [sys.executable, "-c", "held = bytearray(b'x') * 400_000_000; input()"]
        with subprocess.Popen(call, stdin=subprocess.PIPE) as child:
            while peak() < before + 0.4:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            child.communicate(b"\n")
        assert before + 0.4 <= peak() < before + 0.8


def test_what_a_run_holds() -> None:
    manifest = {"steps": {"prepare": {"seconds": 9.25, "outputs": {"corpus": {}}}}}
    assert "9.2" in rendered(steps_table(manifest)) and "corpus" in rendered(steps_table(manifest))
    assert "13,198" in rendered(facts_table("corpus", {"items": 13_198, "clock": True, "share": 0.25}))
