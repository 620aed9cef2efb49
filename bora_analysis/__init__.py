"""What rank does a low-rank adapter really use? Exact spectra of LoRA, MELoRA and BoRA (arXiv 2508.06953) adapters.

The public names are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapters import Adapter, AdapterError, Trajectory, merge, read_adapter, write_adapter
    from .conversion import Conversion, Cut, convert
    from .delta import Blocked, FactorError, Facts, Update, activate, bora, dense, lora, melora
    from .factors import factor_table
    from .recommendation import Recommendation, recommend
    from .spectrum import FactorRanks, Spectrum, each_spectrum, factor_ranks, singular_values
    from .subspaces import principal_angles, similarity, subspace_similarity
    from .synthetic import synthetic_adapter
    from .table import Tables, analyse, layer_metrics, spectra, summary
    from .vectors import SingularVectors, singular_vectors

__version__ = "0.1.0"

_HOME = {
    "adapters": ("Adapter", "AdapterError", "Trajectory", "merge", "read_adapter", "write_adapter"),
    "conversion": ("Conversion", "Cut", "convert"),
    "delta": ("Blocked", "FactorError", "Facts", "Update", "activate", "bora", "dense", "lora", "melora"),
    "factors": ("factor_table",),
    "recommendation": ("Recommendation", "recommend"),
    "subspaces": ("principal_angles", "similarity", "subspace_similarity"),
    "spectrum": ("FactorRanks", "Spectrum", "each_spectrum", "factor_ranks", "singular_values"),
    "synthetic": ("synthetic_adapter",),
    "table": ("Tables", "analyse", "layer_metrics", "spectra", "summary"),
    "vectors": ("SingularVectors", "singular_vectors"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Adapter",
    "AdapterError",
    "Blocked",
    "Conversion",
    "Cut",
    "FactorError",
    "FactorRanks",
    "Facts",
    "Recommendation",
    "SingularVectors",
    "Spectrum",
    "Tables",
    "Trajectory",
    "Update",
    "__version__",
    "activate",
    "analyse",
    "bora",
    "convert",
    "dense",
    "each_spectrum",
    "factor_ranks",
    "factor_table",
    "layer_metrics",
    "lora",
    "melora",
    "merge",
    "principal_angles",
    "read_adapter",
    "recommend",
    "similarity",
    "singular_values",
    "singular_vectors",
    "spectra",
    "subspace_similarity",
    "summary",
    "synthetic_adapter",
    "write_adapter",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
