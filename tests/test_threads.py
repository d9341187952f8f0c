"""The tests' own set-up: two workers on two cores, and a thread each."""

from __future__ import annotations

import subprocess
import sys

import torch
from threadpoolctl import threadpool_info

_THREADS = "import torch; print(torch.get_num_threads())"


def test_every_library_has_one_thread() -> None:
    assert torch.get_num_threads() == 1
    # NumPy's, which are counted when it is imported; OpenMP's may be changed by whoever ran before.
    assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} <= {1}


def test_a_process_that_a_test_starts_has_one_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _THREADS], capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"
