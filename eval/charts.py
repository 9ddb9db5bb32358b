"""Charts as inline SVG: they take their colours from the page, so one file serves light and dark, screen and paper.

Classes: `own` marks the system the report is about, `rival` the strongest baseline; everything else is drawn faintly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from onesearch.tables import spell_number

ROW = 22
"""Height of a row of a dot plot."""

FONT = 11
"""Pixels of the text of a picture that is a file of its own."""

STYLE = (
    ".grid{stroke:currentColor;stroke-opacity:.15}"
    ".whisker{stroke:currentColor;stroke-width:1.5;stroke-opacity:.6}"
    ".tick{fill-opacity:.6}"
)
"""Of such a picture."""

AXIS_FROM = 0.6

CURVES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours that the colour-blind can tell apart (Okabe and Ito)."""


@dataclass(frozen=True)
class Interval:
    """A mean with its interval."""

    name: str
    mean: float
    low: float
    high: float
    kind: str = ""


@dataclass(frozen=True)
class DotRow:
    """One row of a dot plot: a label, how many requests, and a value per system as (system, value, class)."""

    label: str
    count: int
    dots: Sequence[tuple[str, float, str]]


@dataclass(frozen=True)
class Line:
    """A curve of (x, y) points."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: str = ""


@dataclass(frozen=True)
class HeatMap:
    """Shares (rows, columns) of one model; `parts` names the rows from the top, and the columns, with their number."""

    name: str
    values: Sequence[Sequence[float]]
    parts: Sequence[tuple[str, int]]


def interval_plot(title: str, intervals: Sequence[Interval], width: int = 300, labels: int = 88) -> Markup:
    """Means as dots with whiskers, one row a system, best first.

    The axis begins at `AXIS_FROM` of the best mean, so that close systems can be told apart; a system below it is
    written as a number beside an arrow.
    """
    rows = sorted(intervals, key=lambda one: -one.mean)
    floor = AXIS_FROM * rows[0].mean
    low, high, ticks = _axis(floor, max(one.high for one in rows))
    height = ROW * len(rows) + 30

    def x(value: float) -> float:
        return labels + (value - low) / (high - low) * (width - labels - 12)

    parts = _grid(ticks, x, 4, height - 24)
    for place, one in enumerate(rows):
        y = 4 + ROW * (place + 0.5)
        parts.append(_text(labels - 10, y + 4, one.name, "end", one.kind or "quiet"))
        if one.low < low:
            parts.append(_text(labels, y + 4, f"◂ {spell_number(one.mean)}", "start", one.kind or "quiet"))
            continue
        parts.append(_tag("line", x1=x(one.low), x2=x(one.high), y1=y, y2=y, class_=f"whisker {one.kind}"))
        tip = f"{one.name}: {spell_number(one.mean)} ({spell_number(one.low)} to {spell_number(one.high)})"
        parts.append(_tag("circle", _tag("title", escape(tip)), cx=x(one.mean), cy=y, r=4, class_=f"dot {one.kind}"))
    return _svg(title, width, height, parts)


def dot_plot(
    title: str, rows: Sequence[DotRow], low: float, high: float, width: int = 400, labels: int = 112
) -> Markup:
    """One row a value of a slice, one dot a system, on a given axis so that panels can be compared."""
    low, high, ticks = _axis(low, high)
    height = ROW * len(rows) + 30

    def x(value: float) -> float:
        return labels + (value - low) / (high - low) * (width - labels - 12)

    parts = _grid(ticks, x, 4, height - 24)
    for place, row in enumerate(rows):
        y = 4 + ROW * (place + 0.5)
        parts.append(_text(labels - 10, y + 4, row.label, "end", ""))
        for system, value, kind in sorted(row.dots, key=lambda dot: dot[2] == "own"):
            tip = _tag("title", escape(f"{system}: {spell_number(value)}, {row.count:,} searches"))
            parts.append(_tag("circle", tip, cx=x(value), cy=y, r=4 if kind else 2.5, class_=f"dot {kind}"))
    return _svg(title, width, height, parts)


def line_plot(title: str, lines: Sequence[Line], width: int = 460, height: int = 200) -> Markup:
    """Curves over one axis; a curve's name stands at its end."""
    points = [point for line in lines for point in line.points]
    left, right = 44, 84
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    low, high, ticks = _axis(min(y for _, y in points), max(y for _, y in points))

    def x(value: float) -> float:
        return left + (value - first) / max(last - first, 1e-9) * (width - left - right)

    def y(value: float) -> float:
        return 8 + (high - value) / (high - low) * (height - 36)

    parts = []
    for tick in ticks:
        parts.append(_tag("line", x1=left, x2=width - right, y1=y(tick), y2=y(tick), class_="grid"))
        parts.append(_text(left - 8, y(tick) + 4, f"{tick:g}", "end", "tick"))
    for place in (first, last):
        parts.append(_text(x(place), height - 8, f"{place:,.0f}", "middle", "tick"))
    parts.append(_text(x((first + last) / 2), height - 8, "steps", "middle", "tick"))
    label_y = -math.inf
    for line in sorted(lines, key=lambda line: -line.points[-1][1]):
        path = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in line.points)
        parts.append(_tag("polyline", points=path, class_=f"curve {line.kind}"))
        end_x, end_y = line.points[-1]
        label_y = max(y(end_y) + 4, label_y + 15)  # below the label before it, not over it
        parts.append(_text(x(end_x) + 6, label_y, f"{line.name} {end_y:.3g}", "start", line.kind or "quiet"))
    return _svg(title, width, height, parts)


