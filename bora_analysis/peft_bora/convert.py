"""Any readable adapter as a plain LoRA with the same ΔW."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from peft import PeftModel
from safetensors.torch import load_file, save_file

from ..adapters import Adapter, AdapterError, read_adapter, write_adapter
from ..atomic import replacing
from ..delta import Array, Update
from ..metrics import numerical_rank, rounding_tolerance

_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"


def convert(
    source: PeftModel | str | Path, folder: str | Path, *, adapter_name: str = "default", dtype: str = "float32"
) -> Path:
    """Write an adapter as a LoRA that PEFT loads, with the same ΔW up to the rounding of ``dtype``.

    Each module's rank is the rank of its ΔW in float64, at most min(m, n, br). α = r everywhere, so the scaling is 1.
    What ``modules_to_save`` trained goes along.

    Parameters
    ----------
    source : a PEFT model, or the folder of a saved adapter.
    folder : where ``adapter_config.json`` and ``adapter_model.safetensors`` are written.
    adapter_name : which adapter of the model.
    dtype : of the factors, see :func:`bora_analysis.write_adapter`.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError
        The model has no such adapter, or the adapter trains biases, which a LoRA file holds only for its own.
    AdapterError
        What is in the folder cannot be read, or the numbers do not fit into ``dtype``.

    Examples
    --------
    >>> import torch
    >>> from tempfile import TemporaryDirectory
    >>> from peft import PeftModel, get_peft_model
    >>> from bora_analysis.peft_bora import BoraConfig, convert
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 12))
    >>> config = BoraConfig(r=1, num_blocks=4, target_modules=["0"], init_lora_weights=False)
    >>> adapted, x = get_peft_model(model, config), torch.ones(1, 8)
    >>> y = adapted(x)
    >>> with TemporaryDirectory() as folder:
    ...     saved = convert(adapted, folder)
    ...     lora = PeftModel.from_pretrained(adapted.unload(), saved)
    ...     bool(torch.allclose(lora(x), y, atol=1e-6)), lora.peft_config["default"].r
    (True, 4)
    """
    if isinstance(source, str | Path):
        return _convert(Path(source), Path(folder), dtype)
    if adapter_name not in source.peft_config:
        raise ValueError(f"the model has no adapter {adapter_name!r}; it has {', '.join(source.peft_config)}")
    with TemporaryDirectory() as temporary:
        # Through a file: the reader is the one place that knows what the keys and settings mean.
        source.save_pretrained(temporary, selected_adapters=[adapter_name], save_embedding_layers=False)  # pyright: ignore[reportArgumentType]
        saved = Path(temporary) if adapter_name == "default" else Path(temporary) / adapter_name
        return _convert(saved, Path(folder), dtype)


def lora_factors(update: Update) -> tuple[Array, Array]:
    """B (m, k) and A (k, n) with B A = ΔW, scaling included, and k its rank (1 for ΔW = 0), in float64.

    Both carry the root of the singular values, so that neither is much larger than the other.
    """
    left, right = update.factors()
    Q, R = np.linalg.qr(left)
    P, L = np.linalg.qr(right.T)
    U, values, V = np.linalg.svd(R @ L.T, full_matrices=False)
    k = max(1, numerical_rank(values, rounding_tolerance(values, "float64")))
    root = np.sqrt(values[:k])
    return Q @ (U[:, :k] * root), (root[:, None] * V[:k]) @ P.T


class _Factors(Mapping[str, Mapping[str, Array]]):
    """Module → its LoRA factors, made when asked for, so that one module's are in memory; notes their ranks."""

    def __init__(self, adapter: Adapter):
        self.adapter = adapter
        self.ranks: dict[str, int] = {}  # by pattern

    def __getitem__(self, module: str) -> Mapping[str, Array]:
        B, A = lora_factors(self.adapter[module])
        self.ranks[f"^{re.escape(module)}"] = len(A)
        return {"B": B, "A": A}

    def __iter__(self) -> Iterator[str]:
        return iter(self.adapter)

    def __len__(self) -> int:
        return len(self.adapter)


def _convert(saved: Path, folder: Path, dtype: str) -> Path:
    adapter = read_adapter(saved)
    if not isinstance(adapter, Adapter) or adapter.path is None:
        raise AdapterError(f"{saved}: holds several checkpoints; name one")
    config_path = adapter.path.with_name(_CONFIG)
    config: dict[str, Any] = json.loads(config_path.read_text(encoding="utf-8")) if config_path.exists() else {}
    if config.get("bias", "none") != "none":
        raise ValueError(f"{saved}: the adapter trains biases (bias = {config['bias']!r}); expected 'none' to convert")
    kept = ("task_type", "modules_to_save", "fan_in_fan_out", "revision")
    factors = _Factors(adapter)
    write_adapter(
        folder,
        "lora",
        factors,
        alpha=1,
        base_model=config.get("base_model_name_or_path"),
        dtype=dtype,
        # Filled while the factors are written, and written after them.
        extra_config={name: config[name] for name in kept if config.get(name)} | {"alpha_pattern": factors.ranks},
    )
    if config.get("modules_to_save") and adapter.passed_over:
        if adapter.path.suffix != ".safetensors":
            raise ValueError(f"{adapter.path}: modules_to_save can be taken from .safetensors only; save it so")
        trained = load_file(adapter.path)
        tensors = load_file(folder / _WEIGHTS) | {key: trained[key] for key in adapter.passed_over}
        with replacing(folder / _WEIGHTS) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
    return folder
