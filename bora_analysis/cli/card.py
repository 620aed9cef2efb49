"""The command that writes a card: a picture of an adapter, and a section for its page on the Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..patterns import late
from .common import command, each_analysed, note, null_of, opened, reading, usage

if TYPE_CHECKING:
    from ..adapters import Adapter
    from ..figures.card import Words

_PICTURES = (".png", ".svg", ".pdf")
_BEGIN, _END = "<!-- bora_analysis", "<!-- /bora_analysis -->"
_CAUTION = "Energy is not accuracy: small directions may matter, and large ones may not."
_SECTION = late(rf"{_BEGIN} .*?{re.escape(_END)}\n?", re.DOTALL)


@command(
    "card my-adapter -o card.png",
    "card my-adapter -o my-adapter/README.md",
    "card my-adapter -o card.pdf --no-null --font STIXGeneral",
)
@click.option(
    "-o", "--output", metavar="FILE", multiple=True, required=True,
    help="A .png (1200 × 630), .svg, .pdf or .md file; repeatable.",
)  # fmt: skip
@click.option("--no-null", is_flag=True, help="Without the ranks of random factors of the same sizes.")
@click.option("--font", help="A font family, such as 'Times New Roman', or STIXGeneral, which is always there.")
@reading(count=1, metavar="PATH")
def card(
    paths: str | tuple[str, ...],
    output: tuple[str, ...],
    no_null: bool,
    font: str | None,
    reading: dict[str, Any],
    analysis: dict[str, Any],
) -> None:
    """One picture of an adapter: the rank allowed and used, where, the spectrum, three findings.

    A .md file gets a section with the numbers, the findings and a link to the picture, which is written beside it. In a
    README.md that is there, such as a Hub page, the section is put at the end, or in place of the one of an earlier
    card; its front matter and the rest stay as they are. Of several checkpoints the last counts.
    """
    from ..analysis.tables import analyse
    from ..figures import save
    from ..figures.card import DPI
    from ..figures.card import card as drawn

    targets = [Path(path) for path in output]
    for target in targets:
        if target.suffix.lower() not in (*_PICTURES, ".md"):
            raise click.UsageError(f"-o {target}: expected a name that ends in {', '.join((*_PICTURES, '.md'))}")
        if target.is_dir():
            raise click.UsageError(f"-o {target}: is a folder; expected a file")
    with opened((paths,) if isinstance(paths, str) else paths, reading) as (chosen, failed):
        if len({adapter.name for adapter in chosen}) > 1:
            raise click.UsageError(f"a card shows one adapter; there are {', '.join(each.name for each in chosen[:4])}")
        for adapter in chosen[-1:]:
            parts = each_analysed([adapter], failed, analyse, **analysis)
            with usage():
                for tables in parts:
                    null = None if no_null else null_of(tables)
                    words = words_of(adapter, tables.layer_metrics, null)
                    figure = drawn(tables.layer_metrics, tables.spectra, words, null=null, font=font)
                    pictures = [target for target in targets if target.suffix.lower() in _PICTURES]
                    for target in targets:
                        if target.suffix.lower() == ".md":
                            picture = _picture_of(target, pictures)
                            pictures += [picture] * (picture not in pictures)
                            _written(target, section(words, tables.layer_metrics, null, picture.name, paths))
                    for picture in pictures:
                        click.echo(f"wrote {save(figure, picture, dpi=DPI)}", err=True)


def words_of(adapter: Adapter, layers: Any, null: Any) -> Words:
    """What is written on a card: the sentences that the other commands print."""
    from .. import __version__
    from ..analysis.overview import overview
    from ..analysis.telling import telling
    from ..analysis.verdict import verdicts
    from ..figures.card import Words
    from ..threshold import Threshold
    from .glance import facts_of

    known = overview(adapter, layers)
    first = facts_of(known)
    name = adapter.name if adapter.step is None else f"{adapter.name} step {adapter.step}"
    (found,) = verdicts(layers)
    tau = Threshold.of(layers["threshold"].iloc[0])
    foot = [f"effective rank: σ > {tau.formula}"]
    if null is not None and len(null.layer_metrics):
        draws = int(null.layer_metrics["draws"].iloc[0])
        foot.append(f"black marks and dots: random factors of the same sizes, mean of {draws} draws")
    if dtype := known.get("dtype"):
        foot.append(f"stored in {dtype}, computed in float64")
    return Words(
        name,
        [first, "; ".join(f"{key}: {known[key]}" for key in ("targets", "base") if key in known)],
        found.sentence[:1].upper() + found.sentence[1:] + ".",
        [f"{each.name}: {each.reason}." for each in telling(layers)],
        "; ".join([*foot, f"bora_analysis {__version__}"]),
    )


def section(words: Words, layers: Any, null: Any, picture: str, path: Any) -> str:
    """The Markdown of a card, between comments by which a later one finds it."""
    from .. import __version__
    from ..figures.card import ranks

    found = ranks(layers, null)
    bound = float(layers["rank_bound"].mean())
    data = {
        "version": __version__,
        "threshold": str(layers["threshold"].iloc[0]),
        "modules": len(layers),
        "rank_bound": bound,
        "ranks": {label: None if value != value else round(value, 4) for label, value, _ in found},
        "null": {label: round(beside, 4) for label, _, beside in found if beside is not None},
    }
    lines = [
        f"{_BEGIN} {json.dumps(data, ensure_ascii=False).replace('--', '- -')} -->",
        "## The rank that this adapter uses",
        "",
        f"![{_plain(words.name)}: rank allowed and used, by layer, and its spectrum]({_link(picture)})",
        "",
        _plain(words.verdict),
        "",
        *_rows(found, bound, len(layers)),
        "",
        *(f"- {_plain(each)}" for each in words.findings),
        "",
        f"<sub>{_plain(words.foot)}. {_CAUTION} Made by `bora-analysis card`.</sub>",
        _END,
    ]
    return "\n".join(lines) + "\n"


def _rows(found: list[tuple[str, float, float | None]], bound: float, modules: int) -> Iterator[str]:
    beside = any(null is not None for _, _, null in found)
    yield f"| mean over {modules} modules | this adapter |" + (" random factors |" if beside else "")
    yield "|---|---:|" + ("---:|" if beside else "")
    for label, value, null in [("rank bound", bound, bound), *found]:
        cells = [f"{value:.4g}" if value == value else "not known"]
        cells += [f"{null:.4g}" if null is not None else "not known"] * beside
        yield f"| {label} | {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    for sign in "\\|*_<`[]":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def _link(name: str) -> str:
    from urllib.parse import quote

    return quote(name)


def _picture_of(target: Path, pictures: list[Path]) -> Path:
    """The picture that a page shows: one in its folder that a browser can draw, else one beside it."""
    for picture in pictures:
        if picture.parent.resolve() == target.parent.resolve() and picture.suffix.lower() in (".png", ".svg"):
            return picture
    return target.with_name("card.png" if target.stem.lower() == "readme" else f"{target.stem}.png")


def _written(target: Path, text: str) -> None:
    """The section at its place in the file; bytes of the rest, its front matter and line ends, stay."""
    from ..atomic import replacing

    before = target.read_bytes().decode("utf-8") if target.exists() else ""
    ends = "\r\n" if "\r\n" in before else "\n"
    text = text.replace("\n", ends)
    if found := re.search(_SECTION.pattern.replace(r"\n?", r"(?:\r?\n)?"), before, re.DOTALL):
        whole = before[: found.start()] + text + before[found.end() :]
    elif before:
        whole = before + ends * (2 - min(2, len(before) - len(before.rstrip("\n\r")))) + text
    else:
        whole = text
    with replacing(target) as temporary:
        temporary.write_bytes(whole.encode("utf-8"))
    if before:
        note(f"{target}: the section {'replaces that of an earlier card' if found else 'stands at the end'}")
    click.echo(f"wrote {target}", err=True)
