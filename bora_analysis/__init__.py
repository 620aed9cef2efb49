"""What rank does a low-rank adapter really use? Exact spectra of LoRA, MELoRA and BoRA (arXiv 2508.06953) adapters.

The public names are those of ``__init__.pyi``, loaded when they are first used, so that importing the package costs
nothing.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
