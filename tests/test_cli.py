"""The command line: help that works, and mistakes told in one line with exit code 2."""

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from onesearch.cli import app
from onesearch.run import Run
from onesearch.settings import Settings

COMMANDS: dict[str, Any] = vars(get_command(app))["commands"]


def onesearch(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def told(result: Any) -> str:
    """The one line on stderr."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    (line,) = result.stderr.splitlines()
    return str(line)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A small log in our own schema."""
    folder = tmp_path / "log"
    folder.mkdir()
    items = [{"item_id": f"i{n}", "title": f"item {n}"} for n in range(4)]
    events = [
        {
            "user_id": f"u{n % 3}",
            "item_id": f"i{n % 4}",
            "event": "purchase",
            "timestamp": 1_700_000_000 + n,
            "query": "item",
        }
        for n in range(12)
    ]
    for name, rows in (("items", items), ("events", events)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_help_is_quick_and_does_not_load_torch() -> None:
    began = time.perf_counter()
    check = (
        "import sys; from onesearch.cli import app; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
    assert time.perf_counter() - began < 3, "under a second on an idle machine"


@pytest.mark.parametrize("name", ["demo", "prepare", "embed", "quantize", "train", "generate", "evaluate", "show"])
def test_every_command_has_help_with_an_example_that_parses(name: str) -> None:
    result = onesearch(name, "--help")
    assert result.exit_code == 0
    example = re.search(r"Example: onesearch (.*)", COMMANDS[name].epilog)
    assert example is not None
    words = shlex.split(example[1])
    assert words[0] == name
    COMMANDS[name].make_context(name, words[1:])  # fails for an option that is not there


def test_prepare_makes_a_run_that_show_shows(tmp_path: Path, log: Path) -> None:
    made = onesearch("prepare", "--run", tmp_path / "run", "--source", "jsonl", "--path", log)
    assert made.exit_code == 0, made.output
    assert Run.open(tmp_path / "run").settings == Settings(source="jsonl", path=str(log))
    shown = onesearch("show", "--run", tmp_path / "run")
    assert shown.exit_code == 0, shown.output
    assert "jsonl" in shown.output and "12" in shown.output and "prepare" in shown.output


def test_prepare_clears_what_a_killed_one_left(tmp_path: Path, log: Path) -> None:
    left = tmp_path / "run/.corpus.k1ll3d/read"
    arguments = ("prepare", "--run", tmp_path / "run", "--source", "jsonl", "--path", log)
    onesearch(*arguments)
    left.mkdir(parents=True)
    (left / "00000000.parquet").write_bytes(b"half")
    onesearch(*arguments, "--on-error", "skip")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        ".lock",
        "config.yaml",
        "corpus",
        "manifest.json",
    ]


def test_prepare_again_does_nothing_until_the_log_changes(tmp_path: Path, log: Path) -> None:
    arguments = ("prepare", "--run", tmp_path / "run", "--source", "jsonl", "--path", log)
    assert "already done" not in onesearch(*arguments).stderr
    assert "already done" in onesearch(*arguments).stderr
    with (log / "items.jsonl").open("a") as items:
        items.write('{"item_id": "new", "title": "new"}\n')
    assert "already done" not in onesearch(*arguments).stderr


def test_a_broken_row_is_told_and_nothing_half_written_is_left(tmp_path: Path, log: Path) -> None:
    with (log / "events.jsonl").open("a") as events:
        events.write('{"user_id": "u1", "item_id": "gone", "event": "purchase", "timestamp": 1700000099}\n')
    line = told(onesearch("prepare", "--run", tmp_path / "run", "--source", "jsonl", "--path", log))
    assert "events.jsonl" in line and "13" in line and "gone" in line
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "config.yaml", "manifest.json"]
    skipped = onesearch("prepare", "--run", tmp_path / "run", "--source", "jsonl", "--path", log, "--on-error", "skip")
    assert skipped.exit_code == 0, skipped.output


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = onesearch("--debug", "show", "--run", tmp_path / "none")
    assert type(result.exception).__name__ == "UserError"


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    assert "no run here" in told(onesearch("show", "--run", tmp_path / "none"))
    assert "give either --query or --input" in told(onesearch("generate", "--run", tmp_path))
    assert "belong together" in told(onesearch("generate", "--run", tmp_path, "--input", "x"))
    both = ("--input", "x", "--output", "y")
    line = told(onesearch("generate", "--run", tmp_path, *both, "--where", "price < 5"))
    options = "--where, --allow, --deny, --place and --device"
    assert line.endswith(f"{options} are about --query (write them into the lines of x)")
    assert "'stop' or 'skip'" in told(onesearch("prepare", "--run", tmp_path / "r", "--on-error", "later"))
    (tmp_path / "f.yaml").write_text("sead: 1\n")
    line = told(onesearch("demo", "--run", tmp_path / "r", "--config", tmp_path / "f.yaml"))
    assert "f.yaml: unknown setting: 'sead' (did you mean 'seed'?)" in line
    assert not (tmp_path / "r").exists(), "settings are checked before anything is written"


def test_a_step_before_its_turn_says_what_to_do_first(tmp_path: Path) -> None:
    Run.create(tmp_path / "run", Settings())
    assert "'quantize' needs this" in told(onesearch("quantize", "--run", tmp_path / "run"))


def test_a_run_folder_of_another_schema_version(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"schema_version": 0}')
    assert "another schema version: 0" in told(onesearch("show", "--run", tmp_path))


def test_an_interruption_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(folder: Path) -> Run:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "open", interrupted)
    result = onesearch("show", "--run", tmp_path)
    assert result.exit_code == 130
    assert "goes on where it was" in result.stderr


def test_a_file_that_cannot_be_read_is_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(folder: Path) -> Run:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(Run, "open", refused)
    assert told(onesearch("show", "--run", tmp_path)) == f"onesearch: {tmp_path}: Permission denied"


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(folder: Path) -> Run:
        raise ZeroDivisionError

    monkeypatch.setattr(Run, "open", broken)
    assert isinstance(onesearch("show", "--run", tmp_path).exception, ZeroDivisionError)


def test_the_app_is_the_command_of_the_package() -> None:
    assert isinstance(app, typer.Typer)
    done = subprocess.run([sys.executable, "-m", "onesearch.cli", "nonsense"], capture_output=True, text=True)
    assert done.returncode == 2 and "No such command" in done.stderr
