"""Write files in the form in which data sets are published."""

import gzip
import json
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def write_lines(path: Path, rows: Rows) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
