"""Every page of the dashboard, run without a browser: bundled adapters, own ones, broken ones, links."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from dashboard_cases import APP, PAGES, adapter, contents, zipped
from safetensors.numpy import save_file
from streamlit.testing.v1 import AppTest

from app import adding, columns, inspection, palette, server, sources, uploads
from bora_analysis import __version__, analyse, bundled, factor_ranks, null, read_adapter, verdict, write_adapter
from bora_analysis.adapters import AdapterError
from bora_analysis.analysis.tables import join

BUNDLED = [source.label for source in sources.usual()]
TIMEOUT = 180  # seconds; the first run of a page imports and analyses, and machines are shared


@pytest.fixture
def start(monkeypatch, tmp_path):
    """The dashboard as it begins: start(page, *paths, roots=…, **query parameters)."""

    def started(page: str | None = "spectra", *paths, roots=(tmp_path,), **query):
        words = [*(f"--root={root}" for root in roots), "--", *map(str, paths)]
        monkeypatch.setattr(sys, "argv", [str(APP / "streamlit_app.py"), *words])
        sources.arguments.cache_clear()
        # As a string: it is one script for all pages, whose folder Streamlit puts on the path by its own means.
        app = AppTest.from_file(str(APP / "streamlit_app.py"), default_timeout=TIMEOUT)
        for name, value in query.items():
            app.query_params[name] = value
        if page is not None:
            app.switch_page(f"app_pages/{page}.py")
        return app.run()

    yield started
    sources.arguments.cache_clear()


def healthy(app: AppTest) -> AppTest:
    assert not app.exception, [error.value for error in app.exception]
    return app


def shown(app: AppTest) -> list[str]:
    return [error.value for error in app.error]


def on_page(app: AppTest) -> str:
    """The words of the page itself, beside the sidebar."""
    return " ".join(each.value for each in app.main.markdown).replace("\\", "")


def in_url(app: AppTest, name: str) -> list[str]:
    value = app.query_params[name]
    return [value] if isinstance(value, str) else list(value)


def test_a_newcomer_lands_on_start_and_who_names_adapters_on_spectra(start, tmp_path, monkeypatch):
    """Also with a link of before, when an address without a page was that of Spectra."""
    own = adapter(tmp_path / "mine")
    app = healthy(start(None))
    assert [each.value for each in app.title] == ["Start"]
    assert dict(app.query_params) == {}
    app = healthy(start(None, own))
    assert [each.value for each in app.title] == ["Spectra"]
    assert names(app) == ["mine"]
    link = {"path": "mine", "adapters": ["mine", BUNDLED[0]], "threshold": "0.05", "projection": "q"}
    app = healthy(start(None, **link))
    assert [each.value for each in app.title] == ["Spectra"]
    assert names(app) == ["mine", BUNDLED[0]]
    assert (app.select_slider(key="threshold").value, app.session_state["projection"]) == (0.05, "q")
    app = healthy(start(None, view="one module"))
    assert ([each.value for each in app.title], app.session_state["view"]) == (["Spectra"], "one module")
    monkeypatch.setattr(sys, "argv", [str(APP / "streamlit_app.py"), f"--fleet={tmp_path}"])
    sources.arguments.cache_clear()
    again = AppTest.from_file(str(APP / "streamlit_app.py"), default_timeout=TIMEOUT).run()
    assert [each.value for each in again.title] == ["Fleet"]


@pytest.mark.parametrize("page", ["spectra", "layers", "training", "capture", "relative", "trim"])
def test_pages_about_adapters_begin_with_the_verdict(start, tmp_path, page):
    for step in (1, 20):
        adapter(tmp_path / "mine" / f"checkpoint-{step}", seed=step)
    app = healthy(start(page, tmp_path / "mine", adapter="mine", adapters="mine"))
    own = sources.within_roots(str(tmp_path / "mine"))
    texts = [each.value.replace("\\", "") for each in app.markdown]
    (text,) = [text for text in texts if text.startswith(f"**{own.label} step 20**: 99 % of the energy in ")]
    sentence = verdict(tmp_path / "mine").partition("; next")[0]
    assert text.partition("**: ")[2].startswith(f"{sentence}.")
    assert "LoRA, r = 3, α = 6, q, v in 2 layers (4 modules), 336 parameters, float64" in text
    assert texts.index(text) == 1  # below the question


@pytest.mark.parametrize("page", ["compare", "merge"])
def test_pages_about_several_adapters_begin_with_their_verdicts(start, tmp_path, page):
    for seed, name in enumerate(("one", "two")):
        adapter(tmp_path / name, seed=seed)
    app = healthy(start(page, tmp_path / "one", tmp_path / "two"))
    texts = [each.value.replace("\\", "") for each in app.markdown]
    assert texts[1].count("99 % of the energy in ") == 2  # below the question
    for name in ("one", "two"):
        assert f"**{name}**: {verdict(tmp_path / name).partition('; next')[0]}." in texts[1]


def names(app: AppTest) -> list[str]:
    context = app.session_state["_context"]
    assert list(dict.fromkeys(context.spectra["adapter"])) == [source.label for source in context.sources]
    return [source.label for source in context.sources]


def own(app: AppTest) -> list[str]:
    """The adapters of the visitor, beside which there are no examples."""
    every = names(app)
    assert not set(every) & set(BUNDLED)
    return every


def own_layers(app: AppTest) -> pd.DataFrame:
    layers = app.session_state["_context"].layer_metrics
    return layers[~layers["adapter"].isin(BUNDLED)].reset_index(drop=True)


@pytest.mark.parametrize("page", PAGES)
def test_every_page_with_the_bundled_adapters(start, page):
    app = healthy(start(page))
    assert shown(app) == []
    assert names(app) == BUNDLED
    assert app.title or app.header
    charts = []
    for _ in range(100):  # what is worked out beside the page is there a little later
        charts = [element.proto for element in app.get("vega_lite_chart")]
        if charts or page not in ("capture", "merge"):
            break
        time.sleep(0.3)
        healthy(app.run())
    assert charts or page in ("training", "relative")
    for chart in charts:
        spec = json.loads(chart.spec)
        alt.Chart.from_dict(spec, validate=True)  # against Vega-Lite's schema
        assert chart.alt
        for layer in spec["layer"]:  # the browser would show the fields of a layer that says nothing of a tooltip
            tips = layer["encoding"].get("tooltip")
            assert tips or ("tooltip" in layer["mark"] and layer["mark"]["tooltip"] is None)
            assert all(tip.get("title") and "_" not in tip["title"] for tip in tips or ()), tips


#: Page → the state of its widgets in a link, and as the session then has it.
LINKS = {
    "spectra": {"view": "one module", "module": "model.layers.1.self_attn.v_proj"},
    "layers": {"adapter": "mine", "metric": "stable rank", "projection": "v", "layer": "1"},
    "training": {"run": "run", "metric": "stable rank", "projection": "q", "step": "20", "factors": "true"},
    "capture": {"adapter": "mine", "projection": "v", "capture_methods": ["LoRA", "BoRA"]},
    "compare": {"baseline": "run", "metric": "stable rank", "similarity_i": "2", "similarity_side": "inputs of ΔW"},
    "relative": {"adapter": "mine", "relative_k": "3", "relative_epsilon": "0.25", "base": ""},
    "trim": {"adapter": "run", "step": "10", "energy": "90%", "trim_dtype": "float16"},
    "merge": {"merge": ["run", "mine"], "merge_weights": "own", "merge_weight:mine": "-0.5", "merge_energy": "99.5%"},
    "lab": {"lab_m": "64", "lab_n": "32", "lab_r": "4", "lab_b": "16", "lab_kind": "decay", "lab_decay": "2.0",
            "lab_seed": "7", "lab_activation": "no-exp", "lab_same": "same budget", "lab_others": ["LoHa", "C³A"]},
    "budget": {"budget_model": "roberta-base", "budget_parameters": "300000", "budget_target": ["Q", "V"],
               "budget_methods": ["LoRA", "BoRA"]},
    "paper": {"paper_view": "Tables", "paper_table": "7"},
}  # fmt: skip
STATES = {
    "layers": {"metric": "stable_rank"},
    "training": {"metric": "stable_rank", "step": 20, "factors": True},
    "capture": {"capture_methods": ["lora", "bora"]},
    "compare": {"metric": "stable_rank", "similarity_i": 2, "similarity_side": "right"},
    "relative": {"relative_k": 3, "relative_epsilon": 0.25},
    "trim": {"step": 10, "energy": 90.0},
    "merge": {"merge_weight:mine": -0.5, "merge_energy": 99.5},
    "lab": {
        "lab_m": 64,
        "lab_n": 32,
        "lab_r": 4,
        "lab_b": 16,
        "lab_decay": 2.0,
        "lab_seed": 7,
        "lab_same": "budget",
        "lab_others": ["loha", "c3a"],
    },
    "budget": {"budget_parameters": 300_000, "budget_methods": ["lora", "bora"]},
    "paper": {"paper_table": 7},
}


@pytest.mark.parametrize("page", PAGES)
def test_every_page_from_a_link(start, page, tmp_path):
    adapter(tmp_path / "mine")
    for step in (10, 20):
        adapter(tmp_path / "run" / f"checkpoint-{step}", seed=step)
    app = healthy(start(page, path=["mine", "run"], adapters=["mine", "run"], threshold="0.3", **LINKS[page]))
    assert shown(app) == []
    assert names(app) == ["mine", "run"]
    assert app.session_state["_context"].threshold.cell == 0.3
    for key, value in {**LINKS[page], **STATES.get(page, {})}.items():
        assert app.session_state[key] == value, key


@pytest.mark.parametrize(
    ("page", "key", "own", "other"),
    [
        ("spectra", "module", "model.layers.3.self_attn.q_proj", "model.layers.0.self_attn.q_proj"),
        ("layers", "layer", "3", "0"),
        ("training", "step", 30, 20),
    ],
)
def test_a_choice_that_is_no_longer_offered_is_forgotten(start, tmp_path, page, key, own, other):
    """Of two adapters one has more layers, or steps, than the one that is looked at next."""
    for name, layers, last in (("small", 2, 20), ("large", 4, 30)):
        for step in (10, last):
            adapter(tmp_path / name / f"checkpoint-{step}", layers=layers)
    query = {"view": "one module", "adapter": "large", "run": "large", key: str(own)}
    app = healthy(start(page, path=["small", "large"], adapters=["small", "large"], **query))
    assert app.session_state[key] == own
    app.multiselect(key="adapters").set_value([app.multiselect(key="adapters").value[0]])
    healthy(app.run())
    assert names(app) == ["small"]
    assert app.session_state[key] == other
    assert shown(app) == []


@pytest.mark.parametrize("page", ["layers", "training"])
def test_a_method_without_block_factors(start, page, tmp_path):
    """LoHa's ΔW is no product B' Σ' A': the page says so and shows ΔW alone."""
    rng = np.random.default_rng(0)
    for step in (10, 20):
        folder = adapter(tmp_path / "loha" / f"checkpoint-{step}")
        config = json.loads((folder / "adapter_config.json").read_text()) | {"peft_type": "LOHA", "alpha": 6}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        tensors = {}
        for layer in range(2):
            for name, shape in {"w1_a": (12, 3), "w1_b": (3, 16), "w2_a": (12, 3), "w2_b": (3, 16)}.items():
                key = f"base_model.model.model.layers.{layer}.self_attn.q_proj.hada_{name}"
                tensors[key] = rng.standard_normal(shape).astype(np.float32)
        save_file(tensors, folder / "adapter_model.safetensors")
    app = healthy(start(page, path="loha", adapters=["loha"], factors="true"))
    assert names(app) == ["loha"]
    words = [block.value for block in (*app.markdown, *app.info)]
    assert shown(app) == []
    assert any("not a product of block factors" in text for text in words), words
    if page == "layers":
        assert len(app.get("vega_lite_chart")) == 3  # heat map, spectrum, |ΔW|


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A data folder as it is with trained adapters: two tasks, a run, and one that cannot be read by itself."""
    data = tmp_path / "data"
    folders = ["trained-lora-r16", *sources.USUAL, "trained-rating-lora-r8", "trained-dora-r8", "synthetic-lora-r8"]
    for seed, name in enumerate(folders):
        adapter(data / name, seed=seed)
    (data / "trained-dora-r8" / "adapter_model.safetensors").write_bytes(b"needs what is not there")
    for name in ("lora-r8", "bora-r8-b16"):
        for step in (0, 40):
            adapter(data / "runs" / name / f"checkpoint-{step}", seed=step + 1)
    for module in (sources, bundled):
        monkeypatch.setattr(module, "data_folder", lambda: data)
    for cached in (sources.bundled, sources.runs):
        cached.cache_clear()
    yield
    monkeypatch.undo()
    for cached in (sources.bundled, sources.runs):
        cached.cache_clear()


