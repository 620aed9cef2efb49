"""A bar for whoever waits for many modules."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ..adapters import Adapter


@contextmanager
def progress(modules: int, on_module: Callable[[], object] | None) -> Iterator[Callable[[], object]]:
    """What to call after each module: the callback, or a bar in terminals and notebooks, from the first second on."""
    if on_module is None and (sys.stderr.isatty() or "ipykernel" in sys.modules):
        from tqdm.auto import tqdm  # here: it costs time, and few see it

        with tqdm(total=modules, unit=" modules", leave=False, delay=1) as bar:
            yield bar.update
    else:
        yield on_module or (lambda: None)


def each_module(adapters: Sequence[Adapter], on_module: Callable[[], object] | None) -> Iterator[tuple[Adapter, str]]:
    """Every module of every adapter, with :func:`progress` after each."""
    with progress(sum(map(len, adapters)), on_module) as step:
        for adapter in adapters:
            for module in adapter:
                yield adapter, module
                step()
