from __future__ import annotations

import math

import pytest

from featcache.errors import RecipeError, UnknownName
from featcache.finetuning.options import Options


def test_the_study_to_the_letter() -> None:
    plain = Options.of("study").plain()
    study = {
        "lr": 3e-4, "weight_decay": 1e-4, "label_smoothing": 0.1, "batch_size": 64, "epochs": 8,
        "freeze_epochs": 3, "freeze_bn": False, "schedule": "constant",
        "backbone_lr": None, "warmup": 0.0, "layer_decay": 1.0, "ema": 0.0, "clip": 0.0,
    }  # fmt: skip
    assert {name: plain[name] for name in study} == study


def test_options_are_named_by_the_nearest_protocol() -> None:
    assert Options().named() == {}
    assert Options(lr=0.1).named() == {"lr": 0.1}
    assert Options.of("study", ema=0.9).named() == {"protocol": "study", "ema": 0.9}


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0}, {"epochs": True}, {"batch_size": 1.5}, {"lr": 0.0}, {"lr": math.nan},
        {"lr": "fast"}, {"label_smoothing": 1.0}, {"ema": 1.0}, {"jitter": -0.1},
        {"crop_scale": 0.0}, {"layer_decay": 1.1}, {"epochs": 2, "freeze_epochs": 3},
        {"batch_size": 2, "accumulate": 4},
    ],
)  # fmt: skip
def test_out_of_range_is_refused(wrong: dict) -> None:
    with pytest.raises(RecipeError):
        Options(**wrong)


def test_unknown_schedule() -> None:
    with pytest.raises(UnknownName, match="cosin"):
        Options(schedule="cosin")


def test_constant_rate_with_warm_up() -> None:
    options = Options.of("study", warmup=2.0)
    assert [options.factor(step, 2) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_cosine_falls_to_zero_after_the_warm_up() -> None:
    options = Options(schedule="cosine", epochs=4, warmup=1.0, freeze_epochs=0)
    factors = [options.factor(step, 10) for step in range(40)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    expected = [(1 + math.cos(math.pi * i / 30)) / 2 for i in range(30)]
    assert factors[10:] == pytest.approx(expected)


def test_backbones_warm_up_when_they_are_let_go() -> None:
    options = Options(warmup=1.0, freeze_epochs=2, schedule="constant")
    factors = [options.backbone_factor(step, 4) for step in range(8, 16)]
    assert factors == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    never_frozen = Options(warmup=1.0, freeze_epochs=0, schedule="constant")
    assert [never_frozen.backbone_factor(step, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