def test_trained_adapters_come_first_and_their_runs_are_shown(start, trained):
    app = healthy(start())
    assert names(app) == list(sources.USUAL)
    options = app.multiselect(key="adapters").options
    assert options == [
        "trained-bora-r8-b8", "trained-bora-r8-b16", "trained-lora-r8", "trained-lora-r16", "trained-melora-r8-n4",
        "trained-rating-lora-r8", "synthetic-lora-r8", "runs/bora-r8-b16", "runs/lora-r8",
    ]  # fmt: skip
    healthy(app.switch_page("app_pages/training.py").run())
    assert shown(app) == []
    assert app.selectbox(key="run").options == ["runs/bora-r8-b16", "runs/lora-r8"]
    healthy(app.toggle(key="factors").set_value(True).run())
    assert any("Of the 4 modules at step 40" in block.value for block in app.markdown)
    assert names(app) == list(sources.USUAL), "the runs are the page's own; the choice stays"


@pytest.mark.parametrize("page", PAGES)
def test_every_page_with_a_path_from_the_command_line(start, page, tmp_path):
    app = healthy(start(page, adapter(tmp_path / "mine")))
    assert shown(app) == []
    assert names(app) == ["mine"]
    bundled = [source.label for source in (*sources.bundled(), *sources.runs())]
    assert app.multiselect(key="adapters").options == ["mine", *bundled]


