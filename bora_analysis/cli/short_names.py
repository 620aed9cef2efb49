"""Names in less room, still different from one another: without what all of them share, or else cut."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ..style import shortened

# What stands in a pattern for the part of a name that is shown.
MARK = "*"
_CUTS = (r"[./]", r"[./\-_ ]")


def shorter(names: Sequence[str]) -> Iterator[tuple[dict[str, str], str]]:
    """Ways to write the names, each shorter than the one before: name → what is shown, and the pattern of the names.

    First whole, with an empty pattern; then without the parts that all share at both ends; then also without those that
    they share in between, where every name has as many parts. Parts end at dots and slashes, or else at hyphens,
    underscores and spaces too.

    >>> names = [f"encoder.layer.{k}.attention.self.{name}" for k in (0, 1) for name in ("query", "value")]
    >>> for shown, pattern in shorter(names):
    ...     print(pattern or "-", *shown.values())
    - encoder.layer.0.attention.self.query encoder.layer.0.attention.self.value encoder.layer.1.attention.self.query \
encoder.layer.1.attention.self.value
    encoder.layer.* 0.attention.self.query 0.attention.self.value 1.attention.self.query 1.attention.self.value
    encoder.layer.*.attention.self.* 0.query 0.value 1.query 1.value
    """
    names = list(dict.fromkeys(names))
    yield {name: name for name in names}, ""
    width = max(map(len, names), default=0)
    for way in (_without_ends, _without_middles) if len(names) > 1 else (_without_ends,):
        for cut in _CUTS[: len(names)]:  # of one name the last part of its path says most
            found = way(names, cut)
            if found and (longest := max(map(len, found[0].values()))) < width:
                width = longest
                yield found
                break


def cut_to(names: Sequence[str], room: int, gap: str) -> dict[str, str]:
    """Names of at most ``room`` characters, cut in the middle where ``gap`` stands, no two the same."""
    unique = list(dict.fromkeys(names))
    return dict(zip(unique, (name.replace("…", gap) for name in shortened(unique, room - len(gap) + 1)), strict=True))


def _without_ends(names: Sequence[str], cut: str) -> tuple[dict[str, str], str] | None:
    parts = [re.split(f"({cut})", name) for name in names]
    fewest = min(map(len, parts)) - 1  # each name keeps a part
    ahead = _alike([own[:fewest] for own in parts])
    ahead -= ahead % 2  # with its separator
    behind = _alike([own[::-1][: fewest - ahead] for own in parts])
    behind -= behind % 2
    if not ahead and not behind:
        return None
    first = parts[0]
    pattern = "".join([*first[:ahead], MARK, *first[len(first) - behind :]])
    return {name: "".join(own[ahead : len(own) - behind]) for name, own in zip(names, parts, strict=True)}, pattern


def _without_middles(names: Sequence[str], cut: str) -> tuple[dict[str, str], str] | None:
    parts = [re.split(f"({cut})", name) for name in names]
    if len({tuple(own[1::2]) for own in parts}) > 1:
        return None
    vary = [k for k, own in enumerate(zip(*parts, strict=True)) if len(set(own)) > 1]
    pattern = "".join(MARK if k in vary else part for k, part in enumerate(parts[0]))
    # A space cannot be a separator in a name that is cut here and holds one: parts differ in number then.
    joint = "." if cut == _CUTS[0] else " "
    return {name: joint.join(own[k] for k in vary) for name, own in zip(names, parts, strict=True)}, pattern


def _alike(parts: Sequence[Sequence[str]]) -> int:
    """How many parts all have in common at the beginning."""
    count = 0
    for own in zip(*parts, strict=False):
        if len(set(own)) > 1:
            break
        count += 1
    return count
