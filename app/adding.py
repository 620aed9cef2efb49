"""What a visitor adds, checked before it is shown: a path, a folder of adapters, an id of the Hub."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app import sources
from app.safe_markdown import one_line
from app.sources import Source
from bora_analysis.adapters import AdapterError, checkpoints
from bora_analysis.adapters.locate import HUB_ID, adapters_below, download
from bora_analysis.files.base_model import is_model, model_paths
from bora_analysis.files.configuration import read_configuration
from bora_analysis.files.errors import BaseNeededError, counted
from bora_analysis.style import method_look

#: Adapters of a folder that are offered, and the levels below it that are looked through.
MEMBERS, DEPTH = 200, 2
#: What one download from the Hub may come to, in bytes.
HUB_BYTES = 2 << 30


@dataclass(frozen=True)
class Candidate:
    """An adapter that was added and checked, by its names: no tensor has been read.

    Attributes
    ----------
    words : what it is, or what is wrong with it.
    ready : whether it can be read. needs_base : whether all that it lacks is its base model.
    """

    source: Source
    words: str
    ready: bool = False
    needs_base: bool = False


def lines_of(text: str) -> list[str]:
    """The paths and Hub ids in a text, one a line, without quotes.

    >>> lines_of(' runs/a \\n\\n"runs/b"\\n runs/a')
    ['runs/a', 'runs/b']
    """
    words = (line.strip().strip("\"'").strip() for line in text.splitlines())
    return list(dict.fromkeys(word for word in words if word))


def found(word: str) -> list[Source]:
    """The adapters that a line stands for: one, those in a folder, or one of the Hub; or AdapterError."""
    try:
        place, _ = sources.place_within_roots(word)
    except AdapterError:
        if HUB_ID.fullmatch(word) is None:
            raise
        return [from_hub(word)]
    try:
        return [sources.within_roots(word)]
    except AdapterError:
        inside = members(place)
        if not inside and place.suffix == ".zip":
            raise AdapterError(f"{one_line(word)}: is a zip; drop it into the box for zips, or unpack it") from None
        if not inside:
            raise
        return inside


def members(folder: Path) -> list[Source]:
    """The adapters in a folder that lie within the roots; none for a file."""
    if not folder.is_dir():
        return []
    inside = []
    for place in adapters_below(folder, depth=DEPTH)[:MEMBERS]:
        with suppress(AdapterError):  # a link that leads elsewhere
            found, word = sources.place_within_roots(str(place))
            inside.append(Source(f"path:{word}", sources.title(found), found, "path"))
    return inside


def from_hub(word: str) -> Source:
    """An adapter of the Hub, downloaded into its usual cache; AdapterError where that is not allowed, or too large."""
    if not sources.arguments().hub:
        raise AdapterError(f"{one_line(word, 120)}: this server opens nothing from the Hub; upload the adapter")
    size = hub_bytes(word)
    if size > HUB_BYTES:
        raise AdapterError(f"{word}: its weights come to {size:,} bytes; at most {HUB_BYTES:,} are fetched")
    return Source(f"hub:{word}", sources.title(Path(word)), download(word), "hub")


def hub_bytes(word: str) -> int:
    """What the files of an id come to that could be weights; 0 where the Hub does not say."""
    from huggingface_hub import HfApi  # here: only Hub ids need it

    hit = HUB_ID.fullmatch(word)
    repo, revision = hit.group("repo", "revision") if hit else (word, None)
    try:
        files = HfApi().model_info(repo, revision=revision, files_metadata=True).siblings or []
    except Exception:  # the download says what is wrong
        return 0
    return sum(file.size or 0 for file in files if Path(file.rfilename).suffix in sources.SUFFIXES)


def checked(source: Source) -> Candidate:
    """What the names in the files say, in milliseconds."""
    try:
        sources.check(source)
        steps = checkpoints(sources.read(source.path))
        adapter = steps[-1]
        parts = [" and ".join(method_look(name).label for name in adapter.method.split("+"))]
        parts += [counted(len(adapter), "module")] + ([counted(len(steps), "step")] if len(steps) > 1 else [])
        return Candidate(source, ", ".join(parts), ready=True)
    except BaseNeededError as error:
        return Candidate(source, sources.told(source, error) + base_named(source), needs_base=True)
    except (AdapterError, OSError) as error:
        return Candidate(source, sources.told(source, error))
    except RecursionError:  # JSON of ten thousand brackets
        return Candidate(source, f"{source.label}: its configuration is nested too deeply")


def base_named(source: Source) -> str:
    """What the configuration says of the base model, as the end of a sentence; nothing where it says nothing."""
    with suppress(AdapterError, OSError, RecursionError):
        folder = source.path if source.path.is_dir() else source.path.parent
        named = (read_configuration(folder) or {}).get("base_model_name_or_path")
        if isinstance(named, str) and named:
            return f"; its configuration names {one_line(named, 120)}"
    return ""


def set_base(source: Source, text: str) -> None:
    """Read a source with a base model from now on: a folder within the roots, or a Hub id; or AdapterError.

    All visitors who look at this adapter have it, as they have its tables.
    """
    told, words = sources.arguments(), text.strip()
    if told.hub and HUB_ID.fullmatch(words) and not any((root / words).exists() for root in told.root):
        sources.BASES[source.path] = words
        return
    place, word = sources.place_within_roots(words)
    try:
        if not is_model(place):
            raise AdapterError(f"{word}: is no base model; expected config.json and the weights in one folder")
        sources.within(model_paths(place), word)
    except (OSError, RuntimeError) as error:
        raise AdapterError(f"{word}: cannot be opened ({type(error).__name__})") from None
    sources.BASES[source.path] = str(place)
