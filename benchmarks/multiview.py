"""Do the views of one product share their codes? Quantizers compared on furniture seen from twelve sides.

    apt-get install sweethome3d-furniture
    pip install 'onesearch[vision]'
    python -m benchmarks.multiview --models /usr/share/sweethome3d/furniture --out runs/furniture
    python -m benchmarks.multiview --out runs/furniture --evaluate

The first command renders and encodes what is not there yet; the second compares (`benchmarks/agreement.py`), with
`--photos` also on real photos, a folder a product. `--validate` compares settings on products that `--evaluate` never
holds out. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onesearch.embed.image import load_image_encoder
from onesearch.embed.views import embed_views, load_views
from onesearch.errors import UserError
from onesearch.files import write_json

if TYPE_CHECKING:
    from benchmarks.agreement import Pictures

log = logging.getLogger(__name__)


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder of .sh3f libraries; renders and encodes")
    parser.add_argument("--out", type=Path, required=True, help="where pictures, vectors and results go")
    parser.add_argument("--limit", type=int, help="only the first so many models")
    parser.add_argument("--encoder", default="efficientnet-lite0", help="what load_image_encoder takes")
    parser.add_argument("--evaluate", action="store_true", help="compare the quantizers on what --out holds")
    parser.add_argument("--validate", action="store_true", help="compare settings on products never held out")
    parser.add_argument("--photos", type=Path, help="with --evaluate: also on these, PHOTOS/PRODUCT/*.jpg")
    arguments = parser.parse_args()
    if arguments.models is None and not (arguments.evaluate or arguments.validate):
        parser.error("nothing to do: give --models, --validate or --evaluate")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for talkative in ("trimesh", "faiss"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    try:
        summary: dict[str, Any] = {}
        if arguments.models is not None:
            summary |= make(arguments.models, arguments.out, arguments.limit, arguments.encoder)
        if arguments.validate:
            summary |= validate(arguments.out)
        if arguments.evaluate:
            summary |= evaluate(arguments.out, arguments.photos, arguments.encoder)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(summary))


def make(models: Path, out: Path, limit: int | None, encoder: str) -> dict[str, float]:
    """Render and encode: `views.parquet` and `vectors.npy` (V, D), row for row the same views."""
    from benchmarks.furniture import find_models  # needs trimesh
    from benchmarks.views import render_views

    started = time.process_time()
    views = render_views(find_models(models)[:limit], out)
    rendered = time.process_time()
    images = views.group_by("product", maintain_order=True).agg("image")["image"].to_list()
    vectors = embed_views(images, load_image_encoder(encoder), out, root=out, progress=_tell).vectors
    return {
        "products": len(images),
        "views": len(vectors),
        "dimension": vectors.shape[1],
        "render_cpu_seconds": round(rendered - started, 1),
        "encode_cpu_seconds": round(time.process_time() - rendered, 1),
    }


def evaluate(out: Path, photos: Path | None, encoder: str) -> dict[str, Any]:
    """Compare, write `agreement.json`, and say how far VRQ is ahead at levels 1 and 2 on held-out products."""
    from benchmarks.agreement import Pictures, compare

    pictures, others = _pictures(out), {}
    if photos is not None:
        files = sorted(photos.glob("*/*.jpg"))
        if not files:
            raise UserError(
                "no photos here", place=photos, remedy="give a folder with one folder of JPEG files a product"
            )
        product = np.unique([file.parent.name for file in files], return_inverse=True)[1]
        others["photos"] = Pictures(load_image_encoder(encoder).encode(files), product, np.full(len(files), -1))
    rows = compare(pictures, others=others)
    write_json(out / "agreement.json", rows)
    _print_table(rows)
    unseen = {row["quantizer"]: row for row in rows if row["products"] == "held out"}
    whole = {row["quantizer"]: row for row in rows if row["products"] == "all"}
    plain = ["ResidualKMeans", "ResidualKMeans of means", "RQVAE", "KHQE"]
    return {
        "vrq_ahead_points": {
            name: [round(100 * (unseen["VRQ"][key] - unseen[name][key]), 1) for key in ("agreement@1", "agreement@2")]
            for name in plain
        },
        "icr@3": {name: round(row["ICR@3"], 3) for name, row in whole.items()},
        "icr": {name: round(row["ICR"], 3) for name, row in whole.items()},
    }


def validate(out: Path) -> dict[str, Any]:
    """Compare settings on products that `evaluate` never holds out, and write `validation.json`."""
    from benchmarks.agreement import VARIANTS, compare, never_held_out

    pictures = _pictures(out)
    products = never_held_out(int(pictures.product.max()) + 1)
    rows = compare(pictures.of(products), quantizers=VARIANTS)
    write_json(out / "validation.json", rows)
    _print_table(rows)
    return {"validation_products": len(products)}


def _pictures(out: Path) -> Pictures:
    from benchmarks.agreement import Pictures

    views = pl.read_parquet(out / "views.parquet")
    vectors = load_views(out).vectors
    if len(views) != len(vectors):
        problem = f"views.parquet has {len(views)} rows, vectors.npy {len(vectors)}"
        raise UserError(problem, place=out, remedy="run it with --models again")
    return Pictures(np.asarray(vectors), _numbers(views["product"]), _numbers(views["category"]))


def _numbers(names: pl.Series) -> NDArray[np.int64]:
    return np.unique(names.to_numpy(), return_inverse=True)[1]


def _print_table(rows: list[dict[str, Any]]) -> None:
    columns = [key for key in rows[0] if key not in ("quantizer", "products")]
    print(f"{'products':<10}{'quantizer':<25}" + "".join(f"{column:>13}" for column in columns))
    for row in sorted(rows, key=lambda row: str(row["products"])):
        numbers = "".join(f"{row[column]:>13.3f}" if column in row else f"{'':>13}" for column in columns)
        print(f"{row['products']:<10}{row['quantizer']:<25}{numbers}")


def _tell(done: int, total: int) -> None:
    log.info("encoded %d of %d views", done, total)


if __name__ == "__main__":
    main()
