"""The adapters of a sweep, read again where the results do not suffice: exact pairs, a shared basis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..adapters import Adapter, AdapterError, read_adapter
from ..adapters.locate import CHECKPOINT, HUB_ID, download
from ..files.errors import as_named
from .measuring import fetched
from .numbers import Fleet
from .sources import find
from .storage import is_url


@contextmanager
def reopened(given: Sequence[Any], fleet: Fleet | None = None, **reading: Any) -> Iterator[list[Adapter]]:
    """Adapters by their ids; what is fetched from a store stays until the end.

    Parameters
    ----------
    given : ids of a sweep, other things that :func:`bora_analysis.read_adapter` takes, or adapters.
    fleet : adapters of a sweep are read with its options, which ``reading`` may change.

    Raises
    ------
    AdapterError
        One is not there any more, or cannot be read.
    """
    told = {} if fleet is None or fleet.results is None else fleet.results.reading()
    options = {**told, **reading, "steps": False}
    with ExitStack() as stack:
        yield [each if isinstance(each, Adapter) else _opened(each, options, stack) for each in given]


def named_in(fleet: Fleet, name: str) -> str:
    """The id of an adapter of the fleet that is called so; a name that no adapter has is returned as it is.

    Raises
    ------
    AdapterError
        Several adapters have the name.
    """
    rows = fleet.adapters
    if (rows["id"] == name).any():
        return name
    ids = rows.loc[rows["name"] == name, "id"].tolist()
    if len(ids) > 1:
        raise AdapterError(f"{name}: {len(ids)} adapters have this name; name one by its id, such as {ids[0]}")
    return ids[0] if ids else name


def _opened(given: Any, options: Any, stack: ExitStack) -> Adapter:
    place = given
    if is_url(given):
        found = find([given], whole=True)
        items = list(found.items.values())
        if not items and found.errors:
            raise AdapterError("; ".join(found.errors))
        if len(items) != 1:
            raise AdapterError(f"{given}: holds {len(items)} adapters; expected one")
        place = fetched(items[0], Path(stack.enter_context(TemporaryDirectory(prefix="fleet-"))))
    elif isinstance(given, str) and not Path(given).exists():
        place = as_named(given) if Path(as_named(given)).exists() else given
        above, _, last = given.rpartition("/")
        if CHECKPOINT.fullmatch(last) and HUB_ID.fullmatch(above):
            place = download(above) / last
    adapter = read_adapter(place, **options)
    if not isinstance(adapter, Adapter):
        raise AdapterError(f"{given}: holds several checkpoints; name one")
    return adapter
