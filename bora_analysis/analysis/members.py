"""Which members of the methods' sets are tried: a method at its sizes, given or bought by a budget."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..adapters import Adapter
from ..catalogue import METHODS, names
from ..catalogue.cost import cost
from ..catalogue.sizes import common_divisors
from ..methods import projection, projects

Shape = tuple[int, int]

#: Budgets without one given, as multiples of the target's own parameters.
MULTIPLES = (0.5, 1.0, 2.0, 4.0)
#: The r of the LoRA whose parameters stand for those of a target without factors.
WHOLE = 8


class Member(NamedTuple):
    """A method at its sizes.

    >>> str(Member("bora", 8, 16)), str(Member("c3a", 1, 4))
    ('BoRA r = 8, b = 16', 'C³A b = 4')
    """

    method: str
    r: int = 1
    blocks: int = 1

    def __str__(self) -> str:
        row = METHODS[self.method]
        sizes = [f"r = {self.r}"] * row.ranked + [f"b = {self.blocks}"] * (row.blocks is not None)
        return f"{row.label} {', '.join(sizes)}".rstrip()

    def parameters(self, m: int, n: int) -> int:
        row = METHODS[self.method]
        return cost(
            self.method,
            m,
            n,
            self.r,
            blocks=self.blocks if row.cut else 1,
            experts=self.blocks if row.experts else None,
        ).parameters

    def misfit(self, m: int, n: int) -> str | None:
        """Why an m×n matrix has no such member; None where it has.

        >>> Member("melora", 4, 8).misfit(24, 16)
        'MELoRA r = 4, b = 8: r is at most 3 for 24×16'
        """
        try:
            self.parameters(m, n)
        except ValueError as error:
            return f"{self}: {error}"
        limit = projection(self.method).limit
        most = self.r if limit is None else limit(m, n, self.blocks)
        return f"{self}: r is at most {most} for {m}×{n}" if self.r > most else None


def capturing() -> tuple[str, ...]:
    """The methods whose nearest member can be found, and counted."""
    return names(lambda row: row.cost is not None and projects(row.name))


def same_set(method: str) -> tuple[str, ...]:
    """The methods that have this one's set at its parameters, itself among them; the first stands for them all.

    >>> same_set("rslora"), same_set("melora")
    (('lora', 'rslora', 'adalora', 'delora'), ('melora',))
    """
    first = projection(method).same or method
    return (first, *(other for other in capturing() if projection(other).same == first))


def set_label(method: str) -> str:
    """The names of all methods of a set.

    >>> set_label("delora")
    'LoRA, rsLoRA, AdaLoRA, DeLoRA'
    """
    return ", ".join(METHODS[each].label for each in same_set(method))


def member_of(given: Member | tuple[Any, ...] | str) -> Member:
    """Method, r and blocks; r is 0 where it is still to be found, and so are blocks that were not given.

    ValueError for a method whose nearest member is not known, and for blocks of a method that has none.
    """
    method, *sizes = (given,) if isinstance(given, str) else given
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; expected one of {', '.join(capturing())}")
    if method not in capturing():
        known = ", ".join(capturing())
        raise ValueError(f"the nearest {METHODS[method].label} of an update is not known; expected one of {known}")
    row = METHODS[method]
    r, blocks = (int(size or 0) for size in (*sizes, 0, 0)[:2])
    if row.blocks is None and blocks > 1:
        raise ValueError(f"{row.label} has no blocks, and {blocks} were given; leave them out")
    return Member(method, r if row.ranked else 1, blocks if row.blocks else 1)


def with_default(member: Member, shapes: Iterable[Shape]) -> Member:
    """Blocks that were not given: the catalogue's default, or the largest number below it that divides all sizes."""
    row = METHODS[member.method].blocks
    if member.blocks or row is None:
        return member
    default = row.default
    if row.divides:
        default = max(b for b in common_divisors(size for shape in shapes for size in shape) if b <= default)
    return member._replace(blocks=default)


def sized(adapter: Adapter, given: Sequence[Member] | None, budget: int | None) -> list[Member]:
    """The members to try, each with its r and blocks: those without an r are sized by the budgets.

    Where none is given: one of each set, see :func:`same_set`.
    """
    shapes = {module: (adapter[module].facts.out_features, adapter[module].facts.in_features) for module in adapter}
    budgets = [budget] if budget is not None else [int(own_budget(adapter) * factor) for factor in MULTIPLES]
    every = list(shapes.values())
    found: dict[Member, None] = {}
    for member in (
        [member_of(method) for method in capturing() if not projection(method).same] if given is None else given
    ):
        whole = with_default(member, every)
        row = METHODS[member.method]
        if given is not None and (member.r if row.ranked else member.blocks or row.blocks is None):
            _check(adapter.name, whole, shapes)
            found[whole] = None
            continue
        if given is not None and member.blocks:
            _check(adapter.name, whole._replace(r=max(1, whole.blocks * row.splits)), shapes)
        elif row.blocks is not None and row.blocks.divides and row.blocks.default > 1 == whole.blocks and row.ranked:
            continue  # no blocks divide the sizes
        for limit in budgets:
            if (largest := _largest(whole, every, limit, free=not member.blocks)) is not None:
                found[largest] = None
    if not found:
        raise ValueError(
            f"{adapter.name}: no method has as few as {max(budgets):,} parameters in {len(shapes)} modules; "
            "expected a larger budget"
        )
    return list(found)


def _check(name: str, member: Member, shapes: Mapping[str, Shape]) -> None:
    for module, shape in shapes.items():
        if reason := member.misfit(*shape):
            raise ValueError(f"{name}: {module}: {reason}")


def own_budget(adapter: Adapter) -> int:
    """Its parameters; those of LoRA r = 8 for modules without factors (full fine-tuning)."""
    facts = [adapter[module].facts for module in adapter]
    return sum(
        min(each.parameters, WHOLE * (each.out_features + each.in_features))
        if each.parameters >= each.out_features * each.in_features
        else each.parameters
        for each in facts
    )


def _largest(member: Member, shapes: Sequence[Shape], budget: int, free: bool) -> Member | None:
    """The member with the largest r that all modules have for the budget, or without an r the most blocks.

    r ends where no module gains by more, and where one could not have it.
    """
    row, own = METHODS[member.method], projection(member.method)

    def total(sized: Member) -> float:
        if any(sized.misfit(m, n) for m, n in set(shapes)):
            return float("inf")
        return sum(sized.parameters(m, n) for m, n in shapes)

    if row.ranked:
        step = member.blocks if row.splits else 1
        top = max(own.useful(m, n, member.blocks) for m, n in shapes)
        if own.limit is not None:
            top = min(top, *(own.limit(m, n, member.blocks) for m, n in set(shapes)))
        if own.tried is not None:
            top = min(top, own.tried)
        possible = [member._replace(r=r) for r in range(step, top + 1, step)]
    elif row.blocks is not None and free:
        blocks = common_divisors(size for shape in shapes for size in shape)
        possible = [member._replace(blocks=b) for b in blocks]
    else:
        possible = [member]
    fitting = bisect_right(possible, budget, key=total)
    return possible[fitting - 1] if fitting else None
