"""Where the bundled data lies: beside the package in a checkout, inside it in an installed wheel."""

from __future__ import annotations

from pathlib import Path


def data_folder() -> Path:
    """The folder with the bundled adapters and the paper's tables; ``FileNotFoundError`` if it was not installed."""
    package = Path(__file__).parent
    for folder in (package / "data", package.parent / "data"):
        if (folder / "README.md").is_file():
            return folder
    raise FileNotFoundError(f"the bundled data is neither in {package} nor in {package.parent}; install the wheel anew")
