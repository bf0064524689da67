"""What all tests share: a place for caches that is not the user's, one thread, and the road to the data beside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"

torch.set_num_threads(1)  # the tests run side by side


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAWARA_CACHE", str(tmp_path_factory.mktemp("kawara-cache")))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and reference answers; the test is skipped where there is none."""
    if not SHARED.is_dir():
        pytest.skip("needs the real data in ../shared")
    return SHARED
