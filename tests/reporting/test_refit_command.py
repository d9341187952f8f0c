"""The command that makes a run again parses, and says what was set."""

from __future__ import annotations

import shlex
from pathlib import Path

from click.testing import CliRunner

from featcache.cli.main import cli
from featcache.reporting.refit_command import redo_command
from featcache.reporting.schema import run_of

FACTS = {
    "data": "my photos", "backbones": ["resnet18", "vgg16@12345678"], "fusion": "concat",
    "head": "mlp", "split": "5 folds", "seed": 3, "keys": {"resnet18": "abcdef0123456789"},
    "settings": {"head.hidden": [64, 32], "mlp.lr": 0.01, "concat.scale": "l2"},
    "rows": "", "tested": 80, "fit_seconds": 1.0, "created": "",
}  # fmt: skip


def command(**changed: object) -> str:
    scores = {"mean": {}, "sd": {}, "interval": [0.0, 1.0]}
    return redo_command(run_of(Path("elsewhere"), {**FACTS, **changed}, scores))


def test_every_setting_is_named():
    words = shlex.split(command())
    assert words == [
        "featcache", "fit", "--name", "my photos", "--backbone", "resnet18@abcdef01,vgg16@12345678",
        "--fusion", "concat", "--head", "mlp", "--folds", "5", "--seed", "3",
        "--set", "head.hidden=[64, 32]", "--set", "mlp.lr=0.01", "--set", "concat.scale=l2",
    ]  # fmt: skip


def test_it_parses():
    done = CliRunner().invoke(cli, [*shlex.split(command())[1:], "--help"])
    assert done.exit_code == 0


def test_a_test_split_and_what_a_run_recorded_itself():
    assert "--test-split" in command(split="test split")
    assert command(command="featcache finetune") == "featcache finetune"
    more = {"balance": True, "view": ["hflip"], "repeats": 3, "split": "3 x 5 folds"}
    words = command(**more, settings={"select": "anova:64"})
    for part in ("--balance", "--view hflip", "--repeats 3", "--folds 5", "--select anova:64"):
        assert part in words
