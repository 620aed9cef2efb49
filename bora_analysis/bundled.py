"""Where the bundled data and the dashboard lie: beside the package in a checkout, inside it in an installed wheel."""

from __future__ import annotations

from pathlib import Path


def data_folder() -> Path:
    """The folder with the bundled adapters and the paper's tables; ``FileNotFoundError`` if it was not installed."""
    return _bundled("data", "README.md", "bundled data")


def app_folder() -> Path:
    """The folder with the dashboard's ``streamlit_app.py``; ``FileNotFoundError`` if it was not installed."""
    return _bundled("app", "streamlit_app.py", "dashboard")


def bundled_adapters() -> list[Path]:
    """The folders of the bundled adapters."""
    return sorted(path.parent for path in data_folder().glob("*/adapter_config.json"))


def bundled_runs() -> list[Path]:
    """The folders of the bundled training runs, each with its ``checkpoint-N``."""
    return sorted({path.parent.parent for path in data_folder().glob("runs/*/checkpoint-*/adapter_config.json")})


def _bundled(name: str, sign: str, what: str) -> Path:
    package = Path(__file__).parent
    for folder in (package / name, package.parent / name):
        if (folder / sign).is_file():
            return folder
    raise FileNotFoundError(f"the {what} is neither in {package} nor in {package.parent}; install the wheel anew")
