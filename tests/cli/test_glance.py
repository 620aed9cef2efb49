"""`bora-analysis PATH`: one screen; and paths as people type them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from screens import Screen, on_screen

from bora_analysis import layer_metrics, lora, read_adapter, verdict, write_adapter
from bora_analysis.adapters.locate import adapters_below, is_other, near
from bora_analysis.analysis.overview import overview
from bora_analysis.analysis.telling import telling
from bora_analysis.cli import main
from bora_analysis.cli.plain_text import cells_wide

DATA = Path(__file__).parents[2] / "data"
LORA, BORA, RUN = (str(DATA / name) for name in ("trained-lora-r8", "trained-bora-r8-b8", "runs/lora-r8"))


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def factors(*sigma):
    r = len(sigma)
    return {"B": np.eye(12, r) * sigma, "A": np.eye(r, 10)}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of adapters, as they lie about."""
    home = tmp_path_factory.mktemp("home")
    write_adapter(
        home / "runs" / "first", "lora", {"h.0.q_proj": factors(1, 0.1), "h.1.q_proj": factors(1, 1)}, alpha=2
    )
    write_adapter(home / "runs" / "deep" / "second", "lora", {"h.0.q_proj": factors(1, 0.1, 0.1)}, alpha=3)
    for step in (1, 2):
        place = home / "runs" / "run" / f"checkpoint-{step}"
        write_adapter(place, "lora", {"h.0.q_proj": factors(step, 0.1)}, alpha=2)
    write_adapter(home / "compare", "lora", {"h.0.q_proj": factors(1.0)}, alpha=1)
    many = {f"model.layers.{k}.self_attn.{p}": factors(1, k / 125) for k in range(125) for p in ("q_proj", "v_proj")}
    write_adapter(home / "many", "lora", many, alpha=2)
    write_adapter(home / "nothing", "lora", {"h.0.q": factors(0.0)}, alpha=1)
    odd = {f"{'x' * 90}.{k}.{'y' * 90}": factors(1, k) for k in range(3)} | {"lm_head": factors(2.0)}
    write_adapter(home / "odd", "lora", odd, alpha=2)
    (home / "runs" / "notes.txt").write_text("notes")
    (home / "README.md").write_text("# mine")
    return home


@pytest.mark.parametrize("name", ["runs/first", "runs/run", "compare", "many", "nothing", "odd"])
@pytest.mark.parametrize(("width", "encoding"), [(80, "utf-8"), (200, "utf-8"), (60, "ascii"), (80, "cp437")])
def test_one_screen_within_the_terminal(home, name, width, encoding):
    code, out, err = on_screen(home / name, width=width, encoding=encoding)
    assert code == 0, err
    lines = out.splitlines()
    assert len(lines) <= (24 if width >= 80 and name != "odd" else 36)
    assert [line for line in lines if cells_wide(line) > width and str(home) not in line] == []
    assert "next: bora-analysis " in out


def test_it_says_what_where_and_what_next():
    text = run(LORA).stdout
    assert text.startswith("trained-lora-r8\nLoRA, r = 8, α = 16, 73,728 parameters, float32\n")
    assert "targets: q, v in 6 layers (12 modules)\nbase: sentence-transformers/all-MiniLM-L6-v2\n" in text
    assert verdict(LORA).partition("; next")[0] in " ".join(text.split())
    strip = dict(re.findall(r"^(q|v|layer)  +(.*)$", text, re.MULTILINE))
    shares = layer_metrics(LORA).assign(share=lambda each: each["energy_rank_99"] / each["rank_bound"])
    for projection in ("q", "v"):
        values = shares[shares["projection"] == projection]["share"]
        assert strip[projection][::2] == "".join("▁▂▃▄▅▆▇█"[max(0, round(8 * x) - 1)] for x in values)
    assert strip["layer"].split() == ["0", "5"]
    (command,) = re.findall(r"^next: bora-analysis (.*)$", text, re.MULTILINE)
    assert shlex.split(command) == ["capture", LORA]


def test_the_strip_is_spelled_in_narrow_encodings():
    _, out, _ = on_screen(LORA, encoding="ascii")
    assert re.search(r"^q {6}\d{12}$", out, re.MULTILINE)
    assert out.isascii()


