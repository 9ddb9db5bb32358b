"""Published files from the Hugging Face hub, where there is a network."""

from __future__ import annotations

from pathlib import Path

from onesearch.errors import UserError


def fetch(repository: str, patterns: list[str]) -> Path:
    """The folder of a data set repository's files that match `patterns`, downloaded unless the cache has them.

    Raises:
        UserError: there is no network, the hub is switched off (`HF_HUB_OFFLINE=1`), or nothing matches.
    """
    from huggingface_hub import snapshot_download  # imports slowly, and most sources need no network
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    remedy = "download the files by other means and give --path"
    try:
        folder = Path(snapshot_download(repository, repo_type="dataset", allow_patterns=patterns))
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError, HFValidationError) as error:
        problem = f"cannot be fetched from the hub: {type(error).__name__}"
        raise UserError(problem, place=f"datasets/{repository}", remedy=remedy) from error
    if not any(one.is_file() for pattern in patterns for one in folder.glob(pattern)):
        problem = "the hub has no such files"
        raise UserError(problem, place=f"datasets/{repository}", value=", ".join(patterns), remedy=remedy)
    return folder


def find(folder: Path, pattern: str, suffixes: tuple[str, ...]) -> list[Path]:
    """Files of a folder, sorted, whose name begins as `pattern` says and ends with one of the suffixes.

    Raises:
        UserError: the folder does not exist.
    """
    if not folder.is_dir():
        raise UserError("no such folder", place=folder, remedy="give the folder that holds the published files")
    return sorted(one for one in folder.glob(f"{pattern}*") if one.name.lower().endswith(suffixes))