@pytest.mark.parametrize("page", PAGES)
def test_every_page_with_checkpoints(start, page, tmp_path):
    for step in (10, 20, 100):
        adapter(tmp_path / "run" / f"checkpoint-{step}", seed=step)
    app = healthy(start(page, tmp_path / "run"))
    assert own(app) == ["run"]
    assert own_layers(app)["step"].unique().tolist() == [10, 20, 100]


@pytest.mark.parametrize("page", PAGES)
def test_every_page_with_no_adapter_chosen(start, page):
    app = start(page)
    healthy(app.multiselect(key="adapters").set_value([]).run())
    assert names(app) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_page_with_a_broken_adapter_shows_one_line_and_goes_on(start, page, tmp_path):
    good, bad = adapter(tmp_path / "good"), adapter(tmp_path / "bad")
    weights = bad / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    app = healthy(start(page, bad, good))
    (line,) = shown(app)
    assert "bad" in line
    assert "\n" not in line
    assert own(app) == ["good"]
    assert [error.value for error in app.sidebar.error] == [line], "no banner over the page"
    assert ":red-badge[:material/error: bad] :small[cannot be read" in on_page(app), "the sidebar may be out of sight"
    sheet = next(each.proto.body for each in app.get("html") if "<style>" in each.proto.body)
    alarms = re.findall(r'data-tag-index="(\d)"\] \{\s*background: (#\w+); color', sheet)
    assert alarms == [("0", palette.themes()["light"].alarm)], "its chip is red"
    (way_out,) = [button for button in app.button if button.label == "Leave it out"]
    healthy(way_out.click().run())
    assert shown(app) == []
    assert own(app) == ["good"]
    assert "cannot be read" not in on_page(app)