def test_a_run_is_shown_at_its_last_step():
    result = run(RUN)
    assert result.stdout.startswith("lora-r8 step 400, the last of 10 checkpoints\n")
    assert verdict(RUN).partition("; next")[0] in " ".join(result.stdout.split())


def test_several_paths_and_options(home, monkeypatch):
    monkeypatch.chdir(home)
    result = run("runs/first", "many", "--modules", r"\.0\.")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.endswith(r"next: bora-analysis compare runs/first many --modules '\.0\.'" + "\n")
    assert "(1 module)" in result.stdout
    broken = run("runs/first", "nowhere/x")
    assert broken.exit_code == 1
    assert "99 %" in broken.stdout
    assert "nowhere/x" in broken.stderr


def test_a_commands_name_is_a_command_and_with_a_dot_a_path(home, monkeypatch):
    monkeypatch.chdir(home)
    assert run("compare").exit_code == 2
    assert run("./compare").stdout.startswith("compare\nLoRA, r = 1")
    assert run("./compare").stdout.endswith("next: bora-analysis recommend ./compare\n")
    assert run("compare", "compare").exit_code == 0


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("analyse", "analyze"), ("recomend", "recommend"), ("manny", "many"), ("convrt", "convert"), ("xyz", "--help")],
)
def test_a_misspelt_command_is_exit_2(home, monkeypatch, typed, meant):
    monkeypatch.chdir(home)
    result = run(typed, "runs/first")
    assert (result.exit_code, result.stdout) == (2, "")
    assert meant in result.stderr


def test_did_you_mean_that_path(home, monkeypatch):
    monkeypatch.chdir(home)
    for command in ([], ["analyze"], ["convert", "-o", "out"]):
        for typed, meant in (("./runs/frist", "runs/first"), ("./rnus/deep/secnd", "runs/deep/second")):
            result = run(*command, typed)
            assert (result.exit_code, result.stdout) == (1, "")
            assert f"no such file or folder; did you mean {meant}?" in result.stderr
    assert near("q/w/e") == near(str(home / "zzzzzz")) == ""
    assert near(str(home / "many" / "adapter_modle.safetensors")).endswith("adapter_model.safetensors?")


def test_folders_of_adapters_are_gone_through(home, monkeypatch):
    monkeypatch.chdir(home)
    assert [str(place) for place in adapters_below(Path("runs"))] == ["runs/deep/second", "runs/first", "runs/run"]
    result = run("compare", "runs", "--format", "json")
    assert result.exit_code == 0
    assert {record["adapter"] for record in json.loads(result.stdout)} == {"first", "second", "run"}
    assert "note: runs: a folder of 3 adapters" in result.stderr
    assert run("compare", "runs").stdout.split("next: ")[1].splitlines()[0].endswith(" runs")
    one = run("convert", "runs", "-o", "out")
    assert (one.exit_code, one.stdout) == (1, "")
    assert "name one of its folders: first, run (2 checkpoints)" in one.stderr
    shutil.copytree("many", "side/by")
    for name in ("b.safetensors", "a.safetensors"):
        shutil.copy("many/adapter_model.safetensors", f"side/{name}")
    assert [place.name for place in adapters_below(Path("side"))] == ["a.safetensors", "b.safetensors", "by"]


def test_files_of_other_kinds_are_passed_over_beside_adapters(home, monkeypatch):
    monkeypatch.chdir(home)
    (home / "tables").mkdir(exist_ok=True)
    (home / "tables" / "a.csv").write_text("a\n")
    beside = run("compare", "README.md", "many", "tables", "--format", "json")
    assert beside.exit_code == 0
    assert "note: passed over, no adapters: README.md, tables" in beside.stderr
    alone = run("compare", "README.md", "tables")
    assert (alone.exit_code, alone.stdout) == (1, "")
    assert alone.stderr.count("error: ") == 2
    (home / "broken").mkdir(exist_ok=True)
    (home / "broken" / "adapter_config.json").write_text("{}")
    assert run("compare", "many", "broken").exit_code == 1  # an adapter that lacks its weights is no other kind
    assert not is_other(home / "broken")


