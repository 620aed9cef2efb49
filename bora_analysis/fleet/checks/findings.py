"""What a check finds, and the report of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from ...cards import card
from ...files.errors import counted

if TYPE_CHECKING:
    import pandas as pd

#: In ascending order; the names are those of SARIF's levels.
SEVERITIES = ("note", "warning", "error")


class Found(NamedTuple):
    """What a rule's function yields.

    Attributes
    ----------
    module : path of the module, or key of the tensor; empty where it is about the whole adapter.
    message : what was found, in a sentence without the rule's name.
    value, limit : the measured one, and the one that it breaks; None where there is no number.
    """

    module: str
    message: str
    value: float | str | None = None
    limit: float | str | None = None


@dataclass(frozen=True)
class Finding:
    """One thing that a rule found in one adapter.

    Attributes
    ----------
    adapter : its name. path : the file or folder, as far as it was found.
    rule : id of a row of :data:`bora_analysis.fleet.checks.RULES`. severity : ``"error"``, ``"warning"`` or ``"note"``.
    module : path of the module, or key of the tensor; empty where it is about the whole adapter.
    value, limit : the measured one, and the one that it breaks; None where there is no number.
    message : what was found. mend : what to do.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import Adapter, check, lora
    >>> still = Adapter.from_updates("mine", {"layers.0.q_proj": lora(np.zeros((8, 1)), np.ones((1, 8)))})
    >>> (finding,) = check(still).findings
    >>> finding.rule, finding.severity, finding.mend[:20]
    ('nothing-trained', 'error', 'Check that the adapt')
    """

    adapter: str
    path: str
    rule: str
    severity: str
    module: str
    value: float | str | None
    limit: float | str | None
    message: str
    mend: str


#: Columns of a report's table.
COLUMNS = tuple(each.name for each in fields(Finding))


@dataclass(frozen=True, repr=False)
class Report:
    """What :func:`bora_analysis.check` found.

    Attributes
    ----------
    findings : in the order of the adapters, the severest first.
    checked : adapter's name → its path, of all that were looked at, unreadable ones included.
    severities : rule → severity, of the rules that were applied.

    Examples
    --------
    >>> from bora_analysis import check, synthetic_adapter
    >>> check(synthetic_adapter("lora", {f"layers.{k}.q_proj": (64, 32) for k in range(2)}, r=4, kind="decay"))
    <Report on 1 adapter: nothing found>
    """

    findings: tuple[Finding, ...]
    checked: Mapping[str, str]
    severities: Mapping[str, str]

    def __repr__(self) -> str:
        return f"<Report on {counted(len(self.checked), 'adapter')}: {self.counts()}>"

    def _repr_html_(self) -> str:
        return card(self, lambda: ([], self.table()[["adapter", "severity", "rule", "module", "message"]]))

    def counts(self, adapter: str | None = None) -> str:
        """How many of each severity, in words: of one adapter, or of all."""
        found = Counter(each.severity for each in self.findings if adapter in (None, each.adapter))
        words = [counted(found[severity], severity) for severity in reversed(SEVERITIES) if found[severity]]
        return ", ".join(words) or "nothing found"

    def at_least(self, severity: str) -> tuple[Finding, ...]:
        """The findings of this severity and above.

        Raises
        ------
        ValueError
            An unknown severity.
        """
        if severity not in SEVERITIES:
            raise ValueError(f"severity {severity!r} is unknown; expected {', '.join(SEVERITIES)}")
        least = SEVERITIES.index(severity)
        return tuple(each for each in self.findings if SEVERITIES.index(each.severity) >= least)

    def table(self) -> pd.DataFrame:
        """One row per finding, with the columns of :class:`Finding`."""
        import pandas as pd

        return pd.DataFrame(self.records(), columns=list(COLUMNS))

    def records(self) -> list[dict[str, Any]]:
        """The findings as dictionaries."""
        return [{name: getattr(each, name) for name in COLUMNS} for each in self.findings]
