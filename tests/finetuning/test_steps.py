"""Steps as a graph: on the processor, with a stand-in for CUDA's that repeats each kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from featcache.finetuning import data, hardware, steps, trainer

from .test_trainer import Trainer, make_trainer, run_and_kill, same, state

ALL = {"ema": 0.9, "schedule": "cosine", "warmup": 0.5, "clip": 0.5, "layer_decay": 0.5}


class Graph(TorchDispatchMode):
    """Kernels as they were called: on the same memory, with the same numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, kernel, types, args=(), kwargs=None):
        if kernel is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("the processor waits for a number")
        found = kernel(*args, **(kwargs or {}))
        self.kernels.append((kernel, args, kwargs or {}, found))
        return found

    @torch.no_grad()
    def replay(self) -> None:
        for kernel, args, kwargs, found in self.kernels:
            new = kernel(*args, **kwargs)
            for place, value in zip(tree_leaves(found), tree_leaves(new), strict=True):
                if isinstance(place, Tensor) and _memory(place) != _memory(value):
                    place.copy_(value)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Card:
    """Stands in for what `hardware` does on CUDA."""

    def __init__(self) -> None:
        self.graphs: list[Graph] = []
        self.replays = 0

    def capture(
        self, work: Callable[..., Tensor], inputs: Sequence[Tensor]
    ) -> Callable[..., Tensor]:
        fixed = [tensor.clone() for tensor in inputs]
        graph = Graph()
        self.graphs.append(graph)
        with graph:
            result = work(*fixed)
        done = True  # unlike CUDA's capture, this one was a step

        def replay(*new: Tensor) -> Tensor:
            nonlocal done
            for place, tensor in zip(fixed, new, strict=True):
                place.copy_(tensor)
            if not done:
                graph.replay()
            done = False
            self.replays += 1
            return result.clone()

        return replay


def _use(kernels: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "optimiser_kernels", lambda accelerator: kernels)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card()
    monkeypatch.setattr(steps, "capture", card.capture)
    monkeypatch.setattr(steps, "may_capture", lambda accelerator: True)
    monkeypatch.setattr(steps, "_RATE", torch.float64)
    _use({"fused": True}, monkeypatch)
    return card


def plain(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Trainer:
    """A training without graphs, by the same optimiser."""
    with monkeypatch.context() as patch:
        patch.setattr(steps, "may_capture", lambda accelerator: False)
        whole = make_trainer(**options)
        whole.run()
    return whole


@pytest.mark.parametrize(
    "options",
    [
        {},
        ALL,
        {"mixup": 0.4, "cutmix": 1.0, "ema": 0.9},
        {"side": 12, "schedule": "cosine"},  # cropped by threads
        {"freeze_bn": True, "freeze_epochs": 2},
    ],
)
def test_graphs_train_to_the_same_bits(
    options: dict[str, Any], card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"batch_size": 6, "epochs": 4, **options}  # six batches, and one of four images
    whole = plain(monkeypatch, **options)
    assert not card.graphs
    graphed = make_trainer(**options)
    graphed.run()
    assert len(card.graphs) == 2  # frozen and not
    assert card.replays == 4 * 6 - 2 * 3
    assert graphed.progress.history == whole.progress.history
    assert same(state(graphed), state(whole))
    if whole.average is not None:
        assert same(graphed.average.state_dict(), whole.average.state_dict())


@pytest.mark.parametrize("after", [5, 9, 13])
def test_killed_between_replays_and_resumed(
    after: int, card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = plain(monkeypatch, **ALL)
    run_and_kill(make_trainer(tmp_path, minutes=1e-9, **ALL), after, monkeypatch)
    again = make_trainer(tmp_path, **ALL)
    again.resume()
    again.run()
    assert card.replays
    assert again.progress.history == whole.progress.history
    assert same(state(again), state(whole))


def test_what_is_no_graph_goes_on_as_it_was(
    card: Card, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = plain(monkeypatch, **ALL)

    def capture(work: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
        for group in tried.optimiser.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.full_like(parameter, torch.nan)  # of no memory any more
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(steps, "capture", capture)
    tried = make_trainer(**ALL)
    tried.run()
    assert [one.message for one in caplog.records if one.levelname == "WARNING"] == [
        "steps are no CUDA graph, and slower: operation not permitted when stream is capturing"
    ]
    assert same(state(tried), state(whole))


def test_parts_of_a_batch_are_no_graph(card: Card) -> None:
    make_trainer(accumulate=2).run()
    assert not card.graphs


def test_a_graphs_memory_is_given_back_before_a_batch_is_cut(
    card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"batch_size": 6, "epochs": 2}
    whole = plain(monkeypatch, **options)
    short = make_trainer(**options)
    forward = short.network.forward

    def beside_a_graph(*pixels: Tensor) -> Tensor:
        if torch.is_grad_enabled() and len(pixels[0]) == 4 and short._stepper._replay is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*pixels)

    monkeypatch.setattr(short.network, "forward", beside_a_graph)
    assert short.run().parts == 1
    assert len(card.graphs) == 1
    assert same(state(short), state(whole))


@pytest.mark.parametrize(
    ("device", "processes", "scaler", "expected"),
    [
        ("cuda", 1, None, True),
        ("cpu", 1, None, False),
        ("cuda", 2, None, False),
        ("cuda", 1, object(), False),
    ],
)
def test_what_may_be_a_graph(device: str, processes: int, scaler: object, expected: bool) -> None:
    accelerator = SimpleNamespace(
        device=torch.device(device), num_processes=processes, scaler=scaler
    )
    assert hardware.may_capture(accelerator) == expected
    kernels = hardware.optimiser_kernels(accelerator)
    assert kernels["capturable"] == (device == "cuda" and scaler is None)


def test_a_forward_pass_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = make_trainer()
    whole, forward = trained.logits(trained.train_rows), trained.network.forward

    def small_only(*pixels: Tensor) -> Tensor:
        if len(pixels[0]) > 11:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*pixels)

    monkeypatch.setattr(trained.network, "forward", small_only)
    torch.testing.assert_close(trained.logits(trained.train_rows), whole)


def test_memory_is_taken_from_validation_before_a_batch_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = make_trainer()
    whole.run()
    monkeypatch.setattr(data, "_room", lambda device: 1 << 20)
    short = make_trainer()
    forward = short.network.forward

    def beside_pixels(*pixels: Tensor) -> Tensor:
        if torch.is_grad_enabled() and short.pixels._lying is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*pixels)

    monkeypatch.setattr(short.network, "forward", beside_pixels)
    assert short.run().parts == 1
    assert not short.pixels.forget()
    assert short.progress.history["val_loss"] == whole.progress.history["val_loss"]