def test_colours_only_in_terminals_that_want_them(home, monkeypatch):
    import io
    from contextlib import redirect_stdout

    def shown(**environment):
        monkeypatch.delenv("NO_COLOR", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        screen = Screen(io.BytesIO(), "utf-8")
        with redirect_stdout(screen), pytest.raises(SystemExit):
            main([LORA])
        screen.flush()
        return screen.buffer.getvalue().decode()  # pyright: ignore[reportAttributeAccessIssue]

    assert "\x1b[" in shown(TERM="xterm")
    assert "\x1b[" not in shown(TERM="dumb")
    assert "\x1b[" not in shown(TERM="xterm", NO_COLOR="1")
    assert "\x1b[" not in run(LORA).output


def test_overview_of_what_the_files_say(tmp_path):
    from safetensors.numpy import save_file

    write_adapter(tmp_path, "lora", {"h.0.q_proj": factors(1, 1), "h.1.v_proj": factors(1, 1)}, alpha=3)
    adapter: Any = read_adapter(tmp_path)
    found = overview(adapter, layer_metrics(adapter))
    assert found["α"] == "3"
    assert found["targets"] == "q, v in 2 layers (2 modules)"
    (tmp_path / "trainer_state.json").write_text('{"global_step": 400, "max_steps": 500, "best_metric": 0.8125}')
    (tmp_path / "run.json").write_text("no JSON")
    assert overview(adapter, layer_metrics(adapter))["trained"].startswith("step 400 of 500, best metric 0.8125")
    shapes = {"lora_down.weight": (1, 4), "lora_up.weight": (3, 1), "alpha": ()}
    kohya = {f"lora_unet_mid_q.{name}": np.full(shape, 2, "f4") for name, shape in shapes.items()}
    header = {"ss_learning_rate": "0.0001", "ss_num_epochs": "10", "ss_output_name": "style"}
    (tmp_path / "k").mkdir()
    save_file(kohya, tmp_path / "k" / "style.safetensors", header)
    style: Any = read_adapter(tmp_path / "k" / "style.safetensors")
    words = overview(style, layer_metrics(style))
    assert words["trained"] == "style, learning rate 0.0001, epochs 10"
    assert words["scaling"] == "2"
    assert "base" not in words


def test_the_modules_that_say_most():
    modules = {
        "h.0.q": lora(np.eye(12, 2) * [9, 0.1], np.eye(2, 10)), "h.1.q": lora(np.eye(12, 2), np.eye(2, 10)),
        "h.2.q": lora(np.zeros((12, 2)), np.eye(2, 10)), "h.3.q": lora(np.eye(12, 2) * [1, 0.9], np.eye(2, 10)),
    }  # fmt: skip
    found = telling(layer_metrics(modules))
    assert [each.name for each in found] == ["layer 2 q", "layer 0 q", "layer 1 q"]
    assert found[0].reason == "ΔW = 0: nothing was trained"
    assert found[1].reason.startswith(
        "the largest update: 96% of the adapter's energy, 2.9 times an even share; 1 direct"
    )
    assert found[2].reason == "needs all 2 directions: its spectrum ends before it decays, more rank may help"


def test_of_one_module_nothing_is_said_twice(tmp_path):
    write_adapter(tmp_path / "one", "lora", {"h.3.q_proj": factors(1.0, 1.0)}, alpha=2)
    text = run(tmp_path / "one").stdout
    assert re.search(r"\nlayer +3\n", text)
    assert " to 3" not in text
    assert "needs all 2 directions: its spectrum ends before it decays" in text
    assert "of 2 allowed" not in text


def test_the_shell_completes_commands_and_paths():
    def completed(*words):
        return ShellComplete(main, {}, "bora-analysis", "_X").get_completions(list(words[:-1]), words[-1])

    assert {item.value for item in completed("comp")} >= {"compare"}
    assert {item.type for item in completed("data/")} == {"file"}
    assert {item.type for item in completed("compare", "data/")} == {"file"}
    assert {item.value for item in completed("compare", "--form")} == {"--format"}
