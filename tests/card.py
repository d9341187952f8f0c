"""The card that the tests marked `gpu` run on, `python -m pytest -m gpu`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


def card() -> str:
    """What `--device` calls it; without one the test is skipped.

    With CARD=cpu the processor stands in for it, to try the tests themselves.
    """
    from featcache.extraction.engine import choose_device

    if (name := os.environ.get("CARD")) is not None:
        return choose_device(name)
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return choose_device("cuda")


@contextmanager
def short_of_memory(device: str, left: int) -> Iterator[None]:
    """Inside, this process may take so many bytes more of the card; nothing changes on a cpu."""
    import torch

    if device == "cpu":
        yield
        return
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(device).total_memory
    allowed = torch.cuda.memory_reserved(device) + left
    torch.cuda.set_per_process_memory_fraction(allowed / whole, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
