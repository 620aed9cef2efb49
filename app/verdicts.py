"""The top of a page about adapters: the verdict on each, and what it is."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app.bounded import bounded
from app.context import Context
from app.inspection import opened
from app.safe_markdown import markdown
from app.sources import Source, stamp
from bora_analysis.adapters import AdapterError
from bora_analysis.analysis import views
from bora_analysis.analysis.columns import missing
from bora_analysis.analysis.overview import overview
from bora_analysis.analysis.verdict import verdicts

#: Adapters that are shown without a click.
_AT_ONCE = 4
_CHARACTERS = 400_000  # of what is kept
_PLAIN = {"method": "{}", "parameters": "{} parameters", "dtype": "{}", "targets": "{}", "base": "base model {}"}
_PLAIN |= {"scaling": "scaling {}"}


def verdict_on(context: Context, layers: pd.DataFrame) -> None:
    """The verdict on each adapter of ``layers``, and its method, r, α, targets, dtype and base model.

    These stand below the verdict of one adapter; for several they are in a box that is closed at first, and so are the
    verdicts behind the first few.
    """
    layers = views.last_steps(layers)
    sources = {source.label: source for source in context.sources}
    known = dict.fromkeys(zip(layers["adapter"].tolist(), layers["step"].tolist(), strict=True))
    lines, words = [], []
    for label, place in known:
        if label in sources:
            step = None if missing(place) else int(place)
            sentence, own = _told(sources[label], step, layers)
            name = "" if step is None else f" step {step}"
            lines.append((f"**{markdown(label)}{name}**: " if name else "", markdown(sentence)))
            words.append((f"**{markdown(label)}{name}**: ", markdown(own)))
    if len(lines) == 1:
        (name, sentence), (_, own) = lines[0], words[0]
        st.markdown(f"{name}{sentence}.  \n:small[{own}]" if own else f"{name}{sentence}.")
        return
    told = [f":small[{name}{sentence}.]" for (name, _), (_, sentence) in zip(words, lines, strict=True)]
    if told:
        st.markdown("  \n".join(told[:_AT_ONCE]))
        with st.expander("Method, r, α, targets, dtype and base model", icon=":material/info:"):
            st.markdown("  \n".join([*told[_AT_ONCE:], *(f":small[{name}{own}]" for name, own in words if own)]))


def _key(source: Source, step: int | None, layers: pd.DataFrame) -> tuple[str, int, int | None]:
    return str(source.path), stamp(source.path), step


@bounded(_CHARACTERS, lambda told: sum(map(len, told)), _key)
def _told(source: Source, step: int | None, layers: pd.DataFrame) -> tuple[str, str]:
    """The verdict and the overview: they do not depend on the threshold, and stay while it moves."""
    own = layers[layers["adapter"] == source.label]
    (found,) = verdicts(own)
    return found.sentence, _overview(source, step, own)


def _overview(source: Source, step: int | None, layers: pd.DataFrame) -> str:
    try:
        adapter = next(each for each in opened(source.path, stamp(source.path)) if step in (None, each.step))
    except (AdapterError, StopIteration):  # the file has changed since its tables were made
        return ""
    known = overview(adapter, layers, beside=False)
    known.pop("trained", None)
    return ", ".join(_PLAIN.get(name, f"{name} = {{}}").format(words) for name, words in known.items())
