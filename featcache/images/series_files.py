"""Files of time series: tables as the UCR archive has them, and .npz."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DataError, UnknownData, counted
from featcache.images.manifest import SPLITS

_HALF = re.compile(r"(.+)_(TRAIN|TEST)", re.IGNORECASE)
_OTHER = {"train": "test", "test": "train"}


@dataclass(frozen=True)
class Series:
    """Labelled time series of one length.

    Attributes
    ----------
    name : str
        The data set's.
    values : float64 array of shape (n, channels, length)
    labels, split, groups : list of str
        "" where there is none.
    """

    name: str
    values: NDArray[np.float64]
    labels: list[str]
    split: list[str]
    groups: list[str]


def read_series(path: Path) -> Series:
    """Read a file, and of NAME_TRAIN and NAME_TEST both.

    Parameters
    ----------
    path : Path
        A table without header, label first (.tsv, .txt, .csv, any ending); an .npz file with X of
        shape (n, length) or (n, channels, length), y, and perhaps split and group; or a folder
        with NAME_TRAIN and NAME_TEST of such.

    Raises
    ------
    DataError
        Where it is none of these.
    """
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise UnknownData(f"no file {str(path)!r}", "For instance series:GunPoint_TRAIN.tsv.")
    halves = _halves(path)
    parts = [_read(half, split) for split, half in halves.items()]
    lengths = {part.values.shape[1:] for part in parts}
    if len(lengths) > 1:
        shown = " and ".join(f"{c} × {t}" for c, t in (part.values.shape[1:] for part in parts))
        raise DataError(f"{', '.join(map(str, halves.values()))}: series of {shown} values",
                        "All must have one length; cut or resample them.")  # fmt: skip
    found = _HALF.fullmatch(path.stem)
    return Series(
        name=found[1] if found else path.stem,
        values=np.concatenate([part.values for part in parts]),
        labels=[label for part in parts for label in part.labels],
        split=[split for part in parts for split in part.split],
        groups=[group for part in parts for group in part.groups],
    )


def _in_folder(folder: Path) -> Path:
    found = sorted(p for p in folder.iterdir() if p.is_file() and _HALF.fullmatch(p.stem))
    names = {_HALF.sub(r"\1", path.stem) + path.suffix for path in found}
    if len(names) > 1:  # the archive's older form has the same as .txt, .arff and .ts
        found = [path for path in found if path.suffix == ".tsv"] or found
        names = {_HALF.sub(r"\1", path.stem) + path.suffix for path in found}
    if len(names) != 1:
        shown = f" (there are {', '.join(sorted(names)[:5])})" if names else ""
        raise DataError(
            f"{folder} is not the folder of one data set{shown}",
            "Name its file: series:FOLDER/NAME_TRAIN.tsv",
        )
    return found[0]


def _halves(path: Path) -> dict[str, Path]:
    """Split -> file: of NAME_TRAIN and NAME_TEST both, if both are there; else "" -> the file."""
    found = _HALF.fullmatch(path.stem)
    if found is None:
        return {"": path}
    own = found[2].lower()
    other = _OTHER[own] if found[2].islower() else _OTHER[own].upper()
    twin = path.with_name(f"{found[1]}_{other}{path.suffix}")
    if not twin.is_file():
        return {"": path}
    return dict(sorted({own: path, _OTHER[own]: twin}.items(), reverse=True))  # train first


def _read(path: Path, split: str) -> Series:
    try:
        if path.suffix.lower() == ".npz":
            return _read_npz(path, split)
        values, labels = _read_table(path)
    except (OSError, UnicodeError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} can't be read as time series: {error}") from None
    n = len(labels)
    return Series(path.stem, values, labels, [split] * n, [""] * n)


def _read_npz(path: Path, split: str) -> Series:
    with np.load(path, allow_pickle=False) as file:
        for name in ("X", "y"):
            if name not in file:
                raise DataError(f"{path} has no array {name!r} (it has: {', '.join(file)})",
                                "np.savez(path, X=…, y=…): X of shape (n, length).")  # fmt: skip
        values, n = file["X"], len(file["y"])
        if values.dtype.kind not in "fiub" or values.ndim not in (2, 3) or len(values) != n:
            raise DataError(
                f"{path}: X is {values.dtype} of shape {values.shape}, and y has "
                f"{counted(n, 'label')}",
                "X has shape (n, length) or (n, channels, length), y (n,).",
            )
        columns = {name: [str(v) for v in file[name]] if name in file else [""] * n
                   for name in ("split", "group")}  # fmt: skip
        labels = [_label(str(label)) for label in file["y"].tolist()]
    for name, column in columns.items():
        if len(column) != n:
            raise DataError(f"{path}: {name} has {counted(len(column), 'row')}, and y has {n}")
    if odd := set(columns["split"]) - {"", *SPLITS}:
        raise DataError(f"{path}: {sorted(odd)[0]!r} is no split", "Use train, val or test.")
    own = [split] * n if split else columns["split"]
    return Series(path.stem, _three(values), labels, own, columns["group"])


def _three(values: NDArray[Any]) -> NDArray[np.float64]:
    """As (n, channels, length)."""
    return values.astype(np.float64).reshape(len(values), -1, values.shape[-1])


def _read_table(path: Path) -> tuple[NDArray[np.float64], list[str]]:
    with path.open(encoding="utf-8-sig") as file:
        lines = [(number, line.strip()) for number, line in enumerate(file, 1) if line.strip()]
    if not lines:
        raise DataError(f"{path} is empty")
    separator = next((mark for mark in "\t,;" if mark in lines[0][1]), None)
    rows = [(number, line.split(separator)) for number, line in lines]
    if len(rows) > 1 and not _numbers(rows[0][1]) and _numbers(rows[1][1]):
        del rows[0]  # a header
    width = len(rows[0][1])
    for number, cells in rows:
        if len(cells) != width:
            raise DataError(
                f"{path}, line {number}: {counted(len(cells) - 1, 'value')}, and {width - 1} above",
                "All series must have one length; cut or resample them.",
            )
        if not _numbers(cells):
            raise DataError(
                f"{path}, line {number}: not all cells after the label are numbers",
                "One series a line: its label, then its values.",
            )
    values = np.array([cells[1:] for _, cells in rows], dtype=np.float64)  # (n, length)
    return _three(values), [_label(cells[0].strip()) for _, cells in rows]


def _numbers(cells: Sequence[str]) -> bool:
    """Whether all but the first cell, the label, are numbers; NaN is one."""
    try:
        np.array(cells[1:], dtype=np.float64)
    except ValueError:
        return False
    return True


def _label(text: str) -> str:
    """ "1" for "1.0000000e+00", as older files of the archive have it; other labels as they are."""
    try:
        value = float(text)
    except ValueError:
        return text
    return str(int(value)) if value.is_integer() else text
