"""Images listed in a CSV, TSV or Parquet file."""

from __future__ import annotations

import codecs
import csv
import json
import logging
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from io import BytesIO, TextIOWrapper
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, BinaryIO

from featcache.errors import DataError, UnknownData, counted, did_you_mean, first_line
from featcache.images.files import KINDS, SourceOptions, near_paths
from featcache.images.location import Location, open_location
from featcache.images.manifest import Images, check_name, split_name
from featcache.images.remote import UrlFolder, check_url, is_url, split_url, without_secrets

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("featcache")

TABLES = frozenset((".csv", ".tsv", ".parquet", ".pq"))


def table(argument: str, options: SourceOptions) -> Images:
    """A CSV, TSV or Parquet file with columns path, label and perhaps split and group."""
    path = check_url(argument) if is_url(argument) else str(Path(argument).expanduser())
    frame = _with_roles(path, _read_table(path, options.columns), options.columns)
    # A column named "subject" is one to group by; without it the word means the column "group".
    subject = options.group == "subject" and "subject" in frame.columns
    named = subject or options.group not in (None, *KINDS)
    group = options.group if named else None
    _need_columns(path, frame, ["path", "label", *([group] if group else [])])
    root = open_location(options.root or _parent(path))
    _refuse_urls(path, frame["path"])
    ids = [Path(cell).as_posix() for cell in frame["path"]]
    if any(map(os.path.isabs, ids)):
        log.warning(
            "%s lists absolute paths: they will stand in every table of this data set. To keep "
            "them to yourself, list them relative to a folder, and pass that with --data-root.",
            path,
        )
    ids = _forward(root, ids)
    labels, split = frame["label"].str.strip().tolist(), None
    blank = [i + 2 for i, (id_, y) in enumerate(zip(frame["path"], labels, strict=True))
             if not id_.strip() or not y.strip()]  # fmt: skip
    if blank:
        raise DataError(
            f"{path}: {counted(len(blank), 'row')} without a path or a label (first: line "
            f"{blank[0]})"
        )
    _refuse_repeats(path, ids)
    missing = _find_missing(path, root, ids)
    if "split" in frame.columns:
        split = [split_name(cell) for cell in frame["split"]]
        if None in split:
            odd = frame["split"][split.index(None)]
            raise DataError(f"{path}: {odd!r} is no split", "Use train, val, test or nothing.")
    column = group or ("group" if "group" in frame.columns else None)
    groups = frame[column].str.strip().tolist() if column else None
    there = [row for row, id_ in enumerate(ids) if id_ not in missing]
    images = root.images(
        options.name or check_name(Path(path).stem),
        [ids[row] for row in there],
        labels=[labels[row] for row in there],
        split=[split[row] or "" for row in there] if split else None,
        groups=[groups[row] for row in there] if groups else None,
        options=options,
    )
    return replace(images, absent=tuple(missing))


def read_class_map(path: str | Path) -> dict[str, str]:
    """Label -> readable name, from a JSON object or a table of two columns.

    Raises
    ------
    DataError
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UnknownData(f"no class map {str(path)!r}", near_paths(file))
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() == ".json":
            found = json.loads(text)
            pairs = [[str(label), str(name)] for label, name in found.items()]
        else:
            separator = next((one for one in "\t;" if one in text.partition("\n")[0]), ",")
            rows = csv.reader(text.splitlines(), delimiter=separator)
            pairs = [[cell.strip() for cell in row] for row in rows if row]
        return {label: name for label, name in pairs}  # noqa: C416  (refuses three columns)
    except (OSError, ValueError, AttributeError, csv.Error) as error:
        raise DataError(
            f"{path} is no class map: {first_line(error)}",
            'It has two columns, the label and its name, or is JSON: {"0": "cat"}.',
        ) from None


ROLES = ("path", "label", "split", "group")


def _with_roles(path: str, frame: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """The table with columns called as in `ROLES`, however they are spelt."""
    names = [str(name) for name in frame.columns]
    for role in ROLES:
        wanted = columns.get(role, role)
        same = [name for name in names if _plain(name) == _plain(wanted)]
        if wanted in names or (role not in columns and not same):
            same = [wanted] if wanted in names else []
        if len(same) > 1:
            raise DataError(
                f"{path} has several columns for {role!r}: {', '.join(map(repr, same))}",
                f"Say which: --columns {role}={same[0]}",
            )
        if role in columns:
            _need_columns(path, frame, same or [wanted])
        if same and same != [role]:
            frame = frame.assign(**{role: frame[same[0]]})
    return frame


def _plain(name: str) -> str:
    return name.strip().strip('"').strip().casefold()


def _forward(root: Location, ids: list[str]) -> list[str]:
    """Paths that were written on Windows, with forward slashes; no file's name is changed."""
    odd = set(root.lacks(slashed)) if (slashed := [id_ for id_ in ids if "\\" in id_]) else set()
    return [PureWindowsPath(id_).as_posix() if id_ in odd else id_ for id_ in ids]


