"""Page: what this is, what it keeps of a visitor and for how long, and what a visitor may use."""

from __future__ import annotations

import streamlit as st

from app import sources
from app.explain import question
from app.limits import limits
from bora_analysis import __version__
from bora_analysis.files.errors import counted

question("About", f"bora_analysis {__version__}: what rank does a low-rank adapter really use?")
own, told = limits(), sources.arguments()
until = f"for {own.minutes:g} minutes, or until the server stops" if own.minutes else "until the server stops"
st.markdown(
    f"""
It computes the exact singular values of every update ΔW of an adapter, without the base model. It is built around
[BoRA, Block-Diversified Low-Rank Adaptation](https://arxiv.org/abs/2508.06953). Licence: Apache-2.0.

### What is kept

- **Uploads** lie in a private temporary folder of this server {until}; the last {own.kept} of all visitors stay.
  A link with `upload=` opens one for everybody who has the link: its word cannot be guessed.
- **Tables** of singular values and ranks stay in the server's memory, without tensors, until others need the room.
- **Nothing else**: no account and no usage statistics. Nothing is sent anywhere.

### What a visitor may use

| what | limit |
|---|---|
| one uploaded file | {own.upload_mb} MB |
| what one upload unpacks to | {own.unpacked >> 20:,} MB |
| uploads from one address | {f"{own.hourly} an hour" if own.hourly else "no limit"} |
| one analysis | {f"{own.seconds:g} s" if own.seconds else "no limit"} |
| memory of the server | {f"{own.memory >> 30} GB" if own.memory else "no limit"} |
| analyses at a time | {sources.ANALYSES} |
| paths on the server | {f"in {counted(len(told.root), 'folder')}" if told.root else "none"} |
| adapters of the Hub | {"yes" if told.hub else "no"} |
"""
)
