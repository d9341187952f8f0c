"""featcache export."""

from __future__ import annotations

from pathlib import Path

import click

from featcache.cli.completion import completer, runs
from featcache.cli.options import reports_option, with_log
from featcache.errors import counted


@click.command()
@click.argument("run", shell_complete=completer(runs, files=True))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FOLDER",
              help="Copy the model into this folder.")  # fmt: skip
@click.option("--run", "whole", is_flag=True,
              help="Copy the whole run folder for others, without origin.json.")  # fmt: skip
@click.option("--standalone", is_flag=True, help="Put the backbones' weights into the folder.")
@click.option("--onnx", type=click.Path(path_type=Path), metavar="FILE",
              help="Write backbones, fusion and head as one ONNX graph.")  # fmt: skip
@click.option("--weights-dir", metavar="FOLDER", help="A folder of weight files, searched first. "
              "[default: $FEATCACHE_WEIGHTS]")  # fmt: skip
@reports_option
@with_log
def export(
    run: str,
    output: Path | None,
    whole: bool,
    standalone: bool,
    onnx: Path | None,
    weights_dir: str | None,
    reports: str,
    quiet: bool,
) -> None:
    """Take a run's model elsewhere: a folder, or an ONNX file; or the whole run.

    RUN is as for predict. A folder made with --standalone labels images on any machine that has
    featcache, offline; without, predict looks for the weights there. The ONNX graph takes pixels
    that are resized and cut already, uint8 (n, 3, height, width) for each backbone, and gives
    probabilities; class names and preprocessing stand in its metadata.

    \b
    Example:
      featcache export resnet18.concat.mlp --standalone -o photos-model
      featcache export resnet18.concat.mlp --onnx photos.onnx
      featcache export resnet18.concat.mlp --run -o to-send
    """
    if (output is None) == (onnx is None):
        raise click.UsageError("Say where: -o FOLDER, or --onnx FILE.")
    if whole and (output is None or standalone or onnx is not None):
        raise click.UsageError("--run goes with -o FOLDER alone.")
    if standalone and output is None:
        raise click.UsageError(
            "--standalone goes with -o FOLDER; an ONNX file always stands alone."
        )
    if onnx is not None and (onnx.is_dir() or not onnx.absolute().parent.is_dir()):
        why = "is a folder" if onnx.is_dir() else "lies in a folder that is not there"
        raise click.UsageError(f"--onnx {onnx} {why}")
    if whole and output is not None:
        from featcache.prediction.export import copy_run

        copy_run(run, output, reports)
        click.echo(output)
    elif output is not None:
        from featcache.prediction.export import copy_model

        copy_model(run, output, standalone=standalone, reports=reports, weights_dir=weights_dir)
        click.echo(output)
    if onnx is not None:
        from featcache.prediction.export import export_onnx

        done = export_onnx(run, onnx, reports=reports, weights_dir=weights_dir)
        click.echo(onnx)
        images = counted(done.images, "image")
        click.echo(f"checked with onnxruntime on {images}: probabilities differ by "
                   f"{done.difference:.1e} at most")  # fmt: skip
