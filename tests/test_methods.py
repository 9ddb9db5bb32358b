"""Methods by name and by YAML: what they resolve to, and mistakes told before data are touched."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from onesearch.errors import UserError
from onesearch.methods import METHODS, find_method
from onesearch.settings import Settings

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs/quantizers").glob("*.yaml"))


def written(path: Path, text: str) -> Settings:
    path.write_text(text, encoding="utf-8")
    return Settings(method=str(path))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_yaml_opens_with_its_command_and_resolves(file: Path) -> None:
    path = re.match(r"# onesearch quantize --run \S+ --method (\S+)\n", file.read_text(encoding="utf-8"))
    assert path is not None and ROOT / path[1] == file
    find_method(Settings(method=str(file)))


@pytest.mark.parametrize("name", METHODS)
def test_a_name_and_the_file_of_that_name_are_the_same_method(name: str) -> None:
    file = ROOT / f"configs/quantizers/{name}.yaml"
    by_name, by_file = find_method(Settings(method=name)), find_method(Settings(method=str(file)))
    assert replace(by_name, arguments={}) == replace(by_file, arguments={})
    one, other = by_name.quantizer(), by_file.quantizer()
    for argument in by_name.arguments | by_file.arguments:  # a file spells some defaults out
        assert getattr(one, argument) == getattr(other, argument), argument


def test_what_a_yaml_says_counts_more_than_the_settings(tmp_path: Path) -> None:
    settings = Settings(level_sizes=(8, 8), last_level=16, behaviour=0.25, seed=3)
    method = find_method(settings)
    assert method.arguments == {"level_sizes": (8, 8), "seed": 3}
    assert (method.last_level, method.behaviour) == (16, 0.25)
    text = "method: khqe\nlevel_sizes: [4, 4]\nlast_level: null\nbehaviour: 0\nkeywords: false\n"
    own = find_method(written(tmp_path / "m.yaml", text))
    assert own.quantizer().level_sizes == (4, 4, 256, 256)
    assert (own.last_level, own.behaviour, own.keywords, own.queries) == (None, 0, False, True)


@pytest.mark.parametrize(
    "text, told",
    [
        ("method: rq-kmean\n", "method: unknown method: 'rq-kmean' (did you mean 'rq-kmeans'?)"),
        ("level_sizes: [4]\n", "method: unknown method (known: rq-kmeans,"),
        ("method: rq-kmeans\nbalanse: last\n", "rq-kmeans has no such option: 'balanse' (did you mean 'balance'?)"),
        ("method: fsq\nlevel_sizes: [4]\n", "fsq has no such option: 'level_sizes'"),
        ("method: rq-kmeans\nviews: searches\n", "rq-kmeans has no such option: 'views'"),
        (
            "method: rq-kmeans\nlevel_sizes: many\n",
            "level_sizes: wrong type or value: 'many' (use a list",
        ),
        ("method: rq-kmeans\nbalance: first\n", "balance: wrong type or value: 'first' (use 'none' or 'last'"),
        ("method: rq-kmeans\nlevel_sizes: [0, 4]\n", "level_sizes must be one or more positive numbers"),
        ("method: rq-kmeans\nslack: 0.5\n", "slack must be 1 or more"),
        ("method: rq-vae\nlearning_rate: 7.0\n", "learning_rate must be between 0 and 1"),
        ("method: vrq\nqueries: true\n", "queries: this method has no queries besides its views"),
        ("method: vrq\nviews: pictures\nkeywords: true\n", "views: pictures are no texts: 'pictures'"),
        ("method: rq-kmeans\nbehaviour: 2.0\n", "behaviour: a share lies between 0 and 1: 2.0"),
        ("method: rq-kmeans\nlast_level: 0\n", "last_level: a level needs codes: 0"),
    ],
)
def test_mistakes_in_a_yaml(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UserError) as error:
        find_method(written(tmp_path / "m.yaml", text))
    assert str(error.value).startswith(str(tmp_path / "m.yaml")) and told in str(error.value)


def test_mistakes_in_a_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"method: unknown method: 'kqhe' .did you mean 'khqe'"):
        find_method(Settings(method="kqhe"))
    with pytest.raises(UserError, match=r"known: rq-kmeans, .*, or give a YAML file"):
        find_method(Settings(method="zzz"))
    with pytest.raises(UserError, match="no such file"):
        find_method(Settings(method=str(tmp_path / "none.yaml")))
