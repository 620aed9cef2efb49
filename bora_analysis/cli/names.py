"""Options whose values are names that are known: one of them, or several with commas between them."""

from __future__ import annotations

from typing import Any

import click


class Named(click.Choice):
    """One name, in any case. A wrong one is told those that it is close to; all of them where there is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        wanted = str(value).lower()
        if wanted not in self.choices:
            from difflib import get_close_matches  # here: a miss is rare

            known = [*map(str, self.choices)]
            close = get_close_matches(wanted, known, 3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
            self.fail(f"{value!r} is unknown; {hint}", param, ctx)
        return wanted


class Several(click.ParamType):
    """Names of a :class:`Named` with commas between them, for an option that may be repeated, too: see :func:`flat`."""

    name = "names"

    def __init__(self, one: Named) -> None:
        self.one = one
        self.choices = one.choices

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        return self.one.get_metavar(param, ctx)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        found = tuple(self.one.convert(part.strip(), param, ctx) for part in parts if part.strip())
        return found or self.fail("holds no name", param, ctx)


def flat(context: click.Context, option: click.Parameter, value: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """The names of an option that was given several times, once each."""
    return tuple(dict.fromkeys(name for names in value for name in names))
