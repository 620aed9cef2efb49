"""A report in the forms that other programs read: SARIF for code scanning, JUnit's XML for test reports, JSON."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from ... import __version__
from ...patterns import late
from .findings import SEVERITIES, Finding, Report
from .rules import RULES

SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
# What XML 1.0 cannot hold, in any spelling.
_NO_XML = late(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")


def sarif(report: Report, fail_on: str = "error") -> str:
    """SARIF 2.1.0 (OASIS, with errata 01): a result per finding, an artifact per adapter.

    Paths below the working directory are relative to it, as code scanning wants them.
    """
    rules = list(report.severities)
    log = {
        "$schema": SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "bora-analysis",
                        "version": __version__,
                        "semanticVersion": __version__,
                        "rules": [_rule(name, report.severities[name]) for name in rules],
                    }
                },
                "invocations": [{"executionSuccessful": True, "exitCode": int(bool(report.at_least(fail_on)))}],
                "artifacts": [{"location": {"uri": _uri(path)}} for path in dict.fromkeys(report.checked.values())],
                "results": [_result(each, rules.index(each.rule)) for each in report.findings],
            }
        ],
    }
    return _json(log)


def junit(report: Report, fail_on: str = "error") -> str:
    """JUnit's XML: a suite per adapter, a case per rule. Findings below ``fail_on`` are output of cases that pass."""
    least = SEVERITIES.index(fail_on)
    suites = ElementTree.Element("testsuites", name="bora-analysis check")
    totals = {"tests": 0, "failures": 0, "errors": 0}
    for adapter in report.checked:
        suite = ElementTree.SubElement(suites, "testsuite", name=_xml(adapter))
        counts = dict.fromkeys(totals, 0)
        for rule in report.severities:
            found = [each for each in report.findings if (each.adapter, each.rule) == (adapter, rule)]
            case = ElementTree.SubElement(suite, "testcase", classname=_xml(adapter), name=rule, time="0")
            counts["tests"] += 1
            if not found:
                continue
            lines = _xml("\n".join([*map(line, found), found[0].mend]))
            if SEVERITIES.index(found[0].severity) < least:
                ElementTree.SubElement(case, "system-out").text = lines
                continue
            kind = "error" if rule == "unreadable" else "failure"
            counts[f"{kind}s"] += 1
            ElementTree.SubElement(case, kind, type=rule, message=_xml(line(found[0]))).text = lines
        for name, count in counts.items():
            suite.set(name, str(count))
            totals[name] += count
        suite.set("skipped", "0")
    for name, count in totals.items():
        suites.set(name, str(count))
    ElementTree.indent(suites, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def as_json(report: Report, fail_on: str = "error") -> str:
    """``{"checked": [{"adapter", "path"}, …], "findings": […]}``; a finding has the columns of the table."""
    checked = [{"adapter": name, "path": path} for name, path in report.checked.items()]
    found = [{**each, "value": _number(each["value"]), "limit": _number(each["limit"])} for each in report.records()]
    return _json({"checked": checked, "findings": found})


def line(finding: Finding) -> str:
    """A finding in a line, without its remedy; with its limit, where the message does not name that."""
    told = f"{finding.module}: {finding.message}" if finding.module else finding.message
    limit = "" if finding.limit is None or isinstance(finding.limit, str) else f"{finding.limit:g}"
    named = not limit or re.search(rf"(?<![\w.]){re.escape(limit)}(?![\w.])", finding.message)
    return told if named else f"{told} (limit {limit})"


def _json(content: Mapping[str, Any]) -> str:
    # Escaped, so that any encoding of the terminal or file can hold it.
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _rule(name: str, severity: str) -> dict[str, Any]:
    row = RULES[name]
    words = {"shortDescription": {"text": row.words}, "fullDescription": {"text": f"{row.words}."}}
    return {"id": name, **words, "help": {"text": row.mend}, "defaultConfiguration": {"level": severity}}


def _result(finding: Finding, index: int) -> dict[str, Any]:
    uri = _uri(finding.path)
    # Code scanning wants a line of every place; a weight file has none but the first.
    place: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": uri}, "region": {"startLine": 1}}}
    if finding.module:
        place["logicalLocations"] = [{"fullyQualifiedName": finding.module, "kind": "module"}]
    told = {"adapter": finding.adapter, "value": _number(finding.value), "limit": _number(finding.limit)}
    identity = "\0".join((finding.rule, uri, finding.adapter, finding.module))
    return {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": finding.severity,
        "message": {"text": f"{line(finding)}. {finding.mend}"},
        "locations": [place],
        "partialFingerprints": {"finding/v1": hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()},
        "properties": told,
    }


def _number(value: Any) -> Any:
    """JSON has no infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _uri(path: str) -> str:
    place = Path(path)
    with suppress(OSError):  # the working directory may be gone
        place = Path(os.path.relpath(place)) if place.is_absolute() and place.is_relative_to(Path.cwd()) else place
    if place.is_absolute():
        return place.as_uri()
    return quote(place.as_posix().encode("utf-8", "surrogateescape"))


def _xml(text: str) -> str:
    """The text with what XML cannot hold spelled out."""
    return _NO_XML.sub(lambda hit: hit[0].encode("unicode_escape").decode(), text)


#: Name of a form → the report as text.
FORMS = {"json": as_json, "sarif": sarif, "junit": junit}
