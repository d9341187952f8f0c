import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SIDE, tiny_backbone
from torch import nn

from featcache.errors import FeatcacheError, RecipeError, UnknownName
from featcache.extraction.backbone import Backbone
from featcache.extraction.engine import Engine, open_engine
from featcache.extraction.preprocess import Preprocess
from featcache.extraction.registry import open_backbone

NAMES = ["resnet18", "mobilenet_v2", "squeezenet1_1", "densenet121"]


def pixels(n, side=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 3, side, side), dtype=np.uint8)


@pytest.fixture(scope="module", params=NAMES)
def network(request):
    backbone = open_backbone(request.param, weights="random:0", image_size=32)
    return Engine(batch_size=8).load(backbone)


def test_batch_statistics_do_not_move(network):
    module = network._forward
    before = copy.deepcopy(module.state_dict())
    network.run(pixels(8))
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(part.training for part in module.modules())
    assert not any(p.requires_grad for p in module.parameters())


def test_a_row_does_not_depend_on_its_company(network):
    """Order, neighbours and filler: bit for bit the same."""
    x = pixels(8)
    whole = network.run(x)
    order = np.random.default_rng(0).permutation(8)
    assert np.array_equal(network.run(x[order]), whole[order])
    assert np.array_equal(network.run(x[:3]), whole[:3])
    assert np.array_equal(network.run(x[5:6]), whole[5:6])
    others = pixels(8, seed=1)
    others[2] = x[4]
    assert np.array_equal(network.run(others)[2], whole[4])


def test_more_images_than_a_batch_are_run_in_batches(network):
    x = pixels(19)
    parts = [network.run(x[i : i + 8]) for i in (0, 8, 16)]
    assert np.array_equal(network.run(x), np.concatenate(parts))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_batch_size_changes_a_row_by_rounding_only(name, batch_size):
    backbone = open_backbone(name, weights="random:0", image_size=32)
    x = pixels(6)
    ours = Engine(batch_size=batch_size).load(backbone).run(x)
    theirs = Engine(batch_size=8).load(backbone).run(x)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_is_close(precision):
    backbone = open_backbone("resnet18", weights="random:0", image_size=32)
    x = pixels(4)
    exact = Engine(batch_size=4).load(backbone).run(x).astype(np.float64)
    rough = Engine(batch_size=4, precision=precision).load(backbone).run(x)
    assert rough.dtype == np.float32
    lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(rough, axis=1)
    assert ((exact * rough).sum(axis=1) / lengths).min() > 0.999


def test_gradients_are_not_recorded(network):
    assert isinstance(network.run(pixels(1)), np.ndarray)
    assert torch.is_grad_enabled()


def around(module, side=SIDE):
    return Backbone("mine", "tests", "w", "0", Preprocess(resize=side, crop=side), lambda: module)


class Wrong(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer(x)


def test_a_network_that_gives_no_matrix_is_refused():
    with pytest.raises(FeatcacheError, match="4 dimensions, not 2"):
        Engine(batch_size=2).load(around(nn.Identity()))


def test_a_network_that_can_not_take_the_size_says_so():
    with pytest.raises(FeatcacheError, match=r"mine can't run on images of 8 px.*\n.*--image-size"):
        Engine(batch_size=2).load(around(nn.Sequential(nn.Flatten(), nn.Linear(7, 2))))


def test_dim_is_found_by_trying():
    assert Engine(batch_size=2).load(tiny_backbone(dim=7)).dim == 7


def test_describe_records_what_made_it():
    facts = Engine().describe()
    assert facts["device"] == "cpu"
    assert facts["torch"] == torch.__version__


def test_open_engine_defaults(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert open_engine() == Engine("cpu", "auto", "auto", 32, at_once=8)
    assert open_engine("cpu", "bf16", "eager", 5) == Engine("cpu", "bf16", "eager", 5)


@pytest.mark.parametrize(("batch_size", "size"), [("auto", 8), (5, 5), (32, 32)])
def test_the_processor_takes_few_images_at_once_unless_told(batch_size, size, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    seen = []

    class Watch(nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return x.flatten(1)

    network = open_engine("cpu", "fp32", "eager", batch_size).load(around(Watch()))
    network.run(pixels(40))
    assert set(seen) == {size}


@pytest.mark.parametrize(
    ("count", "asked", "size"),
    [(120, 512, 120), (600, 512, 304), (3, 512, 3), (513, 512, 264), (10_000, 512, 504),
     (60_000, 128, 128), (9, 8, 8), (16, 8, 8), (1, 1, 1), (0, 32, 1), (12, 11, 8), (20, 32, 20)],
)  # fmt: skip
def test_batches_are_no_larger_than_the_data_set_fills(count, asked, size):
    engine = Engine(batch_size=asked, at_once=4).for_set(count)
    assert (engine.batch_size, engine.at_once) == (size, min(4, size))


@settings(max_examples=300, deadline=None)
@given(count=st.integers(1, 10**6), asked=st.integers(1, 2048))
def test_no_batch_is_filled_up_by_more_than_a_step(count, asked):
    size = Engine(batch_size=asked).for_set(count).batch_size
    batches = -(-count // size)
    assert 1 <= size <= asked
    assert batches * size - count < 8 * batches


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"device": "gpu"}, UnknownName, "unknown device 'gpu'"),
        ({"device": "cuda:x"}, UnknownName, "cuda:x"),
        ({"device": "cuda:7"}, RecipeError, "no device cuda:7"),
        ({"precision": "fp8"}, UnknownName, "unknown precision 'fp8'"),
        ({"engine": "fast"}, UnknownName, "unknown engine 'fast'"),
        ({"batch_size": 0}, RecipeError, "batch size 0"),
        ({"batch_size": "many"}, RecipeError, "'many'"),
    ],
)
def test_what_is_not_there_is_refused(options, kind, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(kind, match=message):
        open_engine(**options)


def test_a_gpu_that_is_there_and_not_used_is_said_aloud(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    open_engine("cpu")
    assert "there is a GPU, and it is not used" in caplog.text
