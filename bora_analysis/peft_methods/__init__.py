"""BoRA, MELoRA, SBoRA, HydraLoRA and MoELoRA as PEFT methods, to be trained like PEFT's own.

The import registers them; then ``get_peft_model``, ``PeftModel.from_pretrained``, several adapters, merging and saving
work as for LoRA. Needs peft 0.21; tested with peft 0.21.0 and 0.21.2, transformers 5.23.

* :class:`BoraConfig`: arXiv 2508.06953, ΔW_ij = B_i Σ_ij A_j with a trained diagonal for each pair of blocks.
* :class:`MeloraConfig`: arXiv 2402.17263, equal mini-LoRAs along the diagonal.
* :class:`SboraConfig`: SBoRA-FA and SBoRA-FB (Po et al., ICONIP 2024), LoRA with one factor of standard basis vectors.
* :class:`HydraloraConfig`: arXiv 2404.19245, one A, K matrices B and a router, for comparison; it cannot be merged.
* :class:`MoeloraConfig`: arXiv 2310.18339, K LoRAs and a router, likewise.
* :func:`convert`: an adapter of the first three methods as an exact plain LoRA.
* :class:`RankCallback`: effective rank, energy and entropy rank while the transformers ``Trainer`` trains.
* :func:`read_model`: a PEFT model in memory as an adapter for the analysis.

Examples
--------
>>> import torch
>>> from peft import get_peft_model
>>> from bora_analysis.peft_methods import BoraConfig
>>> model = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.Linear(12, 4))
>>> adapted = get_peft_model(model, BoraConfig(r=2, num_blocks=4, target_modules=["0"]))
>>> adapted.get_nb_trainable_parameters()[0]  # (8 + 12 + 4²) · 2
72
"""

# ruff: noqa: E402  the imports need the packages that are checked first

from importlib.metadata import version

from ..extras import require

require("train", "bora_analysis.peft_methods", "torch", "transformers", "peft")
if tuple(map(int, version("peft").split(".")[:2])) < (0, 21):
    # Older versions lose trained biases, turn SBoRA's indices into floats, or mix several adapters in one file.
    raise ImportError(
        f"bora_analysis.peft_methods: peft {version('peft')} is installed; expected 0.21 or later: "
        'pip install -U "bora_analysis[train]"'
    )

from .callback import RankCallback
from .config import BoraConfig, HydraloraConfig, MeloraConfig, MoeloraConfig, SboraConfig
from .convert import convert
from .in_memory import read_model
from .models import BoraModel, HydraloraModel, MeloraModel, MoeloraModel, SboraModel
from .registration import register

__all__ = [
    "BoraConfig",
    "BoraModel",
    "HydraloraConfig",
    "HydraloraModel",
    "MeloraConfig",
    "MeloraModel",
    "MoeloraConfig",
    "MoeloraModel",
    "RankCallback",
    "SboraConfig",
    "SboraModel",
    "convert",
    "read_model",
    "register",
]

register()
