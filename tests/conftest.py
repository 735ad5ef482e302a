"""Check array shapes and argument types of our packages while tests run; provide what several test files share."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

from jaxtyping import install_import_hook

if importlib.util.find_spec("triton"):
    import models.triton_kernels  # noqa: F401 (before the hook, inside of whose wrappers Triton finds no names)

# Before the first import of any of them; training runs without the hook and does not pay for it.
install_import_hook(["data_pipeline", "models", "trainers"], "beartype.beartype")

import pytest


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout that the tests belong to."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def dataset() -> Path:
    """A real data set of a few dozen planets, built once and kept in the cache folder (EXOBIOME_CACHE)."""
    from data_fixture import built_dataset

    return built_dataset()
