from pathlib import Path

import pytest
from tiny import tiny_backbone

from featcache.extraction.report import Outcome, Report


def report(**seconds):
    found = Report("data", 100)
    key = tiny_backbone().key()
    found.outcomes = [Outcome("tiny", Path("x.h5"), key, 100, 100)]
    found.seconds.update(seconds)
    return found


@pytest.mark.parametrize(
    ("seconds", "named", "help"),
    [
        ({"compute": 9.0, "wait": 1.0}, "computing", "a GPU"),
        ({"wait": 6.0, "decode": 11.0, "read": 1.0, "compute": 3.0}, "decoding", "--workers"),
        ({"wait": 6.0, "decode": 1.0, "read": 11.0, "compute": 3.0}, "reading", "faster disk"),
        ({"blocked": 8.0, "compute": 1.0}, "writing", "cache folder on a faster disk"),
        ({"prepare": 8.0, "compute": 1.0}, "preparing", "paid once"),
    ],
)
def test_the_bottleneck_is_named_with_what_would_help(seconds, named, help):
    made = report(total=10.0, **seconds)
    assert made.bottleneck == named
    assert f"most of it was {named}: " in made.time_line()
    assert help in made.time_line()


def test_the_line_counts_images_and_shares():
    line = report(total=10.0, compute=7.5, wait=2.0, read=1.5, decode=3.0, write=0.2).time_line()
    assert line.startswith("100 images in 10.0 s (10.0/s): preparing 0%, computing 75%, waiting")
    assert "waiting for images 20%" in line
    assert "read 1.5 s, decode 3.0 s, write 0.2 s" in line


def test_nothing_computed_is_said():
    empty = Report("data", 100)
    empty.seconds["total"] = 1.25
    assert empty.time_line() == "no forward pass, 1.2 s"


def test_with_workers_the_shares_are_of_their_time_together():
    made = report(total=10.0, prepare=2.0, compute=3.0, wait=1.0)
    made.workers = 2
    assert made.bottleneck == "waiting for workers"
    line = made.time_line()
    assert "preparing 20%, computing 15%, waiting for images 5%" in line
    assert "waiting for workers 60%" in line
    made.seconds["compute"] = 14.0
    assert made.bottleneck == "computing"
