"""What every test shares: no network, a cache of its own unless it is marked ``real``."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(autouse=True)
def own_cache(request, tmp_path, monkeypatch):
    """Keep the user's cache out of tests that do not ask for the real model."""
    if not request.node.get_closest_marker("real"):
        monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def shared() -> Path:
    """The folder of real data beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED}")
    return SHARED