def _parent(path: str) -> str | Path:
    return split_url(path)[0] if is_url(path) else Path(path).parent


def _read_table(path: str, columns: Mapping[str, str]) -> pd.DataFrame:
    import pandas as pd

    try:
        with _opened(path) as file:
            if path.lower().endswith((".parquet", ".pq")):
                frame = pd.read_parquet(file).astype(object)
                return frame.where(frame.notna(), "").astype(str)
            encoding = _encoding(file)
            separator = _separator(path, file, encoding, columns)
            frame = pd.read_csv(
                file, sep=separator, dtype=str, keep_default_na=False, encoding=encoding
            )
        if len(frame) and not isinstance(frame.index, pd.RangeIndex):  # it shifted the columns
            raise ValueError("its rows have more cells than its header")
        return frame
    except ImportError:
        raise DataError(
            "reading Parquet needs pyarrow", 'pip install "featcache[parquet]"'
        ) from None
    except UnicodeError:
        raise DataError(
            f"{path} can't be read as a table: its text is not UTF-8",
            "Save it as UTF-8 (in Excel: CSV UTF-8), or convert it: "
            f"iconv -f latin1 -t utf-8 {shlex.quote(str(path))} > utf8.csv",
        ) from None
    except DataError:
        raise
    except (ValueError, OSError) as error:
        raise DataError(f"{path} can't be read as a table: {error}") from None


def _opened(path: str) -> BinaryIO:
    """A file, or all of an object at a URL."""
    if is_url(path):
        folder, name = split_url(path)
        try:
            return BytesIO(UrlFolder(folder).read(name))
        except FileNotFoundError:
            raise UnknownData(f"there is no {path}") from None
    if not Path(path).is_file():
        raise UnknownData(f"no file {path!r}", f"{near_paths(path)} Check --data.".strip())
    return Path(path).open("rb")


def _encoding(file: BinaryIO) -> str:
    """UTF-16 where the file begins with its mark, as Excel's "Unicode text" does; else UTF-8."""
    begin = file.read(4)
    file.seek(0)
    if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in begin:
        raise UnicodeError("no mark of the byte order")
    return "utf-8-sig"


def _separator(path: str, file: BinaryIO, encoding: str, columns: Mapping[str, str]) -> str:
    """What stands between the header's cells: the first that sets off path and label."""
    usual = "\t" if path.lower().endswith(".tsv") else ","
    text = TextIOWrapper(file, encoding=encoding)
    header = text.readline()
    text.detach().seek(0)
    needed = {_plain(columns.get(role, role)) for role in ("path", "label")}
    separators = (usual, ",", ";", "\t")
    for separator in separators:
        if needed <= {_plain(cell) for cell in header.split(separator)}:
            return separator
    return max(separators, key=header.count)


def _need_columns(path: str, frame: pd.DataFrame, needed: Sequence[str]) -> None:
    for column in needed:
        if column not in frame.columns:
            every = [str(name).strip() for name in frame.columns]
            own = [name for name in every if name not in ROLES]  # "label" may stand for "LABEL"
            again = {_plain(name) for name in own}
            names = [name for name in every if name in own or name not in again]
            have, meant = ", ".join(names), did_you_mean(column, names)
            near = "" if meant.startswith("Known") else f" {meant}"  # those are named anyway
            role = column in ("path", "label")
            kind = DataError if role else UnknownData  # a name that was typed
            hint = " Or say which it is: --columns path=NAME,label=NAME" if role else ""
            raise kind(
                f"{path} has no column {column!r}",
                f"It has: {have}.{near}{hint}",
            )


def _refuse_repeats(path: str, ids: Sequence[str]) -> None:
    seen: set[str] = set()
    twice = [id_ for id_ in ids if id_ in seen or seen.add(id_)]  # type: ignore[func-returns-value]
    if twice:
        raise DataError(
            f"{path} lists {counted(len(twice), 'image')} twice, for instance {twice[0]}",
            "Keep one row for each image.",
        )


def _refuse_urls(path: str, cells: Iterable[str]) -> None:
    urls = [cell for cell in cells if is_url(cell)]
    if urls:
        raise DataError(
            f"{path}: {len(urls)} of its paths are URLs, for instance {without_secrets(urls[0])}",
            "Write them relative to one URL, and pass that with --data-root s3://bucket/folder.",
        )


def _find_missing(path: str, root: Location, ids: Sequence[str]) -> dict[str, None]:
    """Ids without a file, which count as failed; an error if there is no other."""
    missing = dict.fromkeys(root.lacks(ids))
    if missing:
        shown = ", ".join([*missing][:3]) + (", …" if len(missing) > 3 else "")
        where = "this folder" if str(root) == "." else root
        what = (
            f"{path}: {len(missing)} of {counted(len(ids), 'image file')} not below {where}: "
            f"{shown}"
        )
        remedy = "Pass the folder that the paths are relative to with --data-root."
        if len(missing) == len(ids):
            raise DataError(what, remedy)
        log.warning("%s. They count as failed. If the folder is another: --data-root", what)
    return missing
