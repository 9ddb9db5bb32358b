"""The settings of a run: one flat YAML, every key known and every value of the right type before data is touched."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from onesearch.errors import UserError, unknown
from onesearch.files import read_yaml, write_text


@dataclass(frozen=True)
class Settings:
    """What a run is made from; the defaults are the demo.

    Attributes:
        source: where the log comes from, see `onesearch.corpus.sources`.
        path: file or folder of the source, `~` and `$VARIABLES` allowed; None where it brings or fetches its own data.
        on_error: what to do with rows that break the schema; "mend" is "skip" that keeps items without a title.
        spelling: whether queries are read with their spelling mended, see `onesearch.corpus.spelling`.
        users: keep only the first so many users (a slice for trying things out).
        seed: of derived queries, samples, codebooks and weights.
        split: which events are for training and which for the report.
        valid_requests, test_requests: how many searches baselines are tuned on, and the table is made of.
        encoder: what turns texts into vectors, see `onesearch.embed`.
        image_encoder: of the items' pictures, see `onesearch.embed.image`; None leaves them unread.
            Only methods with `views: pictures` quantize them.
        method: how vectors become semantic IDs, a name or a YAML, see `onesearch.methods`; what the YAML says of
            `behaviour`, `level_sizes` and `last_level` counts more than what is said here.
        align: YAML of the alignment, which methods with `align: true` learn first; None for the defaults of
            `training/align.py`.
        behaviour: share of co-purchase vectors (PPMI and SVD of the training baskets) in what is quantized; 0 leaves
            them out, 1 uses nothing else.
        level_sizes: codes per learned level of a semantic ID.
        last_level: codes of the level that makes semantic IDs unique; None lets
            items share one, the most popular first.
        model: the generator, which reads a query and the history that fits it (`training/sft.py`), or a causal model of
            the whole history (`training/sequence.py`).
        sft: YAML of the supervised training; None for the defaults of the script.
        reinforce: whether the generator is then aligned with rewards, into a model of its own (`training/grpo.py`).
        grpo: YAML of that; None for the defaults of the script.
        processes: of the trainings `sft` and `grpo` where there is no GPU, each with a part of every batch; what is
            learnt is the same but for rounding.
    """

    source: str = "completejourney"
    path: str | None = None
    on_error: Literal["stop", "skip", "mend"] = "stop"
    spelling: bool = True
    users: int | None = None
    seed: int = 7
    split: Literal["time", "leave-one-out"] = "time"
    valid_requests: int = 4_000
    test_requests: int = 10_000
    encoder: str = "wordllama"
    image_encoder: str | None = None
    method: str = "rq-kmeans"
    align: str | None = None
    behaviour: float = 0.0
    level_sizes: tuple[int, ...] = (256, 256, 256)
    last_level: int | None = 128
    model: Literal["generator", "sequence"] = "generator"
    sft: str | None = None
    reinforce: bool = True
    grpo: str | None = None
    processes: int = 2

    @classmethod
    def of(cls, values: Mapping[str, Any], place: object = None) -> Settings:
        """Settings from plain values; what is not given keeps its default.

        Raises:
            UserError: an unknown key (with the nearest known one) or a value of the wrong type.
        """
        types = get_type_hints(cls)
        for key, value in values.items():
            if key not in types:
                raise unknown("unknown setting", key, types, place)
            where = key if place is None else f"{place}: {key}"
            check_value(value, types[key], where)
            if key == "processes" and value < 1:
                raise UserError("wrong type or value", place=where, value=value, remedy="use 1 or more")
        checked: dict[str, Any] = {key: tuple(one) if isinstance(one, list) else one for key, one in values.items()}
        return cls(**checked)

    @classmethod
    def read(cls, path: Path | str) -> Settings:
        """Settings of a YAML file; see `of`."""
        return cls.of(read_yaml(Path(path)), place=path)

    @property
    def source_path(self) -> Path | None:
        """`path` with `~` and environment variables filled in."""
        return None if self.path is None else Path(os.path.expandvars(self.path)).expanduser()

    def write(self, path: Path) -> None:
        """Write every setting, the defaults too, so that a later version of the program gives the same run."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None)
        write_text(path, f"# Every setting of this run, as it was resolved.\n{text}")

    def subset(self, names: tuple[str, ...]) -> dict[str, Any]:
        """The named settings as plain values."""
        known = {field.name for field in fields(self)}
        if unknown := set(names) - known:
            raise KeyError(f"no such settings: {sorted(unknown)}")
        return {name: getattr(self, name) for name in names}


def check_value(value: object, kind: Any, place: str) -> None:
    """Raises a UserError unless a value of a YAML is of this type."""
    if not _fits(value, kind):
        raise UserError("wrong type or value", place=place, value=value, remedy=f"use {_spell(kind)}")


def _fits(value: object, kind: Any) -> bool:
    """Whether a YAML value is of this type; a boolean is no number, a list stands for a tuple."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in arguments
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is tuple:
        return isinstance(value, list | tuple) and len(value) > 0 and all(_fits(one, arguments[0]) for one in value)
    if origin is Sequence:
        return isinstance(value, list | tuple) and all(_fits(one, arguments[0]) for one in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _spell(kind: Any) -> str:
    """A type in words.

    >>> _spell(int | None), _spell(tuple[int, ...]), _spell(Literal["stop", "skip"])
    ('a whole number or null', 'a list, each a whole number', "'stop' or 'skip'")
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin in (Union, UnionType):
        return " or ".join(map(_spell, arguments))
    if origin in (tuple, Sequence):
        return f"a list, each {_spell(arguments[0])}"
    return {str: "a text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}[kind]
