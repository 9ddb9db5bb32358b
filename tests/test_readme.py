"""The README's snippets, run one after the other in an empty folder, as a reader would."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```(bash|python)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
"""`sh` blocks are left out: they clone, install, or need a finished run."""


def test_the_snippets_run_in_their_order(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    assert {language for language, _ in SNIPPETS} == {"bash", "python"}
    for language, text in SNIPPETS:
        command = ["bash", "-euo", "pipefail", "-c", text] if language == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True)
        assert done.returncode == 0, f"{text}\n{done.stderr}"


def test_the_snippets_about_search_run(tmp_path: Path) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/search.md").read_text(), re.MULTILINE | re.DOTALL)
    assert snippets
    for text in snippets:
        done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_every_command_and_every_file_it_names_exists() -> None:
    from typer.main import get_command

    from onesearch.cli import app

    known = set(getattr(get_command(app), "commands"))  # noqa: B009
    assert set(re.findall(r"\bonesearch (?:--debug )?([a-z]+) --", README)) <= known
    assert known <= set(re.findall(r"`(?:onesearch )?([a-z]+)`", README)), "each command is in the table"
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (ROOT / link).exists(), link


def test_it_says_that_the_queries_are_derived() -> None:
    assert "queries are derived" in README
