"""The run folder: a step is done once, again when what it was made from changed, and never counted when interrupted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from onesearch.errors import UserError
from onesearch.run import Run, stamps
from onesearch.settings import Settings


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", Settings())


class Counter:
    """A piece of work that writes a file and counts how often it was done."""

    def __init__(self, path: Path, text: str = "result") -> None:
        self.path, self.text, self.times = path, text, 0

    def __call__(self) -> None:
        self.times += 1
        self.path.write_text(self.text)


def test_a_created_run_opens_with_the_same_settings(tmp_path: Path) -> None:
    settings = Settings(source="jsonl", path="log", users=12, level_sizes=(8, 4))
    Run.create(tmp_path / "run", settings)
    opened = Run.open(tmp_path / "run")
    assert opened.settings == settings
    assert opened.manifest["seed"] == settings.seed
    assert {"python", "torch", "transformers"} <= set(opened.manifest["versions"])


def test_a_finished_step_is_skipped(run: Run) -> None:
    work = Counter(run.folder / "out.txt")
    assert run.step("one", work, settings=("seed",), writes=("out.txt",))
    assert not run.step("one", work, settings=("seed",), writes=("out.txt",))
    assert work.times == 1


@pytest.mark.parametrize("setting, again", [("seed", True), ("encoder", False)])
def test_a_step_is_done_again_only_for_the_settings_it_depends_on(run: Run, setting: str, again: bool) -> None:
    work = Counter(run.folder / "out.txt")
    run.step("one", work, settings=("seed",), writes=("out.txt",))
    changed = Run.create(run.folder, Settings.of({"seed": 8} if setting == "seed" else {"encoder": "other"}))
    assert changed.step("one", work, settings=("seed",), writes=("out.txt",)) is again


def test_a_step_is_done_again_when_its_files_change_but_not_when_they_are_written_alike(run: Run) -> None:
    source, work = run.folder / "in.txt", Counter(run.folder / "out.txt")
    source.write_text("a")
    run.step("one", work, reads=("in.txt",), writes=("out.txt",))
    source.write_text("a")
    assert not run.step("one", work, reads=("in.txt",), writes=("out.txt",))
    source.write_text("b")
    assert run.step("one", work, reads=("in.txt",), writes=("out.txt",))


def test_a_step_whose_result_was_removed_is_done_again(run: Run) -> None:
    work = Counter(run.folder / "out.txt")
    run.step("one", work, writes=("out.txt",))
    work.path.unlink()
    assert run.step("one", work, writes=("out.txt",))


def test_an_interrupted_step_does_not_count_even_if_an_earlier_one_was_finished(run: Run) -> None:
    work = Counter(run.folder / "out.txt")
    run.step("one", work, writes=("out.txt",), inputs={"version": 1})

    def interrupted() -> None:
        work.path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.step("one", interrupted, writes=("out.txt",), inputs={"version": 2})
    assert run.step("one", work, writes=("out.txt",), inputs={"version": 1})
    assert work.path.read_text() == "result"


def test_a_step_before_its_turn_names_what_is_missing(run: Run) -> None:
    with pytest.raises(UserError, match=r"corpus.*needs this"):
        run.step("embed", lambda: None, reads=("corpus",), writes=("embeddings",))


def test_the_manifest_holds_seconds_and_checksums(run: Run) -> None:
    run.step("one", Counter(run.folder / "out.txt", "abc"), writes=("out.txt",))
    record = run.manifest["steps"]["one"]
    assert record["seconds"] >= 0
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert record["outputs"] == {"out.txt": {"out.txt": abc}}


def test_stamps_leave_out_hidden_files_and_checkpoints(tmp_path: Path) -> None:
    for name in ("model/a.bin", "model/.lock", "model/checkpoint-5/state.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert list(stamps(tmp_path / "model")) == ["a.bin"]


def test_large_files_are_known_by_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onesearch.run.HASHED", 2)
    (tmp_path / "big").write_text("four")
    assert stamps(tmp_path / "big")["big"]["bytes"] == 4


def test_two_processes_do_not_write_one_run(run: Run) -> None:
    hold = (
        "import sys, time; from onesearch.run import Run\n"
        "with Run.open(sys.argv[1]).lock(): print(1, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", hold, str(run.folder)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "1\n"
        with pytest.raises(UserError, match=f"process {other.pid} is writing this run"), run.lock():
            pass
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with run.lock():  # the lock of the dead process is free
        assert not (run.folder / "out.txt").exists()


def test_open_tells_what_is_wrong_with_a_folder(tmp_path: Path, run: Run) -> None:
    with pytest.raises(UserError, match="no run here"):
        Run.open(tmp_path / "none")
    (run.folder / "manifest.json").write_text(json.dumps({"schema_version": 99}))
    for use in (Run.open, lambda folder: Run.create(folder, Settings())):
        with pytest.raises(UserError, match="another schema version: 99"):
            use(run.folder)


def test_create_does_not_write_into_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="no run folder"):
        Run.create(tmp_path, Settings())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("sead: 1", r"f.yaml: unknown setting: 'sead' \(did you mean 'seed'\?\)"),
        ("zzz: 1", r"unknown setting: 'zzz' \(known: source, "),
        ("seed: many", r"f.yaml: seed: .*'many' \(use a whole number\)"),
        ("users: true", r"users: .*True \(use a whole number or null\)"),
        ("level_sizes: []", r"level_sizes: .*use a list, each a whole number"),
        ("level_sizes: [8, x]", r"level_sizes: "),
        ("split: tim", r"split: .*use 'time' or 'leave-one-out'"),
        ("[1]", "expected a mapping"),
        ("a: [", "not YAML"),
    ],
)
def test_a_setting_that_is_wrong_is_named_with_its_file_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        Settings.read(tmp_path / "f.yaml")


def test_the_demo_configuration_is_the_default() -> None:
    assert Settings.read(Path(__file__).parents[1] / "configs/demo/run.yaml") == Settings()