@pytest.mark.parametrize("page", PAGES)
def test_every_page_with_hostile_names(start, page, tmp_path):
    module = {"model.layers.0.[x](http)*$k$<b>_proj": {"B": np.ones((4, 1)), "A": np.ones((1, 6))}}
    from bora_analysis import write_adapter

    folder = tmp_path / "<img src=x onerror=alert(1)> **b** $k$ :red[x]"
    write_adapter(folder, "lora", module, alpha=2)
    app = healthy(start(page, folder))
    assert own(app) == [folder.name]
    for block in app.markdown:
        assert not block.allow_html or "<img" not in block.value
        assert "onerror=alert(1)>" not in block.value, "a name that is not escaped"


def show_added(app: AppTest) -> AppTest:
    """As a visitor does, who has seen that what was added is ready."""
    (button,) = [button for button in app.button if button.key == "show_added"]
    return healthy(button.click().run())


def check_lines(app: AppTest, *lines: str) -> AppTest:
    app.text_area(key="_lines").set_value("\n".join(lines))
    (button,) = [button for button in app.button if button.label == "Check"]
    return healthy(button.click().run())


def offered(app: AppTest) -> list[str]:
    """What the page Start has found to be ready."""
    groups: Any = app.get("button_group")
    found = [option for pills in groups if pills.label == "Ready" for option in pills.options]
    return [option.replace("\\", "") for option in found]


def test_an_upload_is_checked_then_shown_on_every_page(start, tmp_path):
    packed = zipped(contents(adapter(tmp_path / "sent")))
    app = start("start")
    app.file_uploader(key="upload-0").upload("sent.zip", packed)
    healthy(app.run())
    assert names(app) == BUNDLED, "nothing is chosen before the visitor says so"
    assert offered(app) == ["sent: LoRA, 4 modules"]
    # The uploader is a new one, which has let go of the bytes.
    assert app.file_uploader[0].key == "upload-1"
    assert app.file_uploader[0].value == []
    show_added(app)
    source = app.session_state["_context"].sources[-1]
    assert in_url(app, "upload") == [source.word]
    for page in PAGES:
        healthy(app.switch_page(f"app_pages/{page}.py").run())
        assert names(app) == ["sent"]
        assert shown(app) == []


def test_a_zip_of_several_offers_each(start, tmp_path):
    for name, rank in (("a", 2), ("b", 3)):
        adapter(tmp_path / "all" / name, rank=rank)
    app = start("start")
    app.file_uploader(key="upload-0").upload("all.zip", zipped(contents(tmp_path / "all")))
    healthy(app.run())
    assert offered(app) == ["a: LoRA, 4 modules", "b: LoRA, 4 modules"]
    assert names(show_added(app)) == ["a", "b"]
    assert own_layers(app)["r"].unique().tolist() == [2, 3]


def test_a_folder_from_the_browser(start, tmp_path):
    for name in ("a", "run/checkpoint-1", "run/checkpoint-2"):
        adapter(tmp_path / "mine" / name)
    sent = [(f"mine/{name}", content, "") for name, content in contents(tmp_path / "mine").items()]
    app = start("start")
    app.file_uploader(key="folder-0").set_value(sent)
    healthy(app.run())
    assert offered(app) == ["a: LoRA, 4 modules", "run: LoRA, 4 modules, 2 steps"]
    assert names(show_added(app)) == ["a", "run"]


