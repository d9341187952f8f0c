import numpy as np
import pytest
import torch
from tiny import SIDE, TinyNet, tiny_backbone

from featcache.errors import FeatcacheError
from featcache.extraction import network
from featcache.extraction.engine import Engine, open_engine
from featcache.extraction.loader import cosine
from featcache.extraction.network import has_compiler
from featcache.extraction.registry import open_backbone


def pixels(n, side=SIDE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 3, side, side), dtype=np.uint8)


CPU = "DefaultCPUAllocator: can't allocate memory: 9 TB"


def short_of_memory(most, words=CPU):
    """A backbone whose network takes at most so many images at once."""
    backbone = tiny_backbone()

    class Net(TinyNet):
        def forward(self, x):
            if len(x) > most:
                raise RuntimeError(words)
            return super().forward(x)

    backbone.__dict__["build"] = lambda: Net(5, 0, None)
    return backbone


@pytest.mark.parametrize(
    "words",
    [
        CPU,
        "CUDA out of memory. Tried to allocate 9 TiB.",
        "GET was unable to find an engine to execute this computation",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_short_of_memory_it_goes_on_with_smaller_batches_and_loses_nothing(caplog, words):
    x = pixels(21)
    wanted = Engine(batch_size=16).load(tiny_backbone()).run(x)
    found = Engine(batch_size=16).load(short_of_memory(5, words)).run(x)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert "going on with batches of 4" in caplog.text


def test_memory_for_not_one_image_is_an_error_with_a_remedy():
    with pytest.raises(FeatcacheError, match=r"can't run on images of 8 px.*\n.*--batch-size"):
        Engine(batch_size=4).load(short_of_memory(0))


def test_another_error_does_not_shrink_the_batch(caplog):
    class Net(TinyNet):
        def forward(self, x):
            raise RuntimeError("shapes cannot be multiplied")

    backbone = tiny_backbone()
    backbone.__dict__["build"] = lambda: Net(5, 0, None)
    with pytest.raises(FeatcacheError, match="shapes cannot be multiplied"):
        Engine(batch_size=4).load(backbone)
    assert "batches of" not in caplog.text


def test_an_engine_that_fails_is_replaced_with_a_warning(monkeypatch, caplog):
    def broken(*_):
        raise ValueError("no such operator\nand a page of text")

    monkeypatch.setitem(network.FORWARDS, "compile", broken)
    loaded = Engine(kind="compile", batch_size=4).load(tiny_backbone())
    assert loaded.kind == "eager"
    assert "--engine compile failed (no such operator); running eager" in caplog.text
    wanted = Engine(batch_size=4).load(tiny_backbone()).run(pixels(4))
    assert np.array_equal(loaded.run(pixels(4)), wanted)


def test_start_gives_what_run_gives():
    loaded = Engine(batch_size=4).load(tiny_backbone())
    assert np.array_equal(loaded.start(pixels(6))(), loaded.run(pixels(6)))


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")
@pytest.mark.filterwarnings("default")
def test_compiled_it_is_the_same_network():
    backbone = open_backbone("squeezenet1_1", weights="random:0", image_size=64)
    x = pixels(5, 64)
    wanted = Engine(batch_size=4).load(backbone).run(x)
    compiled = Engine(batch_size=4, kind="compile").load(backbone)
    assert compiled.kind == "compile"
    np.testing.assert_allclose(compiled.run(x), wanted, rtol=1e-3, atol=1e-5)
    assert np.array_equal(compiled.run(x[:2]), compiled.run(x)[:2])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.filterwarnings("default")
def test_in_openvino_it_is_the_same_network(precision):
    pytest.importorskip("openvino")
    backbone = open_backbone("squeezenet1_1", weights="random:0", image_size=64)
    x = pixels(5, 64)
    wanted = Engine(batch_size=4).load(backbone).run(x)
    found = open_engine("cpu", precision, "openvino", 4).load(backbone)
    assert found.kind == "openvino"
    assert cosine(found.run(x), wanted).min() > (0.999999 if precision == "fp32" else 0.999)
    assert np.array_equal(found.run(x[2:3]), found.run(x)[2:3])


def test_auto_chooses_by_precision_and_number(monkeypatch):
    from featcache.extraction import engine

    monkeypatch.setattr(engine, "has_openvino", lambda: True)
    fp32, bf16 = (Engine(precision=p, kind="auto") for p in ("fp32", "bf16"))
    assert fp32.for_images(10) == "eager"
    assert fp32.for_images(100_000) == "openvino"
    assert bf16.for_images(100_000) == "eager"
    assert Engine(kind="compile").for_images(10) == "compile"
    assert fp32.for_images(100_000, begun="eager") == "eager", "a file goes on as it began"
    assert fp32.for_images(10, begun="openvino") == "openvino"
    monkeypatch.setattr(engine, "has_openvino", lambda: False)
    assert fp32.for_images(100_000, begun="openvino") == "eager"


def test_the_processor_alone_takes_openvino(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(FeatcacheError, match="openvino runs on the processor"):
        open_engine("cuda", engine="openvino")


def test_what_was_captured_for_a_batch_size_is_let_go_when_memory_runs_out():
    ready = Engine(batch_size=4).load(tiny_backbone())
    wanted = ready.run(pixels(6))

    def replay(batch):
        raise RuntimeError(CPU if len(batch) == 4 else "another size than was captured")

    ready._forward = replay
    np.testing.assert_allclose(ready.run(pixels(6)), wanted, rtol=1e-6)
