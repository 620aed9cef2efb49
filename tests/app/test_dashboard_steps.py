"""The steps of a run on the page Training: played, as a film, and of a run that grows while it is looked at."""

from __future__ import annotations

import io
import os
import time

import numpy as np
import pandas as pd
import pytest
from dashboard_cases import adapter
from page_cases import healthy, made, press, starter
from PIL import Image

from app import sources
from bora_analysis.figures.film import FRAMES, film

start = starter("training")


@pytest.fixture
def run(tmp_path):
    for step in (10, 20):
        adapter(tmp_path / "run" / f"checkpoint-{step}", seed=step)
    return tmp_path / "run"


def steps(app) -> list[int]:
    return sorted(app.session_state["_context"].layer_metrics["step"].unique().tolist())


def test_play_goes_through_the_steps_and_ends(start, run):
    adapter(run / "checkpoint-30", seed=30)
    app = start(path="run", adapters="run", run="run")
    assert app.session_state["step"] == 30
    press(app, "Play")
    seen = [app.session_state["step"]]
    for _ in range(6):  # what the fragment does by itself in a browser
        seen.append(healthy(app.run()).session_state["step"])
    assert seen[-1] == 30
    assert seen == sorted(seen), "it goes backwards"
    assert list(dict.fromkeys(seen)) == [10, 20, 30]
    assert [button for button in app.button if button.label == "Play"], "at the end it waits to be played again"
    assert f"at step {seen[-1]}" in app.get("vega_lite_chart")[1].proto.alt


def test_the_film_has_a_frame_for_each_step(start, run):
    app = start(path="run", adapters="run", run="run")
    press(app, "Make a film")
    content = made(app, "film")
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, getattr(image, "n_frames", 1)) == ("GIF", 2)


def blue(frame: Image.Image) -> float:
    """The mean row of the bold line."""
    pixels = np.asarray(frame.convert("RGB"), float)
    red, green, own = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    rows, _ = np.nonzero((own > 140) & (red < 80) & (green < 150))
    return float(rows.mean())


def test_the_frames_show_their_steps():
    index = np.arange(1, 9)
    sizes = {0: 0.1, 5: 10.0, 9: 1.0}
    curves = pd.concat(
        [pd.DataFrame({"step": s, "index": index, "singular_value": x / index}) for s, x in sizes.items()]
    )
    content = film(curves, threshold=0.05, seconds=0.2, dpi=60)
    assert content == film(curves, threshold=0.05, seconds=0.2, dpi=60)
    with Image.open(io.BytesIO(content)) as image:
        rows, times = [], []
        for k in range(getattr(image, "n_frames", 1)):
            image.seek(k)
            rows.append(blue(image))
            times.append(image.info["duration"])
    assert times == [200, 200, 600]
    assert rows[1] < rows[2] < rows[0], "the largest values stand highest"
    # On a logarithmic axis that stays: a decade is as high from frame to frame.
    assert (rows[0] - rows[2]) == pytest.approx(rows[2] - rows[1], rel=0.1)


def test_films_that_cannot_be():
    curves = pd.DataFrame({"step": [1, 1], "index": [1, 2], "singular_value": [2.0, 1.0]})
    with pytest.raises(ValueError, match="two steps"):
        film(curves)
    with pytest.raises(ValueError, match="every singular value is 0"):
        film(pd.concat([curves, curves.assign(step=2)]).assign(singular_value=0.0))


def test_of_very_many_steps_some(monkeypatch):
    from bora_analysis.figures import film as module

    monkeypatch.setattr(module, "FRAMES", 3)
    curves = pd.DataFrame({"step": range(10), "index": 1, "singular_value": np.arange(1.0, 11.0)})
    told = []
    film(curves, dpi=40, on_frame=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert FRAMES > 100


def test_a_checkpoint_that_is_being_written_is_left_out_until_it_is_whole(start, run, monkeypatch):
    analysed = []
    real = sources.analyse

    def seen(one, **more):
        analysed.extend([one.step] if one.name == "run" else [])
        return real(one, **more)

    monkeypatch.setattr(sources, "analyse", seen)
    app = start(path="run", adapters="run", run="run")
    assert steps(app) == [10, 20]
    assert sorted(analysed) == [10, 20]
    whole = adapter(run.parent / "later", seed=30)
    (run / "checkpoint-30").mkdir()
    config = (whole / "adapter_config.json").read_bytes()
    weights = (whole / "adapter_model.safetensors").read_bytes()
    (run / "checkpoint-30" / "adapter_config.json").write_bytes(config)
    assert steps(healthy(app.run())) == [10, 20]
    (run / "checkpoint-30" / "adapter_model.safetensors").write_bytes(weights[:200])
    assert steps(healthy(app.run())) == [10, 20]
    assert not app.error
    long_ago = time.time() - 2 * sources.GROWING
    os.utime(run / "checkpoint-30", (long_ago, long_ago))
    assert len(healthy(app.run()).error) == 1, "one that stays broken is an error"
    (run / "checkpoint-30" / "adapter_model.safetensors").write_bytes(weights)
    assert steps(healthy(app.run())) == [10, 20, 30]
    assert sorted(analysed) == [10, 20, 30], "the first ones were analysed again"


def test_only_runs_that_can_grow_are_followed(start, run):
    app = start(path="run", adapters="run", run="run", follow="true")
    assert app.toggle(key="follow").value
    bundled = start(adapters=[source.label for source in sources.runs()][:1])
    assert not [toggle for toggle in bundled.toggle if toggle.key == "follow"]