def test_weights_wait_for_their_configuration(start, tmp_path):
    files = contents(adapter(tmp_path / "sent"))
    app = start("start")
    app.file_uploader(key="upload-0").upload("weights.safetensors", files["adapter_model.safetensors"])
    healthy(app.run())
    assert offered(app) == []
    both = [("weights.safetensors", files["adapter_model.safetensors"], "")]
    both += [("adapter_config.json", files["adapter_config.json"], "")]
    app.file_uploader(key="upload-0").set_value(both)
    healthy(app.run())
    assert names(show_added(app)) == ["weights"]
    assert (app.session_state["_context"].layer_metrics.query("adapter == 'weights'")["scaling"] == 2).all()


def test_weights_alone_on_request(start, tmp_path):
    files = contents(adapter(tmp_path / "sent"))
    app = start("start")
    app.file_uploader(key="upload-0").upload("weights.safetensors", files["adapter_model.safetensors"])
    app.run()
    (button,) = [button for button in app.button if button.label == "Read without a configuration"]
    show_added(healthy(button.click().run()))
    assert (app.session_state["_context"].layer_metrics.query("adapter == 'weights'")["scaling"] == 1).all()


def test_a_bad_upload_shows_one_line_and_is_not_unpacked_again(start, monkeypatch):
    app = start("start")
    app.file_uploader(key="upload-0").upload("no.zip", b"PK\x03\x04 this is no zip")
    healthy(app.run())
    (line,) = shown(app)
    assert "zip" in line
    assert names(app) == BUNDLED

    def never(*_):
        raise AssertionError("unpacked again")

    monkeypatch.setattr(uploads, "unpack", never)
    healthy(app.select_slider(key="threshold").set_value(0.01).run())
    assert shown(app) == [line]


def test_what_is_wrong_with_one_upload_is_told_beside_a_good_one(start, tmp_path):
    good = zipped(contents(adapter(tmp_path / "sent")))
    app = start("start")
    app.file_uploader(key="upload-0").set_value([("no.zip", b"PK no zip", ""), ("good.zip", good, "")])
    healthy(app.run())
    assert offered(app) == ["good: LoRA, 4 modules"]
    assert ":red-badge[:material/error: no.zip]" in on_page(app).replace("\u2060", "")
    assert "is not a complete zip file" in on_page(app)
    show_added(app)
    assert "no.zip" not in on_page(healthy(app.switch_page("app_pages/start.py").run())), "it has been seen"


def dora(folder: Path, base: str | None) -> Path:
    """An adapter whose ΔW depends on its base model."""
    folder.mkdir()
    prefix = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    tensors = {"A.weight": np.ones((2, 8)), "B.weight": np.ones((6, 2)), "magnitude_vector": np.ones(6)}
    save_file({prefix + name: values for name, values in tensors.items()}, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "use_dora": True, "r": 2, "lora_alpha": 4, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("public", [False, True])
def test_what_needs_its_base_model_says_which_and_asks_where_it_can_be_given(start, tmp_path, monkeypatch, public):
    packed = zipped(contents(dora(tmp_path / "sent", "acme/tiny")))
    app = start("start")
    if public:
        told = sources.arguments()
        monkeypatch.setattr(told, "root", [])
        monkeypatch.setattr(told, "hub", False)
    app.file_uploader(key="upload-0").upload("sent.zip", packed)
    healthy(app.run())
    assert "DoRA needs the base model; its configuration names acme/tiny" in on_page(app)
    assert "--base" not in on_page(app)
    fields = [field for field in app.text_input if field.label.startswith("Its base model")]
    assert len(fields) == (not public)


def test_a_zip_on_the_server_is_for_the_box_of_zips(start, tmp_path):
    (tmp_path / "all.zip").write_bytes(b"PK")
    assert "all.zip: is a zip; drop it into the box for zips" in on_page(check_lines(start("start"), "all.zip"))


def test_a_link_to_an_upload_holds_in_another_session(start, tmp_path):
    app = start("start")
    app.file_uploader(key="upload-0").upload("sent.zip", zipped(contents(adapter(tmp_path / "sent")))).run()
    (token,) = in_url(show_added(app), "upload")
    assert names(healthy(start(upload=token))) == ["sent"]
    other = healthy(start(upload="nonsense"))
    assert names(other) == BUNDLED
    assert len(shown(other)) == 1
    assert "1 adapter of this link] :small[cannot be opened" in on_page(other)


def test_a_typed_path_is_chosen_and_stands_in_the_link(start, tmp_path):
    adapter(tmp_path / "deep" / "mine")
    app = check_lines(start("start"), "deep/mine")
    assert names(app) == BUNDLED
    assert names(show_added(app)) == ["mine"]
    assert in_url(app, "path") == ["deep/mine"]
    assert names(healthy(start(path="deep/mine"))) == ["mine"]


def test_a_folder_offers_its_members_and_bad_lines_stay(start, tmp_path):
    for name in ("all/a", "all/b", "other"):
        adapter(tmp_path / "root" / name)
    adapter(tmp_path / "outside")
    (tmp_path / "root" / "all" / "bad").mkdir()
    (tmp_path / "root" / "all" / "bad" / "adapter_config.json").write_text("{}")
    (tmp_path / "root" / "all" / "link").symlink_to(tmp_path / "outside")
    app = check_lines(start("start", roots=[tmp_path / "root"]), "all", "../outside", "nothing", "'other'")
    assert offered(app) == [f"{name}: LoRA, 4 modules" for name in ("a", "b", "other")]
    assert app.text_area(key="_lines").value == "../outside\nnothing", "what was not found can be mended"
    words = " ".join(each.value.replace("\\", "") for each in app.markdown)
    assert "lies outside" in words
    assert "no such file or folder" in words
    assert ":red-badge" in words
    assert "bad: holds adapter_config.json but no weights" in words
    assert "path" not in app.query_params
    assert names(show_added(app)) == ["a", "b", "other"]


def test_examples_are_chosen_as_such(start):
    app = start("start")
    (button,) = [button for button in app.button if button.key == "show_examples"]
    healthy(button.click().run())
    assert names(app) == BUNDLED


class Sibling:
    def __init__(self, rfilename: str, size: int):
        self.rfilename, self.size = rfilename, size


@pytest.mark.parametrize("size", [1000, adding.HUB_BYTES + 1])
def test_an_id_of_the_hub(start, tmp_path, monkeypatch, size):
    import huggingface_hub

    place = adapter(tmp_path / "cache" / "snapshot")
    told = SimpleNamespace(siblings=[Sibling("adapter_model.safetensors", size), Sibling("README.md", 9 << 40)])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: told)
    fetched = []
    monkeypatch.setattr(adding, "download", lambda word: fetched.append(word) or place)
    app = check_lines(start("start", roots=[tmp_path / "root"]), "org/lora@v1")
    if size > adding.HUB_BYTES:
        assert not fetched
        assert offered(app) == []
        assert any("at most" in each.value for each in app.markdown)
        return
    assert offered(app) == ["lora@v1: LoRA, 4 modules"]
    assert names(show_added(app)) == ["lora@v1"]
    assert in_url(app, "hub") == ["org/lora@v1"]
    assert fetched == ["org/lora@v1"]


