"""The table of stage 1 on a GPU, tried on the processor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"


def table(*options: str) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--device", "cpu", "--seconds", "0.01", *options],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "A trial on the processor" in done.stdout
    assert "### Targets" in done.stdout
    return done.stdout


def test_a_network_that_fails_is_a_row_and_others_are_measured():
    found = table("--only", "memory", "--networks", "no_such,squeezenet1_1")
    assert "| no_such | failed: UnknownName" in found
    row = next(line for line in found.splitlines() if line.startswith("| squeezenet1_1 |"))
    assert len(row.split("|")) == 9
    assert found.count("| not measured |") == 16


def test_fine_tuning_beside_a_loop_by_hand():
    found = table("--only", "finetuning", "--networks", "no_such,squeezenet1_1", "--images", "20")
    assert "| no_such | failed: " in found
    row = next(line for line in found.splitlines() if line.startswith("| squeezenet1_1 |"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert len(cells) == 7
    assert cells[3] == "no"
    assert cells[5].endswith("%")


@pytest.mark.slow
def test_every_section_on_a_few_images(tmp_path):
    found = table("--images", "48", "--networks", "resnet18,squeezenet1_1", "--folder",
                  str(tmp_path))  # fmt: skip
    assert "failed" not in found
    assert found.count("| featcache / plain loop |") == 3
    assert "| 48 | 3 |" in found  # killed three times
    assert "| rows that differ after kills | 0 | ≤ 0 | met |" in found
    assert len([*tmp_path.glob("png48/*/*.png")]) == 48


def test_no_section_of_that_name():
    done = subprocess.run([sys.executable, str(SCRIPT), "--only", "x"], capture_output=True)
    assert done.returncode == 2
    assert b"there are files, together, memory, fidelity, kill, finetuning" in done.stderr
