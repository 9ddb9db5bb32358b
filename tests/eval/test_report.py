"""The report page: whole, honest about what is missing, safe with whatever a catalogue holds, and without network."""

import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from eval.charts import HeatMap, Interval, Line, alone, heat_maps, interval_plot, line_plot, usage_plot
from eval.report import headline, training_curves, write_report
from onesearch.run import Run
from onesearch.settings import Settings

HOSTILE = "<script>alert('x')</script> & “quotes”"


def score(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}


def results(low: float = 0.01, high: float = 0.03) -> dict[str, Any]:
    systems = {"popularity": 0.05, "cascade": 0.48, "generator": 0.5}
    metrics = ("recall@10", "mrr@10", "ndcg@10")
    sliced = {name: dict.fromkeys(metrics, value) for name, value in systems.items()}
    return {
        "queries": 1234,
        "exact_share": 0.25,
        "systems": {name: {metric: score(value) for metric in metrics} for name, value in systems.items()},
        "strongest_baseline": "cascade",
        "differences": {"generator": {metric: {"mean": 0.02, "low": low, "high": high} for metric in metrics}},
        "slices": {
            "query noise": {
                "clean": {"queries": 600, "systems": sliced},
                "misspelt": {"queries": 634, "systems": sliced},
            }
        },
        "tuned": {"bm25": {"k1": 1.2}},
    }


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "trial", Settings())


@pytest.fixture
def full(run: Run) -> Run:
    hit = {
        "item_id": "1",
        "title": HOSTILE,
        "brand": None,
        "price": 1.0,
        "score": -1.0,
        "sid": "<a_1><b_0>",
        "bought_before": 2,
    }
    given = [{"item_id": "1", "title": "oats", "times": 2, "days_ago": None}]
    answer = {"query": HOSTILE, "user": "7", "known_user": True, "note": None, "hits": [hit], "given": given}
    write(run.folder / "eval/recall.json", results())
    write(run.folder / "eval/searches.json", [answer, {**answer, "user": "8"}, {**answer, "query": "b"}])
    write(run.folder / "models/sft/log_history.json", [{"step": s, "loss": 9 / s} for s in (1, 2, 3)])
    write(
        run.folder / "sid/usage.json",
        {"level_sizes": [4], "usage": [[3, 0, 1, 0]], "metrics": {"items": 4, "error": 0.25}},
    )
    write(run.folder / "corpus/corpus.json", {"items": 4, "source": "jsonl"})
    run.step("prepare", lambda: None, writes=("corpus",))
    return run


class Elements(HTMLParser):
    """All elements with their attributes, and whether every one is closed."""

    VOID = ("meta", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_full_report_holds_every_part_and_asks_for_nothing_outside(full: Run) -> None:
    page = write_report(full.folder).read_text(encoding="utf-8")
    elements = Elements(page)
    assert not elements.open
    kinds = [tag for tag, _ in elements.found]
    assert kinds.count("svg") == 3 + 1 + 1 + 1  # metrics, slice panel, loss, level
    assert not {"script", "link", "img", "iframe"} & set(kinds)
    assert not any("src" in attributes or "href" in attributes for _, attributes in elements.found)
    assert "url(" not in page and "@import" not in page
    assert "Left out" not in page
    for text in (
        "generator − cascade",
        "In 25 % of the searches",
        "+.020",
        "query noise",
        "2 of 4 codes in use",
        "the fullest holds 75.0 %",
        "✓ 2×",
    ):
        assert text in page, text


def test_what_a_catalogue_holds_is_text_and_never_markup(full: Run) -> None:
    page = write_report(full.folder).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; “quotes”" in page


def test_a_run_without_results_says_what_is_missing(run: Run) -> None:
    page = write_report(run.folder).read_text(encoding="utf-8")
    assert not Elements(page).open
    assert "has not been evaluated yet" in page
    assert page.count("Left out") == 4


@pytest.mark.parametrize(
    "low, high, word", [(0.01, 0.03, "above"), (-0.03, -0.01, "below"), (-0.01, 0.01, "not told apart")]
)
def test_the_headline_follows_the_interval(low: float, high: float, word: str) -> None:
    text = headline(results(low, high))
    assert word in text and "50 % of 1,234" in text and "cascade" in text


def test_every_metric_of_the_trainer_gets_its_curve() -> None:
    log = [{"step": s, "loss": 1.0, "eval_loss": 1.0, "eval_mrr": 0.1 * s, "eval_runtime": 3.0} for s in (1, 2)]
    assert [title for title, _ in training_curves([*log, {"step": 2, "train_runtime": 9.0}])] == [
        "loss",
        "mrr, validation",
    ]
    assert training_curves([{"step": 1, "loss": 1.0}]) == []


def test_a_chart_alone_has_strokes_for_its_lines() -> None:
    plot = interval_plot("t", [Interval("a", 0.5, 0.4, 0.6), Interval("b", 0.45, 0.4, 0.5)])
    picture = ET.fromstring(alone(plot))
    style = picture.findtext("{http://www.w3.org/2000/svg}style") or ""
    kinds = {line.get("class", "").strip() for line in picture.iter("{http://www.w3.org/2000/svg}line")}
    assert kinds == {"grid", "whisker"} and all(f".{kind}{{stroke:" in style for kind in kinds)


def test_names_of_maps_do_not_run_into_each_other() -> None:
    maps = [HeatMap(name, [[1.0]], [("query", 1)]) for name in ("a model with a long name", "another")]
    first, second = list(ET.fromstring(heat_maps("t", maps)).iter("{http://www.w3.org/2000/svg}text"))[::2]
    assert float(second.get("x", 0)) - float(first.get("x", 0)) > 6 * len(maps[0].name)


def test_charts_are_well_formed_and_ordered() -> None:
    plot = interval_plot(
        "MRR <10>", [Interval("a", 0.4, 0.39, 0.41), Interval("b&c", 0.5, 0.49, 0.51), Interval("z", 0.01, 0, 0.02)]
    )
    names = [text.text for text in ET.fromstring(plot).iter("text") if text.get("text-anchor") == "end"]
    assert names == ["b&c", "a", "z"]
    centres = [float(dot.get("cx", 0)) for dot in ET.fromstring(plot).iter("circle")]
    assert len(centres) == 2 and centres[0] > centres[1], "the system below the axis is written, not drawn"
    assert "◂ .010" in plot


def test_usage_is_drawn_fullest_first_and_its_area_is_the_count() -> None:
    polygon = ET.fromstring(usage_plot("level a", [1, 0, 3, 0], width=40, height=104)).find("polygon")
    assert polygon is not None
    heights = [104 - float(point.split(",")[1]) for point in polygon.get("points", "").split()[1:-1]]
    assert heights[::2] == heights[1::2] == pytest.approx([100, 100 / 3, 0, 0], abs=0.01)


def test_labels_at_the_end_of_curves_do_not_overlap() -> None:
    plot = line_plot("loss", [Line("a", [(1, 5), (2, 1.01)]), Line("b", [(1, 5), (2, 1.0)])])
    ends = [float(text.get("y", 0)) for text in ET.fromstring(plot).iter("text") if text.get("text-anchor") == "start"]
    assert abs(ends[0] - ends[1]) >= 12