def test_a_link_sets_adapters_threshold_and_path(start, tmp_path):
    adapter(tmp_path / "one", seed=1)
    adapter(tmp_path / "two", seed=2)
    app = healthy(start(path=["one", "two"], adapters=["two", BUNDLED[0]], threshold="0.0123"))
    assert names(app) == ["two", BUNDLED[0]]
    context = app.session_state["_context"]
    assert context.threshold.cell == 0.0123
    assert (context.layer_metrics["threshold"] == 0.0123).all()
    # Another run, another page: the same.
    healthy(app.run())
    assert names(app) == ["two", BUNDLED[0]]
    healthy(app.switch_page("app_pages/layers.py").run())
    assert names(app) == ["two", BUNDLED[0]]
    assert app.session_state["_context"].threshold.cell == 0.0123


@pytest.mark.parametrize("threshold", ["nan", "inf", "-1", "0", "1e400", "x", "", "1e-300"])
def test_a_link_with_an_impossible_threshold_has_the_usual_one(start, threshold):
    assert healthy(start(threshold=threshold)).session_state["_context"].threshold.cell == 0.005


def test_a_link_with_unknown_adapters_has_the_usual_ones(start):
    app = healthy(start(adapters=["nonsense", "<b>"]))
    assert names(app) == BUNDLED
    assert "No adapter here is called nonsense, <b>;" in on_page(app), "not at the side, which a phone hides"
    assert "is called" not in on_page(start(adapters=BUNDLED[:1]))
    healthy(app.multiselect(key="adapters").set_value([app.multiselect(key="adapters").value[0]]).run())
    assert "is called" not in on_page(app), "the visitor has chosen"


def test_the_product_says_its_name_and_version(start):
    words = " ".join(each.value for each in start().sidebar.caption)
    assert f"bora_analysis {__version__}" in words
    assert "https://arxiv.org/abs/2508.06953" in words
    assert "Examples that come with the toolkit." in words


def test_names_in_tables_leave_room_on_a_phone(start, tmp_path):
    """Names of sixty characters were all that a phone showed."""
    long = [tmp_path / f"llama-3-8b-instruct-commonsense-170k-lora-rank-8-seed-{k}-final" for k in (1, 2)]
    table = start("spectra", *(adapter(folder, seed=k) for k, folder in enumerate(long))).dataframe[0].value
    assert table["adapter"].nunique() == 2
    assert table["adapter"].str.len().max() <= columns.NAME
    known = start("spectra", adapter(tmp_path / "mine")).dataframe[0].value
    assert known["adapter"].tolist() == ["mine"]


