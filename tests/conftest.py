import gc
import os
import sys

import pandas as pd
import pytest
from hypothesis import settings

# The tests' models are tiny: a second thread gains nothing, and costs a hundredfold where the cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A collection of garbage looks at every object of every package, and each training asks for several: what the tests
# import stays, and is left out (below).
gc.disable()

# Derandomised: the same cases on every machine, so that a failure is a change and not a draw.
settings.register_profile("project", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("project")

# The dashboard's server and a browser.
pytest_plugins = ["server_fixtures"]


@pytest.fixture(autouse=True)
def patient(request: pytest.FixtureRequest) -> None:
    """A page waits for its analyses: machines are shared, and a page without a browser does not run by itself again."""
    if "app" in request.path.parts[-2:]:
        from app import context

        request.getfixturevalue("monkeypatch").setattr(context, "PATIENCE", 180.0)


@pytest.fixture(autouse=True)
def unlimited(request: pytest.FixtureRequest) -> None:
    """A page of the dashboard limits BLAS in its process for good; no test elsewhere is to rely on that."""
    settings = sys.modules.get("app.server_settings")
    if settings is not None and "app" not in request.path.parts[-2:]:
        settings._for_good.close()
        settings._one_thread.cache_clear()


@pytest.fixture(scope="session")
def judged() -> pd.DataFrame:
    """The verdicts on the paper's claims, which take seconds."""
    from bora_analysis.paper.claims import claims

    return claims()


@pytest.fixture
def judged_once(judged: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that print the verdicts take them from above."""
    monkeypatch.setattr("bora_analysis.paper.claims.claims", judged.copy)


#: Files that take long, the longest first. They begin first, or one worker would be left with them at the end.
LONG = (
    "test_dashboard_browser", "test_dashboard_app", "test_figures", "test_engines", "test_training", "test_methods",
    "test_card", "test_faults", "test_evaluation", "test_cli", "test_dashboard_work_browser", "test_width", "test_s3",
    "test_tutorial", "test_experiment", "test_encodings", "test_report", "test_hostile", "test_pages", "test_public",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
