"""`docs/results.md` says what the run folders under `reports/studies/` hold."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from featcache.cli.main import cli

ROOT = Path(__file__).parent.parent
STUDIES = ROOT / "reports" / "studies"
COLUMNS = [
    "result", "data", "protocol", "accuracy", "95 % interval", "hardware", "seconds", "command",
    "record",
]  # fmt: skip
LARGEST, MOST = 150_000, 2_000_000  # bytes of a file, and of all


def _rows() -> list[dict[str, str]]:
    lines = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return [
        dict(zip(COLUMNS, row, strict=True))
        for row in cells
        if row != COLUMNS and not re.fullmatch("-+", row[0])
    ]


ROWS = _rows()
KEPT = [row for row in ROWS if row["record"] != "not kept"]


@pytest.mark.parametrize("row", KEPT, ids=lambda row: row["record"])
def test_a_row_says_what_its_run_folder_holds(row: dict[str, str]) -> None:
    folder = STUDIES / row["record"].strip("`")
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    low, high = metrics["interval"]
    fits = sum(fold["fit_seconds"] for fold in metrics["folds"])
    seconds = fits + sum(run.get("extraction_seconds", {}).values())
    assert {name: row[name] for name in ("accuracy", "95 % interval", "seconds")} == {
        "accuracy": f"{metrics['mean']['accuracy']:.4f}",
        "95 % interval": f"{low:.4f} … {high:.4f}",
        "seconds": f"{seconds:,.0f}",
    }
    assert f"{run['machine']['cores']} cores" in row["hardware"]
    assert ("LEAKY" in row["protocol"]) == run["leaky"]


@pytest.mark.parametrize("command", {row["command"]: None for row in ROWS})
def test_a_command_is_made_of_real_words(command: str) -> None:
    program, name, *words = shlex.split(command.strip("`"))
    known = cli.get_command(None, name)  # type: ignore[arg-type]
    assert program == "featcache"
    assert known is not None
    given = known.make_context(name, words).params
    if name == "run":
        recipe = (ROOT / given["recipe"]).read_text(encoding="utf-8")
        assert [network for network in given["replace"] if network not in recipe] == []


def test_every_run_folder_that_is_kept_is_named_and_small() -> None:
    there = {str(path.parent.relative_to(STUDIES)) for path in STUDIES.rglob("run.json")}
    assert there == {row["record"].strip("`") for row in KEPT}
    sizes = [path.stat().st_size for path in STUDIES.rglob("*") if path.is_file()]
    assert max(sizes) <= LARGEST
    assert sum(sizes) <= MOST
