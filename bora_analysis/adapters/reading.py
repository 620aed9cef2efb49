"""How adapters are read: the options of ``read_adapter``, which every function that takes adapters passes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypedDict

from ..catalogue import EXPERTS
from ..files.base_model import BaseWeights, open_base
from ..files.errors import AdapterError
from .adapter import Adapter


class Options(TypedDict, total=False):
    """:class:`Reading` as keywords."""

    alpha: float | None
    activation: str | None
    method: str | None
    experts: str | Mapping[str, Any]
    initial: Any
    shapes: Mapping[str, tuple[int, int]] | None
    name: str | None
    base: str | Path | BaseWeights | None
    steps: bool
    config: Any
    adapter: str | None
    modules: str | None


@dataclass(frozen=True)
class Reading:
    """The options of :func:`bora_analysis.read_adapter`, where they are explained."""

    alpha: float | None = None
    activation: str | None = None
    method: str | None = None
    experts: str | Mapping[str, Any] = "mean"
    initial: Any = None
    shapes: Mapping[str, tuple[int, int]] | None = None
    name: str | None = None
    base: Any = None
    steps: bool = False
    config: Any = None
    adapter: str | None = None
    modules: str | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Reading:
        """TypeError for an option that does not exist, AdapterError for experts that do not."""
        known = [each.name for each in fields(cls)]
        for option in options:
            if option not in known:
                from difflib import get_close_matches

                near = get_close_matches(option, known, 1)
                meant = f"; did you mean {near[0]}?" if near else ""
                raise TypeError(f"got an unknown option {option!r}; those of reading are {', '.join(known)}{meant}")
        reading = cls(**options)
        if isinstance(reading.experts, str) and reading.experts not in EXPERTS:
            raise AdapterError(
                f"experts {reading.experts!r} is unknown; expected {', '.join(EXPERTS)}, or inputs by module"
            )
        return reading

    def resolved(self, read: Callable[..., Any]) -> Reading:
        """With the base model open, and the initial adapter read by ``read_adapter``."""
        base, initial = self.base, self.initial
        if base is not None and not isinstance(base, BaseWeights):
            base = open_base(base)
        if initial is not None:
            initial = initial if isinstance(initial, Adapter) else read(initial, alpha=self.alpha, method=self.method)
            if not isinstance(initial, Adapter):
                raise AdapterError(f"{self.initial}: holds several checkpoints; name one as the initial adapter")
        return replace(self, base=base, initial=initial)

    def check_read(self, given: object) -> None:
        """TypeError for an option that would change what has been read already. The base model may be named again."""
        for each in fields(self):
            if each.name not in ("base", "modules") and getattr(self, each.name) != each.default:
                raise TypeError(
                    f"{each.name} is an option of reading, and {given!r} has been read already; give it to read_adapter"
                )
