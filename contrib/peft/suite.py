"""A pytest plugin: PEFT's own tests, from its source distribution, with this package's methods in their lists.

Their code runs as it is. Wherever a list of theirs has an entry for LoRA that a method's configuration understands, the
method takes its place; all other tests are dropped. :mod:`run_suite` starts it, with :mod:`offline`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lineup import ALONE, EXPECTED, METHODS, RATES, Method
from peft import LoraConfig, PeftConfig, VeraConfig

#: The parameter of a test without a list: the method that the name LoraConfig makes, see :data:`lineup.ALONE`.
IN_PLACE = "in_place_of_lora"


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    module: Any = metafunc.module
    _prepare(module)
    if module.__name__.endswith("initialization") and metafunc.function.__name__ in ALONE:
        metafunc.fixturenames.append(IN_PLACE)
        both = [method.config for method in METHODS.values() if not method.linear]
        metafunc.parametrize(IN_PLACE, both, indirect=True)
    own = metafunc.definition.own_markers
    for i, mark in enumerate(own):
        if mark.name == "parametrize" and len(mark.args) > 1 and not callable(mark.args[1]):
            values = list(mark.args[1])
            # The list of quantised models has no LoRA; VeRA takes the same settings.
            peer = VeraConfig if module.__name__.endswith("quantization") else LoraConfig
            ours = [new for value in values for new in of_value(value, peer)]
            if ours:
                kwargs: dict[str, Any] = {
                    key: value for key, value in mark.kwargs.items() if key != "ids" or callable(value)
                }
                own[i] = pytest.mark.parametrize(mark.args[0], ours, **kwargs).mark


def _prepare(module: Any) -> None:
    if getattr(module, "_prepared", False):
        return
    module._prepared = True
    if hasattr(module, "set_init_weights_false"):
        theirs = module.set_init_weights_false
        module.set_init_weights_false = lambda kind, kwargs: (
            {**kwargs, "init_lora_weights": False} if kind in CLASSES else theirs(kind, kwargs)
        )


CLASSES = tuple(dict.fromkeys(method.config for method in METHODS.values()))


def of_value(value: Any, peer: type[PeftConfig]) -> Iterator[Any]:
    """An entry of a list of theirs for each method in the peer's place; nothing if the entry is none of the peer's."""
    if isinstance(value, type(pytest.param())):
        value = value.values[0] if len(value.values) == 1 else value.values
    entry = value if isinstance(value, tuple | list) else (value,)
    for method in METHODS.values():
        made = [_replaced(part, method, entry, peer) for part in entry]
        if any(part is not None and not isinstance(part, str) for part in made) and _REFUSED not in made:
            parts = tuple(old if new is None else new for old, new in zip(entry, made, strict=True))
            yield parts if isinstance(value, tuple | list) else parts[0]


_REFUSED = object()


def _replaced(part: Any, method: Method, entry: Sequence[Any], peer: type[PeftConfig]) -> Any:
    """The part of an entry with the method in it, None to leave it, or _REFUSED."""
    if part is peer:
        return method.config
    if part == "lora":
        return method.prefix
    if isinstance(part, dict) and any(other is peer for other in entry):
        return _settings(part, method, entry)
    if type(part) is LoraConfig:
        usual = LoraConfig()
        told = {f.name: getattr(part, f.name) for f in dataclasses.fields(part) if f.init}
        changed = {key: value for key, value in told.items() if value != getattr(usual, key)}
        settings = _settings(changed, method, entry)
        return settings if settings is _REFUSED else method.config(**settings)
    return None


def _settings(settings: dict[str, Any], method: Method, entry: Sequence[Any]) -> Any:
    known = {field.name for field in dataclasses.fields(method.config)}
    names = [part for part in entry if isinstance(part, str)]
    settings = {key: value for key, value in settings.items() if key != "use_dora" or value}
    if not set(settings) <= known or any(method.refuses(name, settings) for name in names or [""]):
        return _REFUSED
    if settings.get("init_lora_weights") not in (None, True, False) or settings.get("target_parameters"):
        return _REFUSED
    if str(settings.get("bias", "")).endswith("_only"):
        settings["bias"] = f"{method.prefix}_only"
    return {**settings, **method.settings(names)}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, dropped = [], []
    for item in items:
        (kept if _ours(item) else dropped).append(item)
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept


@pytest.fixture(autouse=True)
def _same_each_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.manual_seed(0)
    found = _ours(request.node)
    name = next((key for key, method in METHODS.items() if method.config is found), "")
    sgd = torch.optim.SGD
    for test, rates in RATES.items():
        if test in request.node.nodeid and name in rates:
            monkeypatch.setattr(torch.optim, "SGD", lambda given, lr, own=rates[name]: sgd(given, lr=own))
    made = []
    if alone := IN_PLACE in getattr(request.node, "callspec", SimpleNamespace(params=())).params:
        own = METHODS[name]

        def make(**settings: Any) -> PeftConfig:
            # PEFT changes the list of modules_to_save in place; the next method gets the test's own list again.
            made.append(own.config(**copy.deepcopy({**own.small, **settings})))
            return made[-1]

        monkeypatch.setattr(request.module, "LoraConfig", make)
    yield
    assert made or not alone, "the test has made no LoraConfig"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.when == "call" and report.failed and call.excinfo is not None:
        reason = next((why for part, why in EXPECTED.items() if part in str(call.excinfo.value)), None)
        if reason is not None:
            report.outcome, report.wasxfail = "skipped", reason
    return report


def _ours(item: pytest.Item) -> type[PeftConfig] | None:
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    for value in parameters.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            kind = part if isinstance(part, type) else type(part)
            if kind in CLASSES:
                return kind
    return None
