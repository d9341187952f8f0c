import json

import pytest
from click.testing import CliRunner
from tiny import tiny_backbone, tiny_images

from featcache import extract
from featcache.cli.main import cli


@pytest.fixture
def filled(cache):
    for name, dim in (("one", 5), ("two", 4)):
        extract(tiny_images(60), backbone=tiny_backbone(name, dim), cache=cache)
    return cache


def call(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def test_rank(filled, tmp_path):
    done = call("rank", "--cache", filled, "--reports", tmp_path / "r")
    assert done.exit_code == 0, done.output
    assert "LogME" in done.output
    found = json.loads((tmp_path / "r" / "tiny" / "ranking.json").read_text())
    assert {one["name"] for one in found["backbones"]} == {"one", "two"}
    assert found["cka"]["values"][0][0] == pytest.approx(1)
    lines = (tmp_path / "r" / "tiny" / "ranking.csv").read_text().splitlines()
    assert lines[0].startswith("backbone,width,logme,knn,cka_")
    assert len(lines) == 3


def test_select_tune_and_ablate(filled, tmp_path):
    done = call("compare", "--cache", filled, "--reports", tmp_path / "r", "--head", "logreg",
                "--folds", 2, "--select", "anova:3", "--tune", 2, "--ablate")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "logreg (anova:3, best of 2)" in done.output
    assert "what each backbone adds" in done.output
    assert (tmp_path / "r" / "tiny" / "ablation.csv").is_file()
    runs = list((tmp_path / "r" / "tiny").glob("*/run.json"))
    assert len(runs) == 3
    facts = json.loads(runs[0].read_text())
    assert set(facts["extraction_seconds"]) == set(facts["backbones"])


def test_a_misspelt_selection(filled, tmp_path):
    from featcache.cli.main import run

    words = ["compare", "--cache", str(filled), "--reports", str(tmp_path), "--select", "anovva"]
    assert run(words) == 2
