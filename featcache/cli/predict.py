"""featcache predict."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from featcache.atomic import replacing
from featcache.cli.completion import completer, nothing, runs
from featcache.cli.console import note, progress_bar, say_error
from featcache.cli.options import NumberOrAuto, reports_option, with_log
from featcache.cli.tables import FORMATS, print_records, show_table
from featcache.errors import counted

if TYPE_CHECKING:
    from featcache.prediction.model import Model, Prediction
    from featcache.prediction.output import Labelled

_SHOWN = 20


@click.command()
@click.argument("run", shell_complete=completer(runs, files=True))
@click.argument(
    "paths",
    nargs=-1,
    required=True,
    metavar="PATH...",
    shell_complete=completer(nothing, files=True),
)
@click.option(
    "--top", type=click.IntRange(1), metavar="K", help="The K most probable classes of each image."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="table",
    show_default=True,
    help="How to print the labels.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
              help="Write to this file, once all is done.")  # fmt: skip
@click.option("--weights-dir", metavar="FOLDER", help="A folder of weight files, searched first. "
              "[default: $FEATCACHE_WEIGHTS]")  # fmt: skip
@click.option("--device", default="auto", show_default=True, metavar="WHERE",
              help="auto, cpu, cuda or cuda:1.")  # fmt: skip
@click.option("-b", "--batch-size", type=NumberOrAuto(), default="auto", show_default=True,
              help="Images in a forward pass.")  # fmt: skip
@click.option("-j", "--workers", type=NumberOrAuto(), default="auto", show_default=True,
              help="Threads that read and decode.")  # fmt: skip
@reports_option
@with_log
@click.pass_context
def predict(
    ctx: click.Context,
    /,
    run: str,
    paths: Sequence[str],
    top: int | None,
    form: str,
    output: Path | None,
    weights_dir: str | None,
    device: str,
    batch_size: int | str,
    workers: int | str,
    reports: str,
    quiet: bool,
) -> None:
    """Label new images with the model of a run.

    RUN is a run folder, its model/ folder or a copy of that, or the beginning of a run's name.
    PATH is an image, a folder, a pattern in quotes, or - for a list on standard input. Images that
    can't be read are listed at the end, and the exit code is then 3.

    \b
    Example:
      featcache predict reports/photos/resnet18.concat.mlp.4f1c2a9e new/
      featcache predict resnet18.concat.mlp "new/**/*.jpg" --top 3
      find new -name "*.png" | featcache predict resnet18.concat.mlp - --format csv -o labels.csv
    """  # fmt: skip
    from featcache.prediction.inputs import list_paths
    from featcache.prediction.model import load_model

    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        # Before the work, which would be lost.
        why = "is a folder" if output.is_dir() else "lies in a folder that is not there"
        raise click.UsageError(f"-o {output} {why}")
    files = list_paths(paths, lambda: sys.stdin)
    model = load_model(
        run,
        reports=reports,
        weights_dir=weights_dir,
        device=device,
        batch_size=min(batch_size, len(files)) if isinstance(batch_size, int) else batch_size,
        workers=workers,
    )
    trained = model.facts["trained_on"]
    note(f"{model.facts['name']}, trained on {counted(trained['rows'], 'row')} ({trained['what']})")
    failed: dict[str, str] = {}
    with progress_bar("images", quiet) as progress:
        predictions = _readable(model.stream(files, progress), files, failed)
        _print(model, predictions, form, top, output)
    if failed:
        _list_failed(failed)
        ctx.exit(1 if len(failed) == len(files) else 3)


def _readable(
    predictions: Iterator[Prediction], files: Sequence[str], failed: dict[str, str]
) -> Iterator[Labelled]:
    """Path and prediction of the images that can be read; the others go into `failed`."""
    for one in predictions:
        path = os.fsencode(files[one.row]).decode("utf-8", "backslashreplace")
        if one.problem:
            failed[path] = one.problem
        else:
            yield path, one


def _print(
    model: Model, predictions: Iterator[Labelled], form: str, top: int | None, output: Path | None
) -> None:
    from featcache.prediction.output import table_rows, write_csv, write_json

    if form == "table" and output is None:
        columns, rows = table_rows(predictions, model.classes, top or 1)
        if rows:
            show_table(columns, rows)
        return
    with _opened(output) as file:
        if form == "json":
            write_json(file, predictions, model.classes, top)
        elif form == "csv":
            write_csv(file, predictions, model.classes, top)
        else:
            columns, rows = table_rows(predictions, model.classes, top or 1)
            if form == "markdown":
                cells = [dict(zip(columns, row, strict=True)) for row in rows]
                print_records(columns, cells, form, file)
                return
            for row in (columns, *rows):
                file.write("\t".join(row) + "\n")


@contextmanager
def _opened(output: Path | None) -> Iterator[IO[str]]:
    """Standard output, or a file that is there only when all of it is."""
    if output is None:
        yield sys.stdout
        return
    with (
        replacing(output) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        yield file
    note(str(output))


def _list_failed(failed: dict[str, str]) -> None:
    shown = [f"{path}: {why}" for path, why in list(failed.items())[:_SHOWN]]
    rest = [f"… and {len(failed) - _SHOWN:,} more"] if len(failed) > _SHOWN else []
    count = counted(len(failed), "image")
    say_error(f"{count} can't be read", "\n".join(shown + rest))
