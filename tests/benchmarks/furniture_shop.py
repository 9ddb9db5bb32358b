"""A furniture library of two models: a box of two materials, and a card with a picture on it."""

import io
import zipfile
from pathlib import Path

from PIL import Image

CATALOGUE = """
id#1=Shop#box
name#1=Red box
category#1=Boxes
model#1=/shop/box/box.obj
id#2=Shop#card
name#2=Card
category#2=Paper
model#2=/shop/card/card.obj
"""
BOX = """
mtllib box.mtl
v 0 0 0
v 2 0 0
v 2 1 0
v 0 1 0
v 0 0 3
v 2 0 3
v 2 1 3
v 0 1 3
usemtl red
f 1 2 3 4
f 5 6 7 8
f 1 2 6 5
usemtl dull
f 4 3 7 8
f 1 4 8 5
f 2 3 7 6
"""
CARD = """
mtllib card.mtl
v 0 0 0
v 1 0 0
v 1 1 0
v 0 1 0
vt 0 0
vt 1 0
vt 1 1
vt 0 1
usemtl printed
f 1/1 2/2 3/3 4/4
"""


def library(folder: Path, **others: str) -> Path:
    picture = Image.new("RGB", (600, 300), "#0000ff")
    picture.paste("#00ff00", (0, 0, 600, 150))
    stream = io.BytesIO()
    picture.save(stream, "png")
    files: dict[str, str | bytes] = {
        "PluginFurnitureCatalog.properties": CATALOGUE,
        "shop/box/box.obj": BOX,
        "shop/box/box.mtl": "newmtl red\nKd 1 0 0\nnewmtl dull\nKd 0.2 0.2 0.2\n",
        "shop/card/card.obj": CARD,
        "shop/card/card.mtl": "newmtl printed\nKd 1 1 1\nmap_Kd print.png\n",
        "shop/card/print.png": stream.getvalue(),
        **others,
    }
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "shop.sh3f", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return folder
