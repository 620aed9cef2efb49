"""Initial factors that are near to a known update, as PiSSA's are to the base weight.

Where PiSSA takes W0's first directions out of W0 and trains them, here the target is an update ΔW: nothing is taken out
of the base weight, and training starts at W0 + X with X the member of BoRA's set that is nearest to ΔW. So the saved
adapter is one like any other. W0 itself is no target: an adapter that starts there would only fit a base model from
which X was subtracted, which a saved adapter cannot say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..adapters import Adapter
from ..adapters.given import one_of
from ..analysis.capture import nearest
from ..updates.blocks import lora
from ..updates.contract import Update
from ..updates.dense import dense


@dataclass(frozen=True, eq=False)
class Target:
    """Module → the update that its factors start near to.

    Attributes
    ----------
    updates : module → update, or matrix (m, n).
    name : of where they are from, for messages.
    """

    updates: Mapping[str, Any]
    name: str

    @classmethod
    def of(cls, given: Any) -> Target:
        """From a mapping, or from what :func:`bora_analysis.read_adapter` takes."""
        if isinstance(given, Mapping) and not isinstance(given, Adapter):
            if not given:
                raise ValueError("target is empty; expected module → update, or an adapter")
            return cls(given, "target")
        adapter = one_of(given)
        return cls(adapter, adapter.name)

    def update(self, module: str, shape: tuple[int, int]) -> Update:
        """The update of one module. Names may differ by a first part, such as ``model.``."""
        known = list(self.updates)
        found = [module] if module in known else [key for key in known if _agree(key, module)]
        if len(found) != 1:
            such = ", ".join((found or known)[:3]) + (", …" if len(found or known) > 3 else "")
            raise ValueError(
                f"{module}: {self.name} has {'several such modules' if found else 'no such module'} ({such}); expected "
                "an update for each adapted module: narrow target_modules, or give one of zeros"
            )
        value = self.updates[found[0]]
        update: Any = value if hasattr(value, "factors") else dense(value)
        if update.shape != shape:
            raise ValueError(
                f"{module}: {self.name} has an update of shape {update.shape}; expected {shape}, "
                "(out_features, in_features)"
            )
        return update

    def start(self, layer: Any, adapter_name: str) -> None:
        """Set a BoRA layer's factors to the nearest member, from the truncated SVD; α/r is divided out of B."""
        scaling, A = layer.scaling[adapter_name], layer.bora_A[adapter_name]
        if not scaling:
            raise ValueError(
                f"{layer.module_name}: lora_alpha is 0, and with it every ΔW; expected another for a target"
            )
        m, n = layer.out_features, layer.in_features
        update = padded(self.update(layer.module_name, (m, n)), *layer.padding(adapter_name))
        wish = ("bora", layer.r[adapter_name], layer.num_blocks[adapter_name])
        try:
            parts = nearest(update, wish, bora_activation=layer.activation[adapter_name], starts=1)
        except ValueError as error:
            raise ValueError(f"{layer.module_name}: {error}") from None
        # What is cut off is no nearer: the target is zero there.
        B, A0 = parts["B"][:m] / scaling, parts["A"][:, :n].reshape(A.shape)
        found = {"A": A0, "B": B, "sigma": parts["sigma"]}
        places: dict[str, nn.ParameterDict] = {"A": layer.bora_A, "B": layer.bora_B, "sigma": layer.bora_sigma}
        with torch.no_grad():
            for part, place in places.items():
                place[adapter_name].copy_(torch.from_numpy(found[part]))


def padded(update: Update, rows: int, columns: int) -> Update:
    """The update with so many rows and columns of zeros below and beside it."""
    if not (rows or columns):
        return update
    left, right = update.factors()
    return lora(np.pad(left, [(0, rows), (0, 0)]), np.pad(right, [(0, 0), (0, columns)]), any_rank=True)


def target_of(init: str, target: Any, trained: bool) -> Target | None:
    """The checked settings ``init`` and ``target`` of a configuration; None for the usual start."""
    if init not in ("default", "svd"):
        raise ValueError(f"init is {init!r}; expected 'default' or 'svd'")
    if (init == "svd") != (target is not None):
        raise ValueError(f"init is {init!r} and target {'is given' if target is not None else 'None'}; expected both")
    if target is not None and not trained:
        raise ValueError("init is 'svd' and init_lora_weights False; expected one of them")
    return None if target is None else Target.of(target)


def _agree(one: str, other: str) -> bool:
    """Whether one path ends the other, but for at most one first part."""
    long, short = sorted((one.split("."), other.split(".")), key=len, reverse=True)
    return len(long) - len(short) <= 1 and long[len(long) - len(short) :] == short
