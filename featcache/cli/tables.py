"""Tables on stdout: as wide as the terminal, or as CSV, JSON or Markdown."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from featcache.cli.console import note, visible
from featcache.errors import counted

if TYPE_CHECKING:
    from featcache.reporting.schema import Run

F = TypeVar("F", bound=Callable[..., Any])
FORMATS = ("table", "csv", "json", "markdown")
_META = "featcache.table"
_GAP = 2  # between columns
_PATH = 24  # of a path, at least, on one line
_TOGETHER = re.compile(r"(?<=\d) (?=[%…])|(?<=…) (?=\d)")  # 0.97 … 0.99, 5 %
_TIE = "="  # beside the place of a run that can't be told from the best
_DROP = ("balanced", "AUC", "F1", "accuracy", "one fit")  # columns, as a terminal gets narrower


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    ctx.meta.setdefault(_META, {})[param.name] = value


# For a command whose lines are a table only if that is asked for; `table_format` says so.
format_option = click.option(
    "--format", type=click.Choice(FORMATS), default="table", show_default=True,
    help="How to print the table; sentences then go to stderr.", expose_value=False, callback=_keep,
)  # fmt: skip


def table_options(command: F) -> F:
    """Add --format, --show and --wide: `show_table` asks the running command for them."""
    options: dict[str, dict[str, Any]] = {
        "--show": {"metavar": "COLUMN,…", "help": "Only these columns, in this order."},
        "--wide": {"is_flag": True, "help": "All columns, however narrow the terminal is."},
    }  # fmt: skip
    for name, attributes in reversed(options.items()):
        command = click.option(name, expose_value=False, callback=_keep, **attributes)(command)
    return format_option(command)


def _chosen(name: str, default: Any) -> Any:
    ctx = click.get_current_context(silent=True)
    return default if ctx is None else ctx.meta.get(_META, {}).get(name, default)


def table_format() -> str:
    """What --format of the running command says; "table" if it has none."""
    return str(_chosen("format", "table"))


def say(text: str) -> None:
    """A sentence to go with a table: wrapped between words on a terminal, intervals whole.

    On stdout under a table for people, else on stderr, so that stdout is data only.
    """
    width = _terminal_width()
    text = visible(text)
    if width:
        text = _TOGETHER.sub("\xa0", text)
        text = textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
        text = text.replace("\xa0", " ")
    click.echo(text, err=table_format() != "table")


def show_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str = "",
    *,
    drop: Sequence[str] = (),
    last: Sequence[str] = (),
    data: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """A table on stdout in the format asked for.

    Numbers and names never break. On a terminal that is too narrow columns are left out in the
    order of `drop`; then text wraps between words; then those of `last` are left out.

    Parameters
    ----------
    columns : sequence of str
    rows : sequence of sequence of str
        The cells of each.
    title : str
    drop : sequence of str
        Columns that can be done without, the first one first.
    last : sequence of str
        Columns that are given up only if wrapping is not enough.
    data : sequence of mapping, optional
        The rows for CSV, JSON and Markdown, if they hold more than the table; by default its cells.
    """
    form = table_format()
    if form != "table":
        known = list(data[0]) if data else list(columns)
        cells = [dict(zip(columns, row, strict=True)) for row in rows]
        print_records(_selected(known), cells if data is None else data, form)
        return
    names = _selected(columns)
    width = _terminal_width()
    if width is not None and not _chosen("wide", False) and not _chosen("show", None):
        texts = {name: [name, *(row[place] for row in rows)] for place, name in enumerate(columns)}
        kept = _fitting(names, texts, width, drop, _natural)
        kept = _fitting(kept, texts, width, last, _least)
        if gone := [name for name in names if name not in kept]:
            note(f"left out for width: {', '.join(gone)} (--wide shows all, --show chooses)")
        names = kept
    places = [columns.index(name) for name in names]
    _print(names, [[visible(row[place]) for place in places] for row in rows], title, width)


def about(run: Run) -> str:
    """What a run was tested on: "digits, 5 folds, 1,797 test images"; and the positive class."""
    positive = f", positive class {run.positive}" if run.positive else ""
    return f"{run.data}, {run.split}, {counted(run.tested, 'test image')}{positive}"


def show_runs(runs: Sequence[Run], title: str = "", conclusion: str = "") -> None:
    """Runs with the same rows, best first, as a table on stdout, and what it comes to.

    With --format the table is left to `print_runs`, which holds all runs of a command.
    `conclusion` takes the place of what the paired tests among these runs come to.
    """
    from featcache.reporting.break_even import verdicts
    from featcache.reporting.comparison import fusion_label
    from featcache.reporting.schema import asides
    from featcache.reporting.ties import leaky_note, verdict

    by, seeds = runs[0].by, any(run.seed_sd for run in runs)
    others = {name: label for name, label in _BESIDE.items() if name != by.name}
    rows = [
        (
            f"{_TIE} {place}" if run.tie else str(place),
            " + ".join(run.backbones),
            fusion_label(run),
            _head(run, aside),
            _number(run.score),
            " … ".join(map(_number, run.score_interval)),
            *(_number(run.metric(name)) for name in others),
            *([_number(_seed_sd(run))] if seeds else []),
            f"{run.fit_seconds:.2f} s",
        )
        for place, (run, aside) in enumerate(zip(runs, asides(runs), strict=True), 1)
    ]
    columns = ("#", "backbones", "fusion", "head", by.label, "95 % interval", *others.values(),
               *(["sd over seeds"] if seeds else []), "one fit")  # fmt: skip
    if leaky_note(runs):
        say(leaky_note(runs))
    if table_format() == "table":
        drop = [label for label in _DROP if label != by.label]
        show_table(columns, rows, title, drop=drop, last=("sd over seeds", "95 % interval"))
        if any(run.tie for run in runs):
            say(f"{_TIE}  can't be told from the best")
        if by.lower:
            say(f"{by.label}: lower is better")
    say(conclusion or verdict(runs))
    for line in verdicts(runs):
        say(line)


_BESIDE = {"accuracy": "accuracy", "balanced_accuracy": "balanced", "f1": "F1", "auc": "AUC"}


def _head(run: Run, aside: str = "") -> str:
    """The head, what it is shown and how often it was tuned: "mlp (anova:256, best of 20)"."""
    said = [run.select] * bool(run.select) + [f"best of {run.tune}"] * bool(run.tune)
    if run.view:
        from featcache.reporting.schema import trained_with

        said.append(trained_with(run))
    said += [aside] * bool(aside)
    return f"{run.head} ({', '.join(said)})" if said else run.head


def _seed_sd(run: Run) -> float:
    found = run.seed_sd.get(run.by.name)
    return float("nan") if found is None else found


def _number(value: float) -> str:
    return "–" if value != value else f"{value:.4f}"


def print_runs(runs: Sequence[Run]) -> None:
    """All runs of a command as CSV, JSON or Markdown, if --format asks for one of these."""
    from featcache.reporting.comparison import Comparison

    if table_format() != "table":
        done = Comparison(list(runs))
        print_records(_selected(done.columns), done.rows(), table_format())


def print_records(
    names: Sequence[str],
    records: Sequence[Mapping[str, Any]],
    form: str,
    file: IO[str] | None = None,
) -> None:
    """Rows as CSV, JSON (one list of objects) or Markdown, on stdout or in a file."""
    picked = [{name: record[name] for name in names} for record in records]
    if form == "json":
        click.echo(json.dumps(picked, indent=1, ensure_ascii=False, default=str), file)
    elif form == "csv":
        writer = csv.DictWriter(file or sys.stdout, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(picked)
    else:
        click.echo(f"| {' | '.join(names)} |\n|{'---|' * len(names)}", file)
        for record in picked:
            cells = (_escaped(record[name]) for name in names)
            click.echo(f"| {' | '.join(cells)} |", file)


def _escaped(value: Any) -> str:
    return visible("" if value is None else str(value)).replace("|", "\\|").replace("\n", " ")


def _selected(columns: Sequence[str]) -> list[str]:
    """The columns that --show names, or all."""
    wanted = _chosen("show", None)
    if not wanted:
        return list(columns)
    by_case = {name.casefold(): name for name in columns}
    words = [name.strip() for name in wanted.split(",") if name.strip()]
    names = [word if word in columns else by_case.get(word.casefold(), word) for word in words]
    unknown = [name for name in names if name not in columns]
    if unknown or not names:
        absent = unknown[0] if unknown else wanted
        raise click.UsageError(f"--show: no column {absent!r}; there are {', '.join(columns)}")
    return names


def _fitting(
    names: Sequence[str],
    cells: Mapping[str, Sequence[str]],
    width: int,
    drop: Sequence[str],
    measure: Callable[[Sequence[str]], int],
) -> list[str]:
    """The columns that stay if those of `drop` go until the rest is no wider than the terminal."""
    kept = list(names)
    for name in drop:
        if sum(measure(cells[one]) + _GAP for one in kept) - _GAP <= width:
            break
        kept = [one for one in kept if one != name]
    return kept


def _natural(cells: Sequence[str]) -> int:
    """How wide a column is if nothing wraps; the first cell is its head."""
    from rich.cells import cell_len

    return max(map(cell_len, cells))


def _least(cells: Sequence[str]) -> int:
    """How narrow a column can be: numbers don't wrap, text wraps between words, paths anywhere."""
    whole = cells[1:] if _is_numeric(cells[1:]) else []
    words = [word for cell in cells for word in cell.split()]
    names = [word for word in words if word.count("/") < 2]
    return max(_natural([*whole, *names, ""]), min(_natural([*words, ""]), _PATH))


