"""Weight updates ΔW held as their factors, one file a structure.

The functions that build them raise :class:`.contract.FactorError` for a wrong shape, NaN or Inf.
"""
