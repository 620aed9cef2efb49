"""Where the bundled data and the dashboard lie: beside the package in a checkout, inside it in an installed wheel."""

from __future__ import annotations

import sys
import threading
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_LOADING = threading.Lock()


def data_folder() -> Path:
    """The folder with the bundled adapters and the paper's tables; ``FileNotFoundError`` if it was not installed."""
    return _bundled("data", "README.md", "bundled data")


def app_folder() -> Path:
    """The folder with the dashboard's ``streamlit_app.py``; ``FileNotFoundError`` if it was not installed."""
    return _bundled("app", "streamlit_app.py", "dashboard")


def app_package(folder: Path) -> None:
    """Make the dashboard's folder importable as the package ``app``, and its modules by no shorter name.

    Python and Streamlit put the folder of a script on the path. There ``charts`` would be the dashboard's or a package
    that a user has installed, whichever comes first, so it is taken off. The folder above cannot be on the path in
    its place: in a wheel it is this package, with modules such as ``metrics`` and ``style``.

    Parameters
    ----------
    folder : absolute, without links.
    """
    with _LOADING:  # Streamlit runs a script for each visitor, in threads
        sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != folder]
        known = getattr(sys.modules.get("app"), "__file__", None)
        if known is not None and Path(known).resolve().parent == folder:
            return
        for name in [name for name in sys.modules if name.partition(".")[0] == "app"]:  # another package of that name
            del sys.modules[name]
        spec = spec_from_file_location("app", folder / "__init__.py", submodule_search_locations=[str(folder)])
        if spec is None or spec.loader is None:
            raise FileNotFoundError(f"the dashboard in {folder} cannot be loaded; install the wheel anew")
        sys.modules["app"] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules["app"])


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
