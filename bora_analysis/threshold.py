"""Which singular values count: those above a number, a share of σ₁, or a number at equal energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .patterns import late

_AT_NORM = late(r"(?P<value>.+?)\s+at\s+norm\s+(?P<norm>.+)")


@dataclass(frozen=True)
class Threshold:
    """A threshold τ of singular values.

    An absolute one, such as the paper's 0.005, counts more directions when ΔW is multiplied by a number, as α or the
    learning rate do. The two others do not depend on the scale of ΔW.

    Attributes
    ----------
    value : σ above it count; a share of σ₁ where ``relative`` is true.
    relative : whether τ is relative to each ΔW's σ₁.
    norm : every ΔW is scaled to this ‖ΔW‖_F before the count; None to take it as it is.

    Examples
    --------
    >>> from bora_analysis import Threshold
    >>> [str(Threshold.of(text)) for text in (0.005, "1%", "0.005 at norm 1")]
    ['0.005', '1%', '0.005 at norm 1']
    >>> Threshold.of("1%").limit(top=3.0, norm=5.0), Threshold(0.005, norm=1.0).limit(top=3.0, norm=5.0)
    (0.03, 0.025)
    """

    value: float
    relative: bool = False
    norm: float | None = None

    def __post_init__(self) -> None:
        if not self.value >= 0:
            raise ValueError(f"threshold is {self.value}; expected a number ≥ 0")
        if self.relative and self.norm is not None:
            raise ValueError(f"threshold is {100 * self.value:g}% of σ₁, which no norm changes; leave out the norm")
        if self.relative and self.value > 1:
            raise ValueError(f"threshold is {100 * self.value:g}% of σ₁; expected at most 100%: no σ lies above σ₁")
        if self.norm is not None and not 0 < self.norm < float("inf"):
            raise ValueError(f"the norm of the threshold is {self.norm}; expected a number above 0")

    @classmethod
    def of(cls, given: Threshold | float | str) -> Threshold:
        """A threshold from what people write: 0.005, "1%", "0.005 at norm 1".

        Raises
        ------
        ValueError
            Another text, a negative number, a share above 100 %, a norm that is not above 0.

        Examples
        --------
        >>> from bora_analysis import Threshold
        >>> Threshold.of("5 %")
        Threshold(value=0.05, relative=True, norm=None)
        """
        if isinstance(given, Threshold):
            return given
        text = str(given).strip()
        hit = _AT_NORM.fullmatch(text)
        try:
            if hit:
                return cls(float(hit["value"]), norm=float(hit["norm"]))
            relative = text.endswith("%")
            number = float(text.removesuffix("%"))
        except ValueError as error:
            if "threshold" in str(error):  # a number, but none that can be meant
                raise
            raise ValueError(
                f"threshold is {text!r}; expected a number such as 0.005, a share of σ₁ such as 1%, "
                "or a number at equal energy such as '0.005 at norm 1'"
            ) from None
        return cls(number / 100, relative=True) if relative else cls(number)

    def limit(self, top: Any, norm: Any) -> Any:
        """The σ above which a ΔW's singular values count, from its σ₁ and its ‖ΔW‖_F; of arrays one for each."""
        if self.relative:
            return self.value * top
        return self.value if self.norm is None else self.value / self.norm * norm

    @property
    def absolute(self) -> bool:
        """Whether it is the same σ for every ΔW."""
        return not self.relative and self.norm is None

    @property
    def cell(self) -> float | str:
        """Its value in the column ``threshold`` of the tables: an absolute one is a number, any other a text."""
        return self.value if self.absolute else str(self)

    @property
    def formula(self) -> str:
        """The limit in terms of ΔW, for the head of a column and for an axis.

        Examples
        --------
        >>> from bora_analysis import Threshold
        >>> [Threshold.of(text).formula for text in (0.005, "1%", "0.005 at norm 1", "0.005 at norm 2")]
        ['0.005', '1%σ₁', '0.005‖ΔW‖', '0.005‖ΔW‖/2']
        """
        if self.relative:
            return f"{self}σ₁"
        if self.norm is None:
            return f"{self.value:g}"
        return f"{self.value:g}‖ΔW‖" + ("" if self.norm == 1 else f"/{self.norm:g}")

    def __str__(self) -> str:
        if self.relative:
            return f"{100 * self.value:.12g}%"
        return f"{self.value:.12g}" + ("" if self.norm is None else f" at norm {self.norm:.12g}")
