"""The adapter of a PEFT model in memory as a plain LoRA with the same ΔW."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from peft import PeftModel

from ..adapters import AdapterError
from ..analysis import conversion


def convert(
    source: PeftModel | str | Path, folder: str | Path, *, adapter_name: str = "default", dtype: str = "float32"
) -> Path:
    """Write an adapter as a LoRA that PEFT loads, with the same ΔW up to the rounding of ``dtype``.

    This is :func:`bora_analysis.convert`, which can also cut ranks, for a model in memory.

    Parameters
    ----------
    source : a PEFT model, or the folder of a saved adapter.
    folder : for ``adapter_config.json`` and ``adapter_model.safetensors``.
    adapter_name : name of the model's adapter.
    dtype : dtype of the factors, see :func:`bora_analysis.write_adapter`.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError
        The model has no such adapter, or the adapter trains biases, which a LoRA file can hold for its own layers only.
    AdapterError
        The folder cannot be read, or the numbers exceed the range of ``dtype``.

    Examples
    --------
    >>> import torch
    >>> from tempfile import TemporaryDirectory
    >>> from peft import PeftModel, get_peft_model
    >>> from bora_analysis.peft_methods import BoraConfig, convert
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
        return conversion.convert(source, folder, dtype=dtype).folder
    if adapter_name not in source.peft_config:
        raise ValueError(f"the model has no adapter {adapter_name!r}; it has {', '.join(source.peft_config)}")
    if source.peft_config[adapter_name].peft_type == "HYDRALORA":
        # A folder can be converted as the uniform mean of its experts, but the model computes something else.
        raise AdapterError(f"adapter {adapter_name} is HydraLoRA, whose update depends on the token; no LoRA equals it")
    with TemporaryDirectory() as temporary:
        # Through a file, because only the reader knows the meaning of keys and settings.
        source.save_pretrained(temporary, selected_adapters=[adapter_name], save_embedding_layers=False)  # pyright: ignore[reportArgumentType]
        saved = Path(temporary) if adapter_name == "default" else Path(temporary) / adapter_name
        return conversion.convert(saved, folder, dtype=dtype).folder
