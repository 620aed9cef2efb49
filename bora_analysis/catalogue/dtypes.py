"""Floating-point types that adapters are stored in, by the names that PyTorch and NumPy share.

``q8_0`` is llama.cpp's: 32 whole multiples of a scale, at most ±127 of it.
"""

from __future__ import annotations

#: Spacing of the numbers next to 1.
EPSILON = {
    "float64": 2.0**-52,
    "float32": 2.0**-23,
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
    "float8_e4m3fn": 2.0**-3,
    "float8_e5m2": 2.0**-2,
    "q8_0": 2.0**-7,
}
#: Least number above 0.
SMALLEST = {
    "float64": 2.0**-1074,
    "float32": 2.0**-149,
    "float16": 2.0**-24,
    "bfloat16": 2.0**-133,
    "float8_e4m3fn": 2.0**-9,
    "float8_e5m2": 2.0**-16,
}
#: Least normal number: below it the spacing stays what it is there.
LEAST = {"float16": 2.0**-14, "float8_e4m3fn": 2.0**-6, "float8_e5m2": 2.0**-14}
