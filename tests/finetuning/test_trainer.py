from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from small import coloured, small_backbone
from torch import nn
from torch.nn import functional

from featcache.errors import FeatcacheError
from featcache.finetuning import steps, trainer
from featcache.finetuning.data import Pixels
from featcache.finetuning.hardware import open_accelerator
from featcache.finetuning.network import build, make_head
from featcache.finetuning.options import Options
from featcache.finetuning.steps import infer
from featcache.finetuning.trainer import Trainer
from featcache.fitting.networks import seeded

PLAIN = {"crop_scale": 1.0, "flip": False, "jitter": 0.0}


def make_trainer(
    folder: Path | None = None, norm: bool = True, dropout: float = 0.2, workers: int = 1,
    side: int = 8, minutes: float = 10.0, **options: object,
) -> Trainer:  # fmt: skip
    accelerator = open_accelerator("cpu")
    images = coloured(60, side)
    backbone = small_backbone(norm=norm)
    pixels = Pixels(images, [backbone.preprocess], accelerator.device, workers)
    made = Options.of(
        "study", **{"epochs": 3, "freeze_epochs": 1, "batch_size": 8, "lr": 1e-2, **options}
    )
    head = make_head("concat", "mlp", {"head.hidden": [6], "head.dropout": dropout}, 0)
    with seeded(0):
        network, _ = build([backbone], head, 3, made.freeze_bn)
    codes = torch.from_numpy(np.unique(images.labels, return_inverse=True)[1])
    rows = np.arange(60)
    return Trainer(network, pixels, codes, rows[:40], rows[40:50], 3, made, accelerator, 0, folder,
                   minutes)  # fmt: skip


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.network.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_learns() -> None:
    trainer = make_trainer(epochs=12)
    progress = trainer.run()
    assert max(progress.history["val_accuracy"]) == 1.0
    assert progress.history["train_loss"][-1] < progress.history["train_loss"][0]
    assert len(progress.history["val_loss"]) == 12


def test_frozen_epochs_change_the_head_alone() -> None:
    trainer = make_trainer(epochs=2, freeze_epochs=2)
    before = state(trainer)
    trainer.run()
    after = state(trainer)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed
    assert all(name.startswith("joint.") for name in changed)


def test_after_that_weights_and_statistics_change() -> None:
    trainer = make_trainer(epochs=2, freeze_epochs=1)
    trainer.validation_rows = np.arange(0)  # so that the last epoch is kept
    before = state(trainer)
    trainer.run()
    for name in ("backbones.0.one.0.weight", "backbones.0.one.1.running_mean"):
        assert not torch.equal(state(trainer)[name], before[name]), name


def test_parts_of_a_batch_have_the_gradient_of_the_whole() -> None:
    weights = []
    for parts in (1, 4):
        trainer = make_trainer(norm=False, dropout=0.0, accumulate=parts, epochs=1, freeze_epochs=0,
                               **PLAIN)  # fmt: skip
        trainer.run()
        weights.append(state(trainer))
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=1e-5, rtol=1e-4)


