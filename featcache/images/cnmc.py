"""C-NMC 2019: cells of acute lymphoblastic leukaemia and healthy ones, grouped by subject.

The layout is that of the challenge (Cancer Imaging Archive, doi 10.7937/tcia.2019.dc64i46r):

    C-NMC_training_data/fold_0|fold_1|fold_2/all|hem/UID_11_3_2_all.bmp, UID_H14_3_2_hem.bmp
    C-NMC_test_prelim_phase_data/1.bmp, 2.bmp, …
    C-NMC_test_prelim_phase_data_labels.csv      Patient_ID,new_names,labels

A name says the subject (H: a healthy one, so that 14 and H14 are two), the image, and the cell
in it. What stands below the folder that is named is taken: of the whole package, the training
folds as split "train" and the preliminary test as split "test"; of the training folder alone, no
split. The final test has no labels, and is left out.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featcache.errors import DataError, UnknownData, counted
from featcache.images.files import SourceOptions, from_files, list_images
from featcache.images.manifest import Images

LABELS_CSV = "C-NMC_test_prelim_phase_data_labels.csv"
_COLUMNS = ("Patient_ID", "new_names", "labels")
_CLASSES = {"1": "all", "0": "hem"}
_FOLDS = ("fold_0", "fold_1", "fold_2")
_NAME = re.compile(r"UID_(?:(\d+)_\d+_\d+_(all)|(H\d+)_\d+_\d+_(hem))\.\w+", re.IGNORECASE)
_LOOSE = "stand in no class folder of a fold"
_UNNAMED = "have no name of C-NMC 2019, which says the subject"
_MISPLACED = "stand in another class's folder than their names say"
_REMEDIES = {
    _LOOSE: "Move them to fold_0/all, fold_0/hem and so on, or elsewhere.",
    _UNNAMED: "Names are UID_11_3_2_all.bmp and UID_H14_3_2_hem.bmp. Move the others elsewhere; or "
    "list all images in a CSV file: path,label,group.",
    _MISPLACED: "all/ holds UID_…_all.bmp, and hem/ holds UID_H…_hem.bmp: move them, or download "
    "them again.",
}
log = logging.getLogger("featcache")


@dataclass(frozen=True)
class _Cell:
    id: str
    label: str
    subject: str
    split: str


def cnmc(argument: str, options: SourceOptions) -> Images:
    """The data of the C-NMC 2019 challenge below a folder, each subject one group."""
    root = Path(argument).expanduser()
    if not argument or not root.is_dir():
        raise UnknownData(
            f"no folder {argument!r}", "For instance --data cnmc:C-NMC_training_data."
        )
    options.refuse_group("C-NMC")
    ids = list_images(root)
    cells = [*_training(root, ids), *_test(root, ids)]
    if not any(cell.split == "test" for cell in cells):
        cells = [_Cell(cell.id, cell.label, cell.subject, "") for cell in cells]
    return from_files(
        options.name or "cnmc",
        [f"{root}/{cell.id}" for cell in cells],
        ids=[cell.id for cell in cells],
        labels=[cell.label for cell in cells],
        groups=[cell.subject for cell in cells],
        split=[cell.split for cell in cells],
        cache=options.cache,
        rehash=options.rehash,
        source=options.source,
    )


def _training(root: Path, ids: Sequence[str]) -> list[_Cell]:
    """The cells below fold_0, fold_1 and fold_2."""
    cells: list[_Cell] = []
    faults: dict[str, list[str]] = {}
    for id_ in ids:
        parts = f"{root.resolve().name}/{id_}".lower().split("/")
        if not set(_FOLDS) & set(parts[:-1]):
            continue
        subject, label = _subject(parts[-1]) or ("", "")
        fault = _fault(parts, label)
        if fault:
            faults.setdefault(fault, []).append(id_)
        else:
            cells.append(_Cell(id_, label, subject, "train"))
    for fault, remedy in _REMEDIES.items():
        if fault in faults:
            raise DataError(f"{_several(faults[fault])} below {root} {fault}", remedy)
    if not cells:
        raise DataError(
            f"no training folds of C-NMC 2019 below {root}",
            "Expected fold_0/all/UID_11_1_1_all.bmp and the like; any other folder of classes "
            f"opens without cnmc: --data {root}",
        )
    _refuse_twice(root, cells)
    _warn_of_gaps(root, cells)
    return cells


def _fault(parts: Sequence[str], label: str) -> str:
    """What is wrong with a cell's place or name, one of `_REMEDIES`; "" for nothing."""
    if len(parts) < 3 or parts[-3] not in _FOLDS:
        return _LOOSE
    if not label:
        return _UNNAMED
    return "" if parts[-2] == label else _MISPLACED


