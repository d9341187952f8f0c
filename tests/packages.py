"""Packages that a machine may lack: tests that skip there, and what is run as if there."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from featcache.fitting.heads import HEADS

needs_xgboost = pytest.mark.skipif(find_spec("xgboost") is None, reason="xgboost is not installed")
needs_pymoo = pytest.mark.skipif(find_spec("pymoo") is None, reason="pymoo is not installed")
XGBOOST = pytest.param("xgboost", marks=needs_xgboost)
EACH_HEAD = [XGBOOST if name == "xgboost" else name for name in HEADS]

_TESTS = Path(__file__).parent


def environment_without(*packages: str) -> dict[str, str]:
    """The environment of a Python in which these packages are not installed."""
    paths = (_TESTS / "without", _TESTS.parent, os.environ.get("PYTHONPATH", ""))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(path) for path in paths if str(path)),
        "WITHOUT": ",".join(packages),
        "OMP_NUM_THREADS": "1",
    }


def hide(monkeypatch: pytest.MonkeyPatch, package: str, *importers: str) -> None:
    """In this process and test: the package can't be imported, and what imports it starts anew."""
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in importers:
        monkeypatch.delitem(sys.modules, name, raising=False)