def usage_plot(title: str, counts: Sequence[int], width: int = 220, height: int = 96) -> Markup:
    """How many items each code of a level has, the fullest code first; the line is an even share."""
    ordered = sorted(counts, reverse=True)
    top = max(ordered[0], 1)
    step = width / len(ordered)
    outline = [f"0,{height}"]
    for place, count in enumerate(ordered):
        y = height - count / top * (height - 4)
        outline += [f"{place * step:.2f},{y:.2f}", f"{(place + 1) * step:.2f},{y:.2f}"]
    even = height - sum(ordered) / len(ordered) / top * (height - 4)
    parts = [
        _tag("polygon", points=" ".join([*outline, f"{width},{height}"]), class_="area"),
        _tag("line", x1=0, x2=width, y1=even, y2=even, class_="even"),
    ]
    return _svg(title, width, height, parts)


def heat_maps(title: str, maps: Sequence[HeatMap], cell: int = 11) -> Markup:
    """Squares beside each other, darker where the share is larger; readable on its own, without a style sheet."""
    labels, gap, top = 72, 24, 22
    width, height, parts = 0, 0, []
    for one in maps:
        left = width + labels
        parts.append(_text(left, 14, one.name, "start", ""))
        for row, values in enumerate(one.values):
            for column, value in enumerate(values):
                tip = _tag("title", f"{row + 1} reads {column + 1}: {spell_number(value)}")
                place = {"x": left + column * cell, "y": top + row * cell, "width": cell, "height": cell}
                shade = "0" if value < 0.001 else f"{min(value, 1) ** 0.5:.2f}"  # small shares can be told apart
                parts.append(_tag("rect", tip, **place, fill="currentColor", fill_opacity=shade))
        size, start = len(one.values) * cell, 0
        for label, count in one.parts:
            y = top + (start + count / 2) * cell + 4
            parts.append(_text(left - 6, y, label, "end", ""))
            start += count
            edge = {"stroke": "currentColor", "stroke_opacity": "0.3"}
            parts.append(_tag("line", x1=left, x2=left + size, y1=top + start * cell, y2=top + start * cell, **edge))
            parts.append(_tag("line", x1=left + start * cell, x2=left + start * cell, y1=top, y2=top + size, **edge))
        name = round(0.6 * FONT * len(one.name))  # must not run into the next one
        width, height = left + max(size, name) + gap, max(height, top + size + 8)
    return alone(_svg(title, width, height, parts))


