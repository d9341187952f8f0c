from __future__ import annotations

import pytest
import torch

from featcache.errors import RecipeError, UnknownName
from featcache.finetuning.hardware import Meter, gpu_joules, open_accelerator, precision_of

CPU = torch.device("cpu")


def test_precision_is_fp32_on_a_processor_and_may_change_within_a_process() -> None:
    assert precision_of(open_accelerator("cpu")) == "fp32"
    assert precision_of(open_accelerator("cpu", "bf16")) == "bf16"
    assert precision_of(open_accelerator("cpu", "fp32")) == "fp32"


@pytest.mark.parametrize("given", [("tpu", "auto"), ("cuda:x", "auto"), ("cpu", "int8")])
def test_unknown_names(given: tuple[str, str]) -> None:
    with pytest.raises(UnknownName):
        open_accelerator(*given)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="no device cuda: 0 CUDA devices") as caught:
        open_accelerator("cuda")
    assert "--device cpu" in caught.value.remedy


def test_a_processor_tells_no_energy() -> None:
    meter = Meter(CPU)
    assert gpu_joules(CPU) is None
    assert meter.joules is None
    assert meter.seconds >= 0
