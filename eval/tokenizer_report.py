"""The comparison of tokenizers as Markdown tables, and as a page with the usage of each level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, StrictUndefined

from eval.charts import usage_plot
from onesearch.tables import spell_number

USE: Final = (
    "tokenizer", "levels", "CUR by level", "CUR L1xL2", "CUR total", "ICR", "ICR of texts", "items sharing",
    "largest", "entropy, bits", "error", "fit, s", "encode, s",
)  # fmt: skip

GENERATOR: Final = (
    "tokenizer", "steps", "searches", "seeds", "MRR@10", "of each seed", "difference", "Recall@10", "train, s",
)  # fmt: skip


def markdown(results: Mapping[str, Any]) -> str:
    """All tables, each with a line that says what is in it."""
    rows = results["tokenizers"]
    texts = ", ".join(f"{count:,}" for count in sorted({row["texts"] for row in rows.values()}))
    parts = [
        f"{results['items']:,} items ({results['source']}), {texts} distinct vectors.\n",
        _table(USE, use_rows(results)),
    ]
    if results["relations"]:
        about = "; ".join(
            f"{name}: {one['groups']:,} groups, {one['rows']:,} places" for name, one in results["relations"].items()
        )
        parts += [f"Recall of held-out neighbours ({about}), with 95 % intervals.\n", _table(*recall_table(results))]
    if trained := generator_rows(results):
        parts.append(_table(GENERATOR, trained))
    parts += [f"Left out: {name} ({why}).\n" for name, why in results["left_out"].items()]
    return "\n".join(parts)


def use_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """How each tokenizer uses its codes, one row each in the columns `USE`."""
    found = []
    for name, row in results["tokenizers"].items():
        shared = row["collisions"]
        prefixes = row["cur_of_prefixes"]
        found.append(
            [
                name,
                _sizes(row["level_sizes"]),
                " / ".join(_percent(share) for share in row["cur_of_levels"]),
                _percent(prefixes[1]) if len(prefixes) > 1 else "",
                _percent(prefixes[-1]),
                _percent(row["icr"]),
                _percent(row["icr_of_texts"]),
                f"{shared['items_sharing']:,}",
                f"{shared['largest']:,}",
                " / ".join(f"{bits:.1f}" for bits in row["entropy"]),
                spell_number(row["reconstruction_error"]),
                f"{row['fit_seconds']:.1f}",
                f"{row['encode_seconds']:.2f}",
            ]
        )
    return found


def recall_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(heading, rows): recall by shared prefixes, and the mean of the vectors that were quantized."""
    pairs = [(relation, str(cut)) for relation in results["relations"] for cut in results["cuts"]]
    heading = ["tokenizer"]
    for relation, cut in pairs:
        heading += [f"{relation} @{cut}", "vectors"]
    rows = []
    for name, row in results["tokenizers"].items():
        cells = [name]
        for relation, cut in pairs:
            cells += [_interval(row["recall"][relation][cut])]
            cells += [spell_number(row["recall_of_vectors"][relation][cut]["mean"])]
        rows.append(cells)
    return heading, rows


def generator_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Validation results of the tokenizers that a generator was trained for."""
    return [
        [
            name,
            f"{one['steps']:,}",
            f"{one['searches']:,}",
            f"{len(one['seeds'])}",
            _interval(one["mrr@10"]),
            ", ".join(spell_number(mean) for mean in one["of_seeds"]["mrr@10"]),
            _interval(one["differences"]["mrr@10"], signed=True) if one["differences"] else "",
            _interval(one["recall@10"]),
            f"{one['train_seconds']:.0f}",
        ]
        for name, row in results["tokenizers"].items()
        if (one := row.get("generator"))
    ]


def render(results: Mapping[str, Any]) -> str:
    """The page as text; it needs no network."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("eval").joinpath("tokenizer.html").read_text(encoding="utf-8"))
    heading, recalls = recall_table(results)
    return template.render(
        results=results,
        use=(list(USE), use_rows(results)),
        recall=(heading, recalls) if results["relations"] else None,
        generator=(list(GENERATOR), generator_rows(results)),
        panels=[
            (
                name,
                [
                    (level, usage_plot(f"{name}, level {level + 1}", counts), sum(map(bool, counts)), len(counts))
                    for level, counts in enumerate(row["usage"])
                ],
            )
            for name, row in results["tokenizers"].items()
        ],
    )


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    ruler = ["---", *["---:"] * (len(heading) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (heading, ruler, *rows))


def _sizes(sizes: Sequence[int]) -> str:
    """Sizes of levels, equal ones together.

    >>> _sizes([256, 256, 256]), _sizes([4096, 1024, 512])
    ('3 x 256', '4096, 1024, 512')
    """
    return f"{len(sizes)} x {sizes[0]}" if len(set(sizes)) == 1 else ", ".join(map(str, sizes))


def _percent(share: float) -> str:
    """A share in percent, with as many digits as tell it from nothing.

    >>> _percent(1.0), _percent(0.488), _percent(0.000034), _percent(0)
    ('100 %', '48.8 %', '0.0034 %', '0 %')
    """
    value = 100 * share
    if value in (0, 100):
        return f"{value:.0f} %"
    return f"{value:.1f} %" if value >= 0.1 else f"{value:.2g} %"


def _interval(one: Mapping[str, float], signed: bool = False) -> str:
    """A mean with its interval, as ".388 (.378 to .399)"."""
    mean, low, high = (spell_number(one[name], signed) for name in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"