def reliability_plot(title: str, curves: Sequence[Line], size: int = 320) -> Markup:
    """Predicted (x) against observed (y) shares on logarithmic axes; the line is a perfect prediction.

    A bin in which nothing came true stands at the bottom, hollow. Readable on its own, without a style sheet.
    """
    shares = [share for line in curves for point in line.points for share in point if share > 0]
    bottom = math.floor(math.log10(max(min(shares, default=0.1), 1e-6)))
    left, top, plot = 52, 8, size - 100

    def at(share: float) -> float:
        return max(0.0, 1 - math.log10(share) / bottom if share > 0 else 0.0) * plot

    edge = {"stroke": "currentColor", "stroke_opacity": "0.25"}
    end = top + plot
    parts = [_tag("line", x1=left, y1=end, x2=left + plot, y2=top, stroke_dasharray="4 3", **edge)]
    for power in range(bottom, 1):
        x, y = left + at(10.0**power), end - at(10.0**power)
        parts.append(_tag("line", x1=x, x2=x, y1=top, y2=end, **edge))
        parts.append(_tag("line", x1=left, x2=left + plot, y1=y, y2=y, **edge))
        parts.append(_text(x, end + 16, f"{10.0**power:g}", "middle", "tick"))
        parts.append(_text(left - 6, y + 4, f"{10.0**power:g}", "end", "tick"))
    parts.append(_text(left + plot / 2, end + 32, "predicted", "middle", "tick"))
    parts.append(_text(left, end + 32, "observed ↑", "end", "tick"))
    for place, line in enumerate(curves):
        colour = CURVES[place % len(CURVES)]
        for predicted, observed in line.points:
            tip = _tag("title", escape(f"{line.name}: predicted {predicted:.3g}, observed {observed:.3g}"))
            fill = {"fill": colour if observed > 0 else "none", "stroke": colour}
            parts.append(_tag("circle", tip, cx=left + at(predicted), cy=end - at(observed), r=2.5, **fill))
        y = end + 54 + 16 * place
        parts.append(_tag("circle", cx=left, cy=y - 4, r=4, fill=colour))
        parts.append(_text(left + 10, y, line.name, "start", "quiet"))
    return alone(_svg(title, size, int(end + 62 + 16 * len(curves)), parts))


def alone(picture: Markup) -> Markup:
    """A chart as a file of its own, with what the style sheet of a page says otherwise: without it no line is seen."""
    own = f'<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="{FONT}" '
    head, rest = str(picture).replace("<svg ", own, 1).split(">", 1)
    return Markup(f"{head}><style>{STYLE}</style>{rest}")


def _axis(low: float, high: float) -> tuple[float, float, list[float]]:
    """An axis that holds both values, with three to six round ticks.

    >>> _axis(0.12, 0.51)
    (0.1, 0.6, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    >>> _axis(1.0, 10.5)  # nine and a half are too many for steps of two
    (0.0, 15.0, [0.0, 5.0, 10.0, 15.0])
    """
    span = max(high - low, 1e-6)
    unit = 10 ** math.floor(math.log10(span))
    step = next(size * unit for size in (0.2, 0.5, 1, 2, 5) if span / (size * unit) <= 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [round(place * float(step), 9) for place in range(first, max(last, first + 1) + 1)]
    return ticks[0], ticks[-1], ticks


def _grid(ticks: Sequence[float], x: Callable[[float], float], top: float, bottom: float) -> list[Markup]:
    parts: list[Markup] = []
    for tick in ticks:
        parts.append(_tag("line", x1=x(tick), x2=x(tick), y1=top, y2=bottom, class_="grid"))
        parts.append(_text(x(tick), bottom + 16, f"{tick:g}".replace("0.", "."), "middle", "tick"))
    return parts


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> Markup:
    return _tag("text", escape(text), x=x, y=y, text_anchor=anchor, class_=kind)


def _tag(name: str, content: Markup | str = "", **attributes: object) -> Markup:
    """One element; numbers are rounded, `text_anchor` is written `text-anchor`, `class_` is `class`."""
    pairs = []
    for key, value in attributes.items():
        spelled = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value).strip()
        pairs.append(f' {key.rstrip("_").replace("_", "-")}="{escape(spelled)}"')
    return Markup(f"<{name}{''.join(pairs)}>{escape(content)}</{name}>")


def _svg(title: str, width: int, height: int, parts: Sequence[Markup]) -> Markup:
    label = escape(title)
    head = f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{label}">'
    return Markup(f"{head}{''.join(parts)}</svg>")
