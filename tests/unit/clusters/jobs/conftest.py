"""Where these tests submit to."""

import pytest

from clusters.jobs import access


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for; no cluster of the shell is meant."""
    monkeypatch.setattr(access, "_POLL_S", 0.01)
    monkeypatch.setattr(access, "READY_S", 5.0)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
