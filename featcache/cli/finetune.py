"""featcache finetune."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

import click

from featcache.cli.completion import fusions, heads
from featcache.cli.console import note
from featcache.cli.options import (
    DataOptions,
    NumberOrAuto,
    backbone_option,
    cache_option,
    data_options,
    one_of,
    reports_option,
    set_option,
    with_log,
)
from featcache.errors import counted
from featcache.finetuning.options import PROTOCOLS, SCHEDULES, Options

if TYPE_CHECKING:
    from featcache.reporting.schema import Run

F = TypeVar("F", bound=Callable[..., Any])


def _of_training(*names: str, help: str, **how: Any) -> Callable[[F], F]:
    """An option of the training; if it is not typed, the protocol says what it is."""
    field = names[-1].partition("/")[0].removeprefix("--").replace("-", "_")
    usual = getattr(Options(), field)
    if not isinstance(usual, bool):
        how.setdefault("type", type(usual))
    others = "".join(
        f"; {protocol}: {_word(changes[field])}"
        for protocol, changes in PROTOCOLS.items()
        if field in changes
    )
    help = f"{help}  [default: {_word(usual)}{others}]"
    return click.option(*names, default=None, help=help, **how)


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return "as --lr" if value is None else str(value)


_TRAINING = (
    _of_training("--epochs", metavar="N", help="Passes over the training images, the frozen ones included."),
    _of_training("--freeze-epochs", metavar="N", help="First epochs in which the backbones don't change."),
    _of_training("--freeze-bn/--no-freeze-bn", help="Keep the backbones' batch statistics after that too."),
    _of_training("-b", "--batch-size", metavar="N", help="Images in a step, over all processes."),
    _of_training("--accumulate", metavar="N", help="Cut each batch into N parts to save memory; its gradient stays whole."),
    _of_training("--lr", help="Learning rate of fusion and head."),
    _of_training("--backbone-lr", metavar="LR", help="Of the backbones."),
    _of_training("--layer-decay", metavar="SHARE", help="What each stage of a backbone has of the rate of the next."),
    _of_training("--weight-decay", help="How strongly weights are pulled to 0."),
    _of_training("--label-smoothing", help="Share of each label that is spread over the other classes."),
    _of_training("--schedule", type=click.Choice(SCHEDULES), help="How the learning rate falls."),
    _of_training("--warmup", metavar="EPOCHS", help="In which the learning rate rises from 0, the backbones' once they are let go."),
    _of_training("--ema", metavar="DECAY", help="Keep a moving average of the weights; 0: none."),
    _of_training("--mixup", metavar="ALPHA", help="0: none."),
    _of_training("--cutmix", metavar="ALPHA", help="0: none."),
    _of_training("--clip", metavar="NORM", help="Limit of the gradient's norm; 0: none."),
    _of_training("--patience", metavar="N", help="Stop after N epochs without a better validation accuracy; 0: never."),
    _of_training("--validation", metavar="SHARE", help="Of the training rows, where the data has no val split."),
    _of_training("--crop-scale", metavar="SHARE", help="Least share of the image that a random crop has."),
    _of_training("--flip/--no-flip", help="Mirror half of the training images."),
    _of_training("--jitter", metavar="SHARE", help="Change of brightness, contrast and saturation."),
)  # fmt: skip

_RUNNING = (
    click.option("--weights", default="auto", show_default=True, metavar="WHICH", help="What to begin with: auto, a tag, a file, random[:SEED], or a run folder."),
    click.option("--weights-dir", metavar="FOLDER", help="A folder of weight files, searched first. [default: $FEATCACHE_WEIGHTS]"),
    click.option("--image-size", type=click.IntRange(1), metavar="N", help="Side of the square that the network sees, in pixels; by default its own."),
    click.option("--device", default="auto", show_default=True, metavar="WHERE", help="auto, cpu, cuda or cuda:1."),
    click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), default="auto", show_default=True, help="Of the forward pass; auto is bf16 on a GPU that has it."),
    click.option("-j", "--workers", type=NumberOrAuto(), default="auto", show_default=True, help="Threads that decode."),
    click.option("--warm-start", is_flag=True, help="Run the frozen epochs on cached features, in seconds."),
    click.option("--folds", type=click.IntRange(2), metavar="K", help="Stratified K-fold. [default: the data's test split, else 5]"),
    click.option("--test-split/--no-test-split", default=None, help="Insist on the data's own split, or don't use it."),
    set_option,
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of folds, weights, order, augmentation and dropout."),
    click.option("--minutes", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True, help="Between checkpoints within an epoch."),
    click.option("--again", is_flag=True, help="Train even what was trained before."),
)  # fmt: skip


def _with(command: F) -> F:
    for option in reversed((*_TRAINING, *_RUNNING)):
        command = option(command)
    return command


@click.command()
@data_options
@backbone_option
@one_of("--fusion", fusions, "concat", "concat, attention, gated or hadamard.")
@one_of("--head", heads, "mlp", "mlp.")
@click.option("--singles", is_flag=True, help="Each backbone alone first, one after another.")
@click.option("--protocol", type=click.Choice(list(PROTOCOLS)), default="default", show_default=True, help="What the options of the training are that are not typed; study: as the published studies trained.")  # fmt: skip
@_with
@cache_option
@reports_option
@with_log
def finetune(
    images: DataOptions,
    backbone: list[str],
    singles: bool,
    protocol: str,
    cache: str,
    quiet: bool,
    **options: Any,
) -> None:
    """Train backbones, fusion and head end to end.

    On the folds, and in the table, of what is fitted on cached features. The tuned weights are
    kept in the run folder: `featcache extract --weights RUN` embeds with them.

    \b
    Example:
      featcache finetune --data photos --backbone resnet18
      featcache finetune --data photos --backbone resnet18,mobilenet_v2 --warm-start
      accelerate launch -m featcache finetune --data photos --backbone resnet18
    """
    from featcache.extraction.backbone import BackboneOptions
    from featcache.extraction.registry import check_specs
    from featcache.fitting.names import check_names
    from featcache.images.sources import check_source

    typed = {field.name: options.pop(field.name) for field in fields(Options)}
    trained = Options.of(protocol, **{name: one for name, one in typed.items() if one is not None})
    if not backbone:
        raise click.UsageError("Missing option '--backbone'. For instance --backbone resnet18")
    check_specs(backbone, BackboneOptions(options["weights"], options["weights_dir"]))
    check_names([options["fusion"]], [options["head"]], options["settings"])
    check_source(images.data or "digits")
    found = images.open(cache)
    note(found.describe())
    from featcache.finetuning.finetune import finetune as tune

    options["group"] = images.kind
    together = [backbone] if len(backbone) > 1 or not singles else []
    for names in [*([name] for name in backbone if singles), *together]:
        run = tune(
            found,
            backbone=names,
            options=trained,
            cache=cache,
            command=shlex.join(["featcache", *_words()]),
            **options,
        )
        if not int(os.environ.get("RANK", "0")):  # of several processes, the first one speaks
            _show(run)


def _show(run: Run) -> None:
    """What a fine-tuning came to, beside its rival on cached features, on stdout."""
    from featcache.reporting.break_even import verdicts
    from featcache.reporting.comparison import read_runs

    low, high = run.interval
    click.echo(
        f"{run.name}: accuracy {run.metric('accuracy'):.4f}, 95 % interval {low:.4f} … {high:.4f}, "
        f"{counted(run.tested, 'test image')}, {run.fit_seconds:.0f} s a fit"
    )
    others = [one for one in read_runs(run.folder.parent.parent) if one.folder != run.folder]
    for line in verdicts([run, *(one for one in others if one.data == run.data)])[:1]:
        click.echo(line)
    click.echo(run.folder)


def _words() -> list[str]:
    """The command line without what it takes to train again all the same."""
    typed = click.get_current_context().obj or sys.argv[1:]
    return [word for word in typed if word != "--again"]
