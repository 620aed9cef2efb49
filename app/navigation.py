"""The navigation, and one run of a page."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app import sources
from app.context import load
from app.page_style import sheet
from app.palette import theme
from app.picker import picker, troubles
from app.server_settings import settle
from bora_analysis import __version__
from bora_analysis.analysis import views

#: BoRA, Block-Diversified Low-Rank Adaptation.
PAPER = "https://arxiv.org/abs/2508.06953"


def main() -> None:
    """One run of the script: the sidebar, then the page that the visitor is on."""
    st.set_page_config(page_title="bora_analysis", page_icon=str(Path(__file__).with_name("icon.svg")), layout="wide")
    start, spectra, fleet = (
        st.Page("app_pages/start.py", title="Start", icon=":material/add_circle:"),
        st.Page("app_pages/spectra.py", title="Spectra", icon=":material/show_chart:"),
        st.Page("app_pages/fleet.py", title="Fleet", icon=":material/scatter_plot:"),
    )
    home = st.Page(lambda: None, title="Home", url_path="home", default=True, visibility="hidden")
    page = st.navigation(
        {
            "Adapters": [
                home,
                start,
                spectra,
                st.Page("app_pages/layers.py", title="Layers", icon=":material/grid_on:"),
                st.Page("app_pages/training.py", title="Training", icon=":material/timeline:"),
                fleet,
                st.Page("app_pages/capture.py", title="Capture", icon=":material/filter_center_focus:"),
                st.Page("app_pages/compare.py", title="Compare", icon=":material/compare:"),
                st.Page("app_pages/relative.py", title="Relative", icon=":material/balance:"),
                st.Page("app_pages/trim.py", title="Trim", icon=":material/content_cut:"),
                st.Page("app_pages/merge.py", title="Merge", icon=":material/merge:"),
            ],
            "Method": [
                st.Page("app_pages/lab.py", title="Synthetic lab", icon=":material/science:"),
                st.Page("app_pages/budget.py", title="Budget", icon=":material/savings:"),
                st.Page("app_pages/paper.py", title="Paper", icon=":material/article:"),
                st.Page("app_pages/about.py", title="About", icon=":material/info:"),
            ],
        },
        expanded=True,  # of a dozen pages Streamlit would hide the last
    )
    if page == home:
        link = {name: st.query_params.get_all(name) for name in st.query_params}
        told = sources.arguments()
        # Until there was a page to start on, links without a page were those of Spectra.
        shown = spectra if told.paths or link else fleet if told.fleet else start
        st.switch_page(shown, query_params=link)
    adapters, tau, place = picker()
    context = st.session_state["_context"] = load(adapters, tau)
    troubles(place, context)
    st.sidebar.caption(f"bora_analysis {__version__} · [the paper of BoRA]({PAPER})")
    looks = views.looks_of(context.layer_metrics) if context.sources else {}
    colours = {source.key: looks[source.label].colour for source in context.sources if source.label in looks}
    known = enumerate(adapters)
    chips = {place: colours.get(source.key) for place, source in known if source not in context.waiting}
    st.html(sheet(theme(), chips))
    settle()
    try:
        page.run()
    finally:  # a page may stop the script
        settle(page.title)
