"""Kill and resume: nothing is lost, nothing is torn, the result is the same to the bit."""

from __future__ import annotations

import pytest
from crash_harness import NAMES, Figures, crash


def _holds(figures: Figures, kills: int) -> None:
    assert figures.kills == kills
    assert figures.resumes > 0, "no kill hit a run with rows done: the test tests nothing"
    assert figures.rows_lost == 0
    assert figures.redone_most <= 2  # one being computed, one being written
    assert figures.identical == figures.rounds * len(NAMES)


def test_killed_at_random_moments_it_loses_nothing() -> None:
    _holds(crash(kills=25, seed=0), 25)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_hundreds_of_times_it_loses_nothing(seed: int) -> None:
    _holds(crash(kills=150, seed=seed), 150)
