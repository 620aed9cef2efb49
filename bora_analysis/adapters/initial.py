"""The update relative to the start: PiSSA, LoRA-GA and others whose factors do not start at zero.

They take s B_0 A_0 out of the base model at initialisation, so that the update of the original model is
s (B A − B_0 A_0), of rank up to 2r. PEFT saves the first pair on request (``path_initial_model_for_weight_conversion``
needs it too); where it lies beside the adapter the difference is read through concatenated factors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..delta import Update
from ..structures import combine
from .adapter import Adapter
from .errors import AdapterError
from .source import Found, Source

# Beginning of init_lora_weights → the method's name.
_METHODS = {"pissa": "pissa", "lora_ga": "lora-ga", "olora": "olora", "corda": "corda"}


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
    init = str((source.config or {}).get("init_lora_weights", "")).lower()
    method = next((name for start, name in _METHODS.items() if init.startswith(start)), found.method)

    def loader(module: str) -> Callable[[], Update]:
        def load() -> Update:
            update = found.loaders[module]()
            facts = update.facts
            try:
                difference = combine([update, initial[module]], [1.0, -1.0], method=method)
            except ValueError as error:
                raise AdapterError(f"{source.path}: {module}: the initial adapter does not fit: {error}") from None
            # Trained is one of the two; converted to a plain LoRA the difference costs as much as both.
            kept = {"r": facts.r, "scaling": facts.scaling, "parameters": facts.parameters}
            return replace(difference, facts=replace(difference.facts, **kept))  # pyright: ignore[reportArgumentType]

        return load

    return found._replace(method=method, loaders={module: loader(module) for module in found.loaders})
