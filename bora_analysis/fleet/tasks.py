"""What passes between a sweep and those who work for it. Standard library only: those load little themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: ``error_kind`` of a row, see :mod:`.results`. A row of one of ``PASSING`` may go well at the next try.
UNREADABLE, TIMEOUT, CRASH, MEMORY, INTERNAL = "adapter", "timeout", "crash", "memory", "internal"
PASSING = (TIMEOUT, CRASH, MEMORY)
#: Kinds of tasks: an adapter as a whole; how many modules it has; a range of them; the ranges together.
WHOLE, PLAN, RANGE, JOIN = "whole", "plan", "range", "join"


#: Kinds of items.
PATH, URL, HUB = "path", "url", "hub"


@dataclass(frozen=True)
class Item:
    """One adapter to be analysed; of a Hub id all adapters in it, which only its download shows.

    Attributes
    ----------
    id : as in the results.
    kind : ``"path"``, ``"url"`` or ``"hub"``.
    place : what is read: the folder or the weight file.
    files : of a path or a URL all files that may be read.
    size : their bytes. stamp : see :mod:`.stamps`.
    whole : a whole fine-tuned model.
    """

    id: str
    kind: str
    place: str
    files: tuple[str, ...] = ()
    size: int = 0
    stamp: str = ""
    whole: bool = False


@dataclass(frozen=True)
class Job:
    """What holds for all adapters of a sweep.

    Attributes
    ----------
    results : the place of the results.
    options : the hash of what the numbers depend on.
    measuring : threshold, solver, device, quick. reading : options of :func:`bora_analysis.read_adapter`.
    spectra : whether these are stored. sketch : name of a function, empty for none.
    timeout : seconds for one try. memory : bytes of one worker, 0 for no bound.
    split_from : bytes from which an adapter is split into ranges of modules.
    keep_downloads : in the Hub's cache.
    path : where the driver finds modules, a sketch's among them; a worker looks there after its own places.
    """

    results: str
    options: str
    measuring: Mapping[str, Any]
    reading: Mapping[str, Any]
    spectra: bool = False
    sketch: str = ""
    timeout: float = 600.0
    memory: int = 4 << 30
    split_from: int = 256 << 20
    keep_downloads: bool = False
    path: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """A piece of work, as small as can fail for itself.

    Attributes
    ----------
    known : id → content hash of the adapters in it that are done, with the same options.
    hashed : content hash and bytes, where a plan has found them.
    first, last : the range of modules, last excluded.
    ranges : those that a join puts together.
    seconds : what was spent on them.
    """

    item: Item
    kind: str = WHOLE
    known: Mapping[str, str] = field(default_factory=dict)
    hashed: tuple[str, int] | None = None
    first: int = 0
    last: int = 0
    ranges: tuple[tuple[int, int], ...] = ()
    seconds: float = 0.0


#: What a task gives, a dictionary with one of these keys:
#: ``row``, of ``adapters``; ``same``, an id, with ``stamp``, where nothing changed; ``plan``, a number of modules (0
#: for an adapter that is not split), with ``hashed``; ``range``, an id, with ``seconds``; ``fatal``, why the sweep
#: cannot go on.
Outcome = dict[str, Any]
