"""The README's picture, from bundled data: ``python docs/site/pictures.py`` draws it again; a test compares the two."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from PIL import Image

from bora_analysis import figures

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "images" / "what-the-task-needs.png"
#: Adapter → what the picture calls it.
SHOWN = {
    "trained-lora-r8": "LoRA, r = 8",
    "trained-lora-r32": "LoRA, r = 32",
    "trained-bora-r8-b8": "BoRA, rank ≤ 64",
    "trained-bora-r8-b16": "BoRA, rank ≤ 128",
}


def draw(place: Path) -> None:
    """The accuracy with only the k largest directions of every ΔW, of four of the bundled adapters."""
    table = pd.read_csv(ROOT / "data" / "accuracy_by_rank.csv")
    figure = figures.accuracy_by_rank(table[table["adapter"].isin(SHOWN)], labels=SHOWN)
    figures.save(figure, place)
    with Image.open(place) as image:  # 40 kB instead of 200
        small = image.convert("RGB").resize((image.width * 2 // 3, image.height * 2 // 3), Image.Resampling.LANCZOS)
    small.quantize(64).save(place, optimize=True)


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    draw(PICTURE)