def test_the_threshold_moves_every_number(start, tmp_path):
    folder = adapter(tmp_path / "mine")
    app = start("spectra", folder)
    healthy(app.select_slider(key="threshold").set_value(8.0).run())
    expected = analyse(read_adapter(folder), threshold=8.0).layer_metrics
    pd.testing.assert_frame_equal(own_layers(app), expected)
    assert expected["effective_rank"].sum() < 12  # or the test would show nothing


@pytest.mark.parametrize(
    ("kind", "key", "value", "threshold", "pages"),
    [
        ("a share of σ₁", "share", 50.0, "50%", ("spectra", "layers", "lab")),
        ("a number, at ‖ΔW‖ = 1", "threshold", 0.5, "0.5 at norm 1", ("training", "budget")),
    ],
)
def test_a_threshold_that_does_not_depend_on_the_scale(start, tmp_path, kind, key, value, threshold, pages):
    folder = adapter(tmp_path / "mine")
    app = start("spectra", folder)
    healthy(app.selectbox(key="counting").set_value(kind).run())
    healthy(app.select_slider(key=key).set_value(value).run())
    expected = analyse(read_adapter(folder), threshold=threshold).layer_metrics
    pd.testing.assert_frame_equal(own_layers(app), expected)
    assert 0 < expected["effective_rank"].sum() < 12
    for page in pages:  # as a link says it
        linked = healthy(start(page, folder, counting=kind, **{key: threshold.partition(" ")[0]}))
        assert str(linked.session_state["_context"].threshold) == threshold


def test_the_null_stands_beside_the_spectra(start, tmp_path):
    folder = adapter(tmp_path / "mine")
    app = healthy(start("spectra", folder, null="true"))
    data = json.loads(app.get("vega_lite_chart")[0].proto.spec)
    assert any(layer["data"]["name"] == "null" for layer in data["layer"])
    without = json.loads(healthy(start("spectra", folder)).get("vega_lite_chart")[0].proto.spec)
    assert not any(layer["data"]["name"] == "null" for layer in without["layer"])
    healthy(start("layers", folder))


@pytest.mark.parametrize(("metric", "known"), [("entropy rank", True), ("spectral norm", True)])
def test_the_null_stands_beside_the_training(start, tmp_path, metric, known):
    for step in (10, 20):
        adapter(tmp_path / "run" / f"checkpoint-{step}", seed=step)
    app = healthy(start("training", tmp_path / "run", run="run", null="true", metric=metric))
    chart = app.get("vega_lite_chart")[0].proto
    assert any(layer["data"]["name"] == "null" for layer in json.loads(chart.spec)["layer"]) is known
    (data,) = [each for each in chart.datasets if each.name == "null"]
    found = pa.ipc.open_stream(data.data.data).read_pandas()
    rows = null(read_adapter(tmp_path / "run")).layer_metrics
    name = metric.replace(" ", "_")
    expected = rows[rows["metric"] == name].groupby("step")["null_mean"].mean()
    np.testing.assert_allclose(found["mean"], expected)
    assert (found["low"] <= found["mean"]).all()
    assert (found["mean"] <= found["high"]).all()


def test_a_cell_of_several_modules_and_the_box_that_names_one(start, tmp_path):
    """The module of another cell is forgotten in words that reach the browser, whose box would go on showing it."""
    rng = np.random.default_rng(0)
    names = [f"model.layers.{k}.mlp.experts.{e}.up_proj" for k in range(2) for e in range(3)]
    modules = {name: {"B": rng.standard_normal((12, 3)), "A": rng.standard_normal((3, 16))} for name in names}
    write_adapter(tmp_path / "experts", "lora", modules, alpha=6)
    app = healthy(start("layers", tmp_path / "experts", adapter="experts", layer="0", module=names[1]))
    assert app.selectbox(key="module").value == names[1]
    healthy(app.selectbox(key="layer").set_value("1").run())
    assert app.selectbox(key="module").value == names[3] == app.text[0].value
    assert app.selectbox(key="module").proto.set_value, "the box in the browser keeps what it showed"


def test_two_adapters_of_one_name_are_told_apart(start, tmp_path):
    one, two = adapter(tmp_path / "a" / "lora", seed=1), adapter(tmp_path / "b" / "lora", seed=2)
    app = healthy(start("spectra", one, two))
    assert own(app) == ["a/lora", "b/lora"]
    layers = own_layers(app)
    assert layers.groupby("adapter").size().tolist() == [4, 4]


def test_one_that_is_added_leaves_the_labels_alone(start, tmp_path):
    one = adapter(tmp_path / "a" / "lora", seed=1)
    adapter(tmp_path / "b" / "lora", seed=2)
    assert own(healthy(start("spectra", one, path="b/lora"))) == ["lora", "b/lora"]
    assert own(healthy(start("spectra", one, path="a/lora"))) == ["lora"]