def _refuse_twice(root: Path, cells: Sequence[_Cell]) -> None:
    """Each cell stands in one fold: twice, it would be on both sides of a split."""
    seen: dict[str, str] = {}
    for cell in cells:
        other = seen.setdefault(Path(cell.id).name.lower(), cell.id)
        if other != cell.id:
            raise DataError(
                f"below {root}, {other} and {cell.id} are one cell by their name",
                "Was one fold unpacked over another? Keep one of them.",
            )


def _warn_of_gaps(root: Path, cells: Sequence[_Cell]) -> None:
    paths = (f"{root.resolve().name}/{cell.id}".lower().split("/") for cell in cells)
    have = {"/".join(parts[-3:-1]) for parts in paths}
    absent = [f"{fold}/{y}" for fold in _FOLDS for y in ("all", "hem") if f"{fold}/{y}" not in have]
    if absent:
        log.warning("C-NMC 2019 below %s lacks %s", root, ", ".join(absent))


def _test(root: Path, ids: Sequence[str]) -> list[_Cell]:
    """The cells of the preliminary test, by its list of labels."""
    tables = sorted(root.rglob(LABELS_CSV))
    numbered = {id_ for id_ in ids if "c-nmc_test_prelim_phase_data" in id_.lower()}
    if not tables:
        if numbered:
            log.warning("the preliminary test is left out: no %s below %s", LABELS_CSV, root)
        return []
    table = tables[0]
    where = _beside(root, table, ids)
    cells, absent = [], []
    for line, name, file, code in _read(table):
        found = _subject(name)
        if found is None or _CLASSES.get(code) != found[1]:
            raise DataError(
                f"{table}, line {line}: {name!r} and label {code!r} don't agree",
                "Patient_ID is UID_…_all.bmp with label 1, or UID_H…_hem.bmp with label 0: "
                "download it again.",
            )
        if file.lower() in where:
            cells.append(_Cell(where[file.lower()], found[1], found[0], "test"))
        else:
            absent.append(file)
    if absent:
        raise DataError(
            f"{table} lists {_several(absent)} that are not below {table.parent}",
            f"Unpack the images there, or remove {LABELS_CSV} to do without the preliminary test.",
        )
    if left := numbered - {cell.id for cell in cells}:
        log.warning("%s of the preliminary test are left out: they are not in %s",
                    _several(sorted(left)), table)  # fmt: skip
    return cells


def _beside(root: Path, table: Path, ids: Sequence[str]) -> dict[str, str]:
    """File name -> id of the test's images: beside their table, or in folders of its own name."""
    top, name = table.parent.relative_to(root), LABELS_CSV.removesuffix("_labels.csv")
    places = {folder.as_posix() for folder in (top, top / name, top / name / name)}
    return {
        Path(id_).name.lower(): id_ for id_ in ids if Path(id_).parent.as_posix() in places
    }  # fmt: skip


def _read(table: Path) -> list[tuple[int, str, str, str]]:
    """Of each row its line number, Patient_ID, new_names and labels."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            absent = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if absent:
                raise DataError(f"{table} has no column {', '.join(absent)}", "Download it again.")
            rows = []
            for row in reader:
                name, file_name, code = ((row[column] or "").strip() for column in _COLUMNS)
                rows.append((reader.line_num, name, file_name, code))
            return rows
    except (UnicodeError, csv.Error) as error:
        raise DataError(f"{table} can't be read: {error}", "Download it again.") from None


def _subject(name: str) -> tuple[str, str] | None:
    """Subject and class of a cell by its name, "11" and "all" or "H14" and "hem"."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    return (found[1] or found[3]).upper(), (found[2] or found[4]).lower()


def _several(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{counted(len(names), 'image')} ({shown})"
