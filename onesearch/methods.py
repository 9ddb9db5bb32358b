"""The methods that make semantic IDs, by name or by YAML: which quantizer, its arguments, on which vectors.

A YAML names its method and what differs from it; `configs/quantizers/` has one for each method and for the variants
that were compared. What it says counts more than the run's settings of the same name. All of it is checked before data
are touched.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal, get_type_hints

from onesearch.errors import UserError, unknown
from onesearch.files import read_yaml
from onesearch.settings import Settings, check_value
from quantizers.quantizer import CLASSES, Quantizer

METHODS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "rq-kmeans": ("ResidualKMeans", {}),
    "rq-kmeans-aligned": ("ResidualKMeans", {"align": True}),
    "rq-kmeans-5": ("ResidualKMeans", {"level_sizes": [256] * 5}),  # as many bits as KHQE has with 3 x 256
    "khqe": ("ResidualKMeans", {"tail": [256, 256], "balance": "last", "keywords": True, "queries": True}),
    "rq-vae": ("RQVAE", {}),
    "rq-kmeans-plus": ("RQKMeansPlus", {}),
    "fsq": ("FSQ", {}),
    "vrq": ("VRQ", {}),
}
"""Name -> class (see `quantizers.quantizer.CLASSES`) and what differs from its defaults."""


@dataclass(frozen=True)
class Method:
    """A method with everything decided.

    Attributes:
        name: one of `METHODS`.
        arguments: of the class, `seed` among them.
        keywords: whether vectors of items and queries are drawn towards those of their keywords.
        queries: whether the codebooks are fitted on the distinct training queries besides the items.
        align: whether vectors go through the run's alignment (`models/align`) first, which is learnt where there is
            none.
        views: what a product has several vectors of, for the classes that want them: the searches that led to it
            beside its text, or its pictures.
        behaviour: share of co-purchase vectors, see `Settings`.
        last_level: codes of the level that makes semantic IDs unique, or None, see `Settings`.
    """

    name: str
    arguments: dict[str, Any]
    keywords: bool = False
    queries: bool = False
    align: bool = False
    views: Literal["searches", "pictures"] | None = None
    behaviour: float = 0.0
    last_level: int | None = 128

    def quantizer(self) -> Quantizer:
        """A new one, not fitted.

        Raises:
            UserError: an argument that the class does not take.
        """
        try:
            quantizer: Quantizer = _class(self.name)(**self.arguments)
        except (TypeError, ValueError) as error:
            raise UserError(str(error), place=f"method {self.name}") from error
        return quantizer


def find_method(settings: Settings) -> Method:
    """The method that a run's settings name.

    Raises:
        UserError: no such method or file, an unknown key (with the nearest known one), or a wrong value.
    """
    if settings.method in METHODS:
        return _resolve({"method": settings.method}, settings, "method")
    if Path(settings.method).suffix not in (".yaml", ".yml"):
        raise unknown(
            "unknown method", settings.method, METHODS, "method", f"known: {', '.join(METHODS)}, or give a YAML file"
        )
    return _resolve(read_yaml(Path(settings.method)), settings, settings.method)


def _resolve(given: Mapping[str, Any], settings: Settings, place: str) -> Method:
    """Settings, then the method's own, then what is given."""
    name = given.get("method")
    if not isinstance(name, str) or name not in METHODS:
        raise unknown("unknown method", name, METHODS, f"{place}: method")
    values = {**METHODS[name][1], **{key: value for key, value in given.items() if key != "method"}}
    own = _own_keys()
    taken = {key: kind for key, kind in get_type_hints(_class(name).__init__).items() if key != "return"}
    known = {**taken, **own}
    with_views = "product" in inspect.signature(_class(name).fit).parameters
    if not with_views:
        known.pop("views")
    for key, value in values.items():
        if key not in known:
            raise unknown(f"{name} has no such option", key, known, place)
        check_value(value, known[key], f"{place}: {key}")
    shared: dict[str, Any] = {key: getattr(settings, key) for key in ("level_sizes", "seed") if key in taken}
    arguments = shared | {key: _plain(value) for key, value in values.items() if key in taken}
    decided: dict[str, Any] = {"behaviour": settings.behaviour, "last_level": settings.last_level}
    decided |= {key: value for key, value in values.items() if key in own}
    if with_views:
        decided.setdefault("views", "searches")
    method = Method(name, arguments, **decided)
    _check(method, place)
    return method


def _check(method: Method, place: str) -> None:
    """Whether the values fit each other; the class checks its own."""
    if not 0 <= method.behaviour <= 1:
        raise UserError("a share lies between 0 and 1", place=f"{place}: behaviour", value=method.behaviour)
    if method.last_level is not None and method.last_level < 1:
        remedy = "use 1 or more, or null to let items share semantic IDs"
        raise UserError("a level needs codes", place=f"{place}: last_level", value=method.last_level, remedy=remedy)
    if method.views is not None and method.queries:
        remedy = "leave it out: each product brings the searches that led to it"
        raise UserError("this method has no queries besides its views", place=f"{place}: queries", remedy=remedy)
    texts = method.keywords or method.align or method.behaviour > 0
    if method.views == "pictures" and texts:
        remedy = "turn keywords, align and behaviour off, or use views: searches"
        raise UserError("pictures are no texts", place=f"{place}: views", value="pictures", remedy=remedy)
    try:
        method.quantizer()
    except UserError as error:
        raise UserError(error.problem, place=place) from error


def _class(name: str) -> Any:
    module, attribute = CLASSES[METHODS[name][0]].split(":")
    return getattr(import_module(module), attribute)


def _own_keys() -> dict[str, Any]:
    """What a YAML may say besides the arguments of the class, and of which type."""
    types = get_type_hints(Method)
    own = {field.name: types[field.name] for field in fields(Method) if field.name not in ("name", "arguments")}
    return {**own, "views": Literal["searches", "pictures"]}


def _plain(value: Any) -> Any:
    """Lists as tuples, all the way down."""
    return tuple(_plain(one) for one in value) if isinstance(value, list | tuple) else value
