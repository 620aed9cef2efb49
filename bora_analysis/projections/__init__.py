"""The nearest member of a method's set to a given update T, the X with the least ‖T − X‖_F.

A method's file says with ``NEAREST`` how it is found: name → :class:`Projection`. Most are exact (a truncated SVD,
a mean, a choice of entries); BoRA, LoHa, VeRA and LoKr take alternating least squares, which ends at a local minimum.
T is used through its factors, see :class:`Target`.

In all of this T has the norm 1; every method's set is closed under multiples.
"""

from .target import ENOUGH, Find, Projection, Target, Wish, longer_side

__all__ = ["ENOUGH", "Find", "Projection", "Target", "Wish", "longer_side"]
