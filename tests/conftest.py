"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# On a developer's machine the draws differ from run to run and find new cases; a check of a change
# (CI is set) draws the same ones every time, so that it fails only for what the change did.
settings.register_profile(
    "tandem",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tandem")


@pytest.fixture(scope="session")
def repo() -> Path:
    """The checkout's root."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data(repo: Path) -> Path:
    """Real traces beside the checkout; where they are absent, the test is skipped and says so."""
    path = repo.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("needs the publishers' traces in ../shared/data, which are not here")
    return path


@pytest.fixture(scope="session")
def shared_golden(repo: Path) -> Path:
    """Per-job results of published simulators; where they are absent, the test is skipped."""
    path = repo.parent / "shared" / "golden"
    if not path.is_dir():
        pytest.skip("needs published per-job results in ../shared/golden, which are not here")
    return path
