"""What tests of commands that run as processes need."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture
def _children_hear_ctrl_c() -> Iterator[None]:
    """A shell that runs the tests in the background has SIGINT ignored, by their children too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