def _print(
    names: Sequence[str], rows: Sequence[Sequence[str]], title: str, width: int | None
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    if title:
        say(title)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, _GAP - 1, 0, 0), pad_edge=False)
    texts = [[name, *(row[place] for row in rows)] for place, name in enumerate(names)]
    widths = _widths(texts, width)
    for name, cells, own in zip(names, texts, widths, strict=True):
        table.add_column(name, justify="right" if _is_numeric(cells[1:]) else "left", width=own)
    for row in rows:
        table.add_row(*row)
    room = sum(widths) + _GAP * (len(widths) - 1)
    Console(width=room, highlight=False, markup=False).print(table)


def _widths(texts: Sequence[Sequence[str]], width: int | None) -> list[int]:
    """How wide each column is: the widest that can wrap give way, down to their longest words."""
    widths, least = [_natural(cells) for cells in texts], [_least(cells) for cells in texts]
    while width is not None and sum(widths) + _GAP * (len(widths) - 1) > width:
        slack = [own if own > low else 0 for own, low in zip(widths, least, strict=True)]
        if not any(slack):
            break  # the terminal breaks the lines, but no cell is broken
        widths[slack.index(max(slack))] -= 1
    return widths


def _terminal_width() -> int | None:
    """Columns of the terminal; None if stdout is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _is_numeric(cells: Sequence[str]) -> bool:
    plain = [cell.removeprefix("= ") for cell in cells]
    return bool(plain) and all(cell == "–" or cell.lstrip("+-")[:1].isdigit() for cell in plain)