def test_one_step_is_adamw_on_the_smoothed_cross_entropy() -> None:
    trainer = make_trainer(norm=False, dropout=0.0, batch_size=40, epochs=1, freeze_epochs=0,
                           weight_decay=0.1, **PLAIN)  # fmt: skip
    oracle = copy.deepcopy(trainer.network)
    x = next(trainer.pixels.eval_batches(trainer.train_rows))[0]
    y = trainer.codes[:40]
    optimiser = torch.optim.AdamW(oracle.parameters(), lr=1e-2, weight_decay=0.1)
    loss = functional.cross_entropy(oracle(x), y, label_smoothing=0.1)
    loss.backward()
    optimiser.step()
    progress = trainer.run()
    assert progress.history["train_loss"] == pytest.approx([loss.item()], rel=1e-5)
    for name, value in oracle.state_dict().items():
        torch.testing.assert_close(state(trainer)[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("side", [8, 12])  # in one batch, and by threads
def test_the_same_seed_gives_the_same_bits_whatever_the_workers(side: int) -> None:
    runs = []
    for workers in (1, 3):
        trainer = make_trainer(workers=workers, side=side, mixup=0.2, epochs=2)
        runs.append((trainer.run().history, state(trainer)))
    assert runs[0][0] == runs[1][0]
    assert same(runs[0][1], runs[1][1])


class Killed(BaseException):
    pass


def run_and_kill(trainer: Trainer, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run it for so many steps."""
    taken, step = 0, steps.Stepper.step

    def counted(self: steps.Stepper, *batch: object) -> torch.Tensor:
        nonlocal taken
        if taken == after:
            raise Killed
        taken += 1
        return step(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(steps.Stepper, "step", counted)
        with pytest.raises(Killed):
            trainer.run()


@pytest.mark.parametrize("after", [2, 5, 7, 13])
@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "cutmix": 1.0, "schedule": "cosine"}])
def test_a_killed_training_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, options: dict
) -> None:
    whole = make_trainer(**options)
    whole.run()
    # A checkpoint after every step: a step is what a kill costs at most.
    run_and_kill(make_trainer(tmp_path, minutes=1e-9, **options), after, monkeypatch)
    again = make_trainer(tmp_path, **options)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert again.resume()
        again.run()
    assert again.progress.history == whole.progress.history
    assert again.progress.best == whole.progress.best
    assert same(state(again), state(whole))
    done = make_trainer(tmp_path, **options)
    done.resume()
    done.run()
    assert same(state(done), state(whole))


def test_what_a_card_has_begun_goes_on_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_trainer()
    whole.run()
    run_and_kill(make_trainer(tmp_path, minutes=1e-9), 7, monkeypatch)
    found = trainer.load_checkpoint(tmp_path)
    assert found is not None
    for group in found.optimiser["param_groups"]:
        assert not group["fused"]
        group.update(fused=True, capturable=True)
    trainer.save_checkpoint(tmp_path, found)
    again = make_trainer(tmp_path)
    again.resume()
    again.run()
    assert same(state(again), state(whole))


@pytest.mark.parametrize(("minutes", "written"), [(10.0, 1), (1e-9, 2 * 5 + 2 + 1)])
def test_short_epochs_are_not_each_written(
    minutes: float, written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, save = [], trainer.save_checkpoint

    def spy(folder: Path, progress: trainer.Progress) -> None:
        saved.append(progress.epoch)
        save(folder, progress)

    monkeypatch.setattr(trainer, "save_checkpoint", spy)
    make_trainer(tmp_path, minutes=minutes, epochs=2).run()
    assert len(saved) == written


def test_a_damaged_checkpoint_says_what_to_delete(tmp_path: Path) -> None:
    (tmp_path / trainer.FILE).write_bytes(b"no zip")
    with pytest.raises(FeatcacheError, match="Delete"):
        make_trainer(tmp_path).resume()
    torch.save({"epoch": Path("x")}, tmp_path / trainer.FILE)  # torch would advise to trust it
    with pytest.raises(FeatcacheError, match="Delete") as caught:
        make_trainer(tmp_path).resume()
    assert "weights_only" not in str(caught.value)
    assert "option" not in str(caught.value)


def test_the_best_epoch_by_validation_is_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(epochs=4, freeze_epochs=0)
    accuracy, seen = [0.4, 0.9, 0.9, 0.5], []

    def validate(self: Trainer, logits: object) -> tuple[float, float]:
        seen.append(state(self))
        return 1.0 + len(seen), accuracy[len(seen) - 1]  # of equals the lower loss

    monkeypatch.setattr(Trainer, "_validate", validate)
    progress = trainer.run()
    assert progress.best == [0.9, 3.0, 1.0]
    assert same(state(trainer), seen[1])


def test_patience_stops_early(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracy = iter([0.4, 0.9, 0.8, 0.8, 0.8, 0.8])
    monkeypatch.setattr(Trainer, "_validate", lambda self, logits: (1.0, next(accuracy)))
    progress = make_trainer(epochs=6, freeze_epochs=0, patience=2).run()
    assert progress.history["val_accuracy"] == [0.4, 0.9, 0.8, 0.8]


def test_the_average_of_the_weights_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(epochs=1, freeze_epochs=0, ema=0.8)
    path = []
    step = steps.Stepper.step

    def noted(self: steps.Stepper, *batch: object) -> torch.Tensor:
        loss = step(self, *batch)
        path.append(state(trainer)["joint.layers.0.weight"])
        return loss

    monkeypatch.setattr(steps.Stepper, "step", noted)
    trainer.run()
    mean = path[0]
    for weights in path[1:]:
        mean = 0.8 * mean + 0.2 * weights
    assert len(path) == 5
    torch.testing.assert_close(state(trainer)["joint.layers.0.weight"], mean)


def test_a_loss_that_is_no_number_stops_with_where_and_what_to_try() -> None:
    trainer = make_trainer(epochs=2, freeze_epochs=0)
    nn.init.constant_(trainer.network.joint.layers[0].weight, math.nan)
    with pytest.raises(FeatcacheError, match=r"nan by step 1 of epoch 1 \(lr 0.01\)") as caught:
        trainer.run()
    assert "--lr" in caught.value.remedy


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_cuts_the_batch_and_changes_nothing_else(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"norm": False, "dropout": 0.0, "epochs": 2, "freeze_epochs": 0, **PLAIN}
    whole = make_trainer(**options)
    whole.run()
    trainer = make_trainer(**options)
    forward = trainer.network.forward

    def small_only(*pixels: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and len(pixels[0]) > 3:
            raise error
        return forward(*pixels)

    monkeypatch.setattr(trainer.network, "forward", small_only)
    progress = trainer.run()
    assert progress.parts == 4  # 8 images: 8, 4, 2
    assert sum("out of memory" in record.message for record in caplog.records) == 2
    for name, value in state(whole).items():
        torch.testing.assert_close(state(trainer)[name], value, atol=1e-5, rtol=1e-4)


def test_out_of_memory_with_one_image_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer()

    def never(*pixels: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.network, "forward", never)
    with pytest.raises(FeatcacheError, match="one image") as caught:
        trainer.run()
    assert "--image-size" in caught.value.remedy


def test_clipping_bounds_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(epochs=1, freeze_epochs=0, clip=1e-3)
    norms = []
    step = torch.optim.AdamW.step

    def noted(self: torch.optim.AdamW, *args: object, **kwargs: object) -> object:
        gradients = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        norms.append(torch.stack([one.norm() for one in gradients]).norm().item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    trainer.run()
    assert norms
    assert max(norms) <= 1.001e-3


def test_frozen_vectors_are_those_that_extraction_gives() -> None:
    from featcache.extraction.engine import open_engine

    images, backbone = coloured(20, 12), small_backbone()
    accelerator = open_accelerator("cpu")
    pixels = Pixels(images, [backbone.preprocess], accelerator.device)
    network, _ = build([backbone], make_head("concat", "mlp", {}, 0), 3)
    with torch.inference_mode():
        batch = next(pixels.eval_batches(np.arange(20)))
        found = network.eval().embed(*batch)
    engine = open_engine("cpu", "fp32", "eager").load(backbone)
    from featcache.images.decode import decode

    cut = np.stack([backbone.preprocess.cut(decode(images.read(row))) for row in range(20)])
    np.testing.assert_allclose(found.numpy(), engine.run(cut), atol=1e-5)
    assert infer(network, pixels, np.arange(20), accelerator).shape == (20, 3)
