"""The update relative to the start: PiSSA, LoRA-GA and others whose factors do not start at zero.

They take s B_0 A_0 out of the base model at initialisation, so that the update of the original model is
s (B A − B_0 A_0), of rank up to 2r. PEFT saves the first pair on request (``path_initial_model_for_weight_conversion``
needs it too); the difference is a product of concatenated factors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..catalogue import METHODS
from ..files.adapter_file import Found, Source
from ..files.errors import AdapterError
from ..updates.contract import Update
from ..updates.sums import since
from .adapter import Adapter


def relative(source: Source, found: Found, initial: Adapter) -> Found:
    """The same modules with the initial adapter's update taken off.

    Raises
    ------
    AdapterError
        A module that the initial adapter lacks, or other shapes there.
    """
    missing = [module for module in found.loaders if module not in initial]
    if missing:
        raise AdapterError(f"{initial.path}: the initial adapter has no {missing[0]}, which {source.path} has")
    method = _method(_initialised(source.config or {})) or found.method

    def loader(module: str) -> Callable[[], Update]:
        def load() -> Update:
            update = found.loaders[module]()
            try:
                return since(update, initial[module], method)
            except ValueError as error:
                raise AdapterError(f"{source.path}: {module}: the initial adapter does not fit: {error}") from None

        return load

    return found._replace(method=method, loaders={module: loader(module) for module in found.loaders})


def changes_base(config: Mapping[str, Any]) -> bool:
    """Whether training begins with a B·A that was taken out of the base model."""
    init = _initialised(config)
    return bool(_method(init)) or init.startswith("loftq")


def init_warnings(config: Mapping[str, Any]) -> list[str]:
    """Warnings where B·A is not the update of the original model."""
    warnings = []
    if changes_base(config):
        init = _initialised(config)
        warnings.append(
            f"init_lora_weights is {init!r}: the base model was changed at initialisation, so B·A is not the update of "
            "the original model; give the adapter as it was before training (--initial), or convert with PEFT's "
            "path_initial_model_for_weight_conversion (not for loftq)"
        )
    if config.get("alora_invocation_tokens"):
        warnings.append("aLoRA: the update acts only after the invocation tokens")
    return warnings


def _initialised(config: Mapping[str, Any]) -> str:
    return str(config.get("init_lora_weights", True)).lower()


def _method(init: str) -> str | None:
    """The method that begins as this ``init_lora_weights`` says."""
    found = (name for name, row in METHODS.items() if row.initialises and init.startswith(row.initialises))
    return next(found, None)
