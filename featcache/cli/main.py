"""The `featcache` command: its subcommands by name, each imported when it is called."""

from __future__ import annotations

import importlib
import keyword
import sys
from typing import Any

import click

from featcache import __version__
from featcache.atomic import FREE_SOME, is_full
from featcache.cli.console import coloured, say_error
from featcache.errors import FeatcacheError, did_you_mean

# Command -> its line in the list. The module of the same name in this folder holds it; import_
# that of import, which Python keeps for itself.
COMMANDS = {
    "extract": "Embed images with pretrained backbones, into the cache.",
    "import": "Take vectors that another tool wrote into the cache, as a block of a data set.",
    "fit": "Fit and score one classifier on cached features.",
    "compare": "Fit and score a grid of classifiers on the same folds.",
    "rank": "Rank backbones by their features, before any head is fitted.",
    "finetune": "Train backbones, fusion and head end to end.",
    "run": "Run a recipe: extract, fit and compare.",
    "predict": "Label new images with the model of a run.",
    "export": "Take a run's model elsewhere: a folder, or an ONNX file; or the whole run.",
    "report": "Make the pages: comparison.html, and report.html of runs.",
    "cache": "Look after the cached features.",
    "weights": "See, check and add weight files.",
    "backbones": "List the backbones.",
    "doctor": "Look at this machine: what works, what does not, and how to mend it.",
    "demo": "See it all work on the bundled digits, offline.",
}


class Commands(click.Group):
    """A group that imports a subcommand only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        plain = f"{name}_" if keyword.iskeyword(name) else name
        module = importlib.import_module(f"featcache.cli.{plain}")
        command: click.Command = getattr(module, plain)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(
                f"no command {args[0]!r}. {did_you_mean(args[0], COMMANDS)}", ctx
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="featcache")
def cli() -> None:
    """Extract once, compare everything.

    featcache turns images into cached embeddings, and fits and compares classifiers on them.

    \b
    Example:
      featcache extract --data photos --backbone resnet18 --backbone mobilenet_v2
      featcache compare --fusion concat,attention --head mlp,svm,xgboost
    """


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 usage, 3 some images failed,
    4 cache refused, 130 interrupted."""
    sys.exit(run(args))


def run(args: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        words = sys.argv[1:] if args is None else list(args)
        code: Any = cli.main(
            args, prog_name="featcache", standalone_mode=False, obj=words, color=coloured()
        )
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except FeatcacheError as error:
        say_error(error.problem, error.remedy)
        return error.exit_code
    except (KeyboardInterrupt, click.exceptions.Abort):
        say_error("interrupted", "What is done is kept: the same command goes on from there.")
        return 130
    except ModuleNotFoundError as error:
        if str(error.name).startswith("featcache"):
            raise
        say_error(
            f"this needs the package {error.name}, which is not installed",
            f"pip install {error.name}. featcache doctor shows what else is missing.",
        )
        return 1
    except MemoryError as error:
        first = (str(error).splitlines() or [""])[0]
        say_error(
            f"memory ran out{': ' if first else ''}{first}",
            "Take a smaller --image-size or --batch-size, fewer --workers or --jobs, or a machine "
            "with more memory. What is done is kept.",
        )
        return 1
    except BrokenPipeError:  # the reader of our output has gone, as in `featcache … | head`
        sys.stderr.close()
        return 0
    except OSError as error:  # no permission, no space, a folder in place of a file
        remedy = "Check that the path is right and that you may read or write it."
        say_error(str(error), FREE_SOME if is_full(error) else remedy)
        return 1
    return code if isinstance(code, int) else 0
