"""The server that `bora-analysis dashboard` starts: what a first visitor needs is loaded before anyone can come.

`streamlit run app/streamlit_app.py` does the same without it; there the first page takes some seconds longer.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path


def warm() -> None:
    """Import what the pages import, and analyse the bundled adapters that are shown at first."""
    for name in ("charts", "method_charts", "columns", "controls", "inspection", "lab_model", "navigation", "picker"):
        import_module(f"app.{name}")
    for name in ("scipy.linalg", "pyarrow.ipc"):
        import_module(name)
    import pandas as pd
    from streamlit import dataframe_util

    from app import sources
    from app.server_settings import settle

    tables = [sources.table_store().get(source) for source in sources.usual()]
    sources.joined(tables)
    dataframe_util.convert_anything_to_arrow_bytes(pd.DataFrame({"a": [1.0]}))
    settle()


def main() -> None:
    """Run Streamlit with the arguments of this process, as ``streamlit run`` has them."""
    from streamlit.web import cli

    from app.limits import limit_memory

    warm()
    limit_memory()
    sys.argv = ["streamlit", "run", *sys.argv[1:]]
    cli.main()


if __name__ == "__main__":
    folder = Path(__file__).resolve().parent
    if (folder.parent / "bora_analysis").is_dir():  # a checkout goes with its own package, whichever is installed
        sys.path.insert(1, str(folder.parent))
    from bora_analysis.bundled import app_package

    app_package(folder)
    main()
