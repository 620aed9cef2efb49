"""What all tests of the dashboard have in common."""

import pytest

from app import context


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page waits for its analyses: machines are shared, and a page without a browser does not run by itself again."""
    monkeypatch.setattr(context, "PATIENCE", 180.0)
