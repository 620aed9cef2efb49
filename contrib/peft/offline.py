"""A pytest plugin: PEFT's tests without the Hub. Models are those of :mod:`hub`; two packages get a stand-in."""

from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

QUOTES = ["one two three four five", "six seven eight nine ten eleven", "two four six", "a b c d e"] * 5


class Quotes(dict[str, Any]):
    """As much of a DatasetDict as PEFT's tests of torch.compile use."""

    def map(self, function: Any, batched: bool) -> Quotes:
        rows = [function({"quote": [quote]}) for quote in QUOTES]
        return Quotes(train=Rows({key: value[0] for key, value in row.items()} for row in rows))

    def remove_columns(self, _: Any) -> Quotes:
        return self


class Rows(list[dict[str, Any]]):
    """A list of samples whose slices are columns."""

    def __getitem__(self, index: Any) -> Any:
        rows: Any = super().__getitem__(index)
        return {key: [row[key] for row in rows] for key in rows[0]} if isinstance(index, slice) else rows


class Always(dict[str, int]):
    """PEFT's record of models that were asked for: none has to be asked for."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: object) -> int:
        return 0


def pytest_configure(config: pytest.Config) -> None:
    for name, content in (
        ("datasets", {"load_dataset": lambda *_: Quotes(), "Dataset": Quotes, "IterableDataset": Quotes}),
        ("diffusers", {"StableDiffusionPipeline": type("StableDiffusionPipeline", (), {})}),
    ):
        if name not in sys.modules:
            module = ModuleType(name)
            vars(module).update(content, __spec__=SimpleNamespace(name=name, loader=None, origin=None))
            sys.modules[name] = module


def pytest_collection_finish(session: pytest.Session) -> None:
    utilities: Any = sys.modules.get("tests.testing_utils")
    if utilities is not None:
        utilities._HUB_MODEL_ACCESSES = Always()
    modules: set[Any] = {getattr(item, "module", None) for item in session.items}
    for module in modules:
        if hasattr(module, "PEFT_MODELS_TO_TEST"):  # an adapter's folder and revision
            module.PEFT_MODELS_TO_TEST[:] = [(os.environ["LOCAL_ADAPTER"], None)]
