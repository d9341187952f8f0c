"""In whatever order backbones are named, they are the same candidate."""

from __future__ import annotations

from pathlib import Path

import pytest
from stored import blobs, store

from featcache.cli.main import run


def test_the_order_is_of_no_account_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    store(Path("cache"), *blobs(60), blocks=(6, 4))
    fit = ["fit", "--head", "logreg", "--folds", "2", "--backbone"]
    for order in ("net1,net0", "net0,net1"):
        assert run([*fit, order]) == 0
    assert run(["compare", "--head", "logreg", "--folds", "2"]) == 0
    fused = [path for path in Path("reports/toy").iterdir() if "+" in path.name]
    assert [path.name.rsplit(".", 1)[0] for path in fused] == ["net0+net1.concat.logreg"]
    capsys.readouterr()
    for name in ("net1+net0.concat.logreg", "net0+net1", str(fused[0])):
        assert run(["report", name]) == 0
        assert str(fused[0] / "report.html") in capsys.readouterr().err