def test_an_adapter_that_vanishes_becomes_an_error(start, tmp_path):
    app = start("spectra", adapter(tmp_path / "mine"), adapter(tmp_path / "other"))
    for file in (tmp_path / "mine").iterdir():
        file.unlink()
    (tmp_path / "mine").rmdir()
    healthy(app.run())
    assert len(shown(app)) == 1
    assert own(app) == ["other"]


def test_an_adapter_that_is_replaced_is_read_again(start, tmp_path):
    folder = adapter(tmp_path / "mine", rank=3)
    app = start("spectra", folder)
    adapter(folder, rank=2, seed=9)
    healthy(app.run())
    assert own_layers(app)["r"].unique().tolist() == [2]


def test_twenty_sessions_at_once_cause_one_analysis(tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    store, calls = sources.TableStore(), []
    real = sources._analyse
    monkeypatch.setattr(sources, "_analyse", lambda *arguments: calls.append(1) or real(*arguments))
    source = sources.Source("given:x", "x", adapter(tmp_path / "x"), "given")
    with ThreadPoolExecutor(20) as pool:
        tables = list(pool.map(lambda _: store.get(source), range(20)))
    assert len(calls) == 1
    assert all(table is tables[0] for table in tables)


def test_an_adapter_in_error_is_analysed_once(tmp_path, monkeypatch):
    store, calls = sources.TableStore(), []
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"nonsense")
    real = sources._analyse
    monkeypatch.setattr(sources, "_analyse", lambda *arguments: calls.append(1) or real(*arguments))
    source = sources.Source("given:x", "x", folder, "given")
    for _ in range(3):
        with pytest.raises(AdapterError):
            store.get(source)
    assert len(calls) == 1


def test_the_store_is_bounded_and_forgets_the_least_recently_used(tmp_path):
    found = [
        sources.Source(f"given:{i}", str(i), adapter(tmp_path / str(i), seed=i, layers=20), "given") for i in range(4)
    ]
    probe = sources.TableStore()
    size = sources._bytes(probe.get(found[0]))
    store = sources.TableStore(limit=int(2.5 * size))
    for source in (found[0], found[1], found[0], found[2], found[3]):
        store.get(source)
    assert [key[2] for key in store.kept.cache] == ["2", "3"]
    store.get(found[0])
    assert [key[2] for key in store.kept.cache] == ["3", "0"]


def test_a_choice_has_one_joined_table_for_all_tabs(tmp_path):
    store = sources.TableStore()
    found = [
        store.get(sources.Source(f"given:{i}", str(i), adapter(tmp_path / str(i), seed=i), "given")) for i in (1, 2)
    ]
    assert sources.joined(found[:1]) is found[0]
    assert sources.joined(found) is sources.joined(list(found))
    pd.testing.assert_frame_equal(sources.joined(found).spectra, join(found).spectra)


def test_the_server_has_analysed_what_is_shown_first(monkeypatch):
    store = sources.TableStore()
    monkeypatch.setattr(sources, "table_store", lambda: store)
    server.warm()
    assert sources.usual()
    assert all(store.has(source) for source in sources.usual())


def test_an_inspection_is_made_once_and_anew_for_a_new_file(tmp_path):
    source = sources.Source("given:x", "x", adapter(tmp_path / "x", rank=3), "given")
    module = "model.layers.1.self_attn.v_proj"
    first = inspection.inspect(source, module, None)
    assert inspection.inspect(source, module, None) is first
    update = read_adapter(source.path)[module]
    np.testing.assert_allclose(first.delta.image, np.abs(update.to_dense()), rtol=1e-6, atol=1e-6)  # float32
    assert first.ranks == factor_ranks(update)
    adapter(tmp_path / "x", rank=2, seed=9)
    assert inspection.inspect(source, module, None).facts.r == 2
    with pytest.raises(AdapterError, match="no longer in the file"):
        inspection.inspect(source, "model.layers.9.q_proj", None)


def test_progress_is_told_per_module(tmp_path):
    told = []
    source = sources.Source("given:x", "x", adapter(tmp_path / "x"), "given")
    sources.TableStore().get(source, lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_leaving_in_the_middle_of_an_analysis_leaves_the_store_fit(tmp_path):
    class Left(BaseException):
        """As Streamlit's, when a visitor goes elsewhere."""

    def leave(done, total):
        raise Left

    store, source = sources.TableStore(), sources.Source("given:x", "x", adapter(tmp_path / "x"), "given")
    with pytest.raises(Left):
        store.get(source, leave)
    assert len(store.get(source).layer_metrics) == 4


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("runs/mine", "mine"),
        ("runs/checkpoint-10", "runs/checkpoint-10"),
        ("runs/mine/adapter_model.safetensors", "mine"),
        ("runs/weights.bin", "weights"),
        ("runs/v1.5", "v1.5"),
        ("/", "adapter"),
    ],
)
def test_names_of_paths(path, expected):
    assert sources.title(Path(path)) == expected
