"""The dashboard: `bora-analysis dashboard`, or `streamlit run app/streamlit_app.py -- [PATH…] [--root DIR]`.

Streamlit runs this file at each visit and each click. What it does is in ``navigation``; each page is a file in
``app_pages``.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from bora_analysis.bundled import app_package

app_package(Path(__file__).resolve().parent)
import_module("app.navigation").main()
