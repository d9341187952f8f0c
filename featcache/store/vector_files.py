"""Vector files: the embeddings that other tools write, as ids and one vector for each.

| file | vectors | ids |
|---|---|---|
| .npz | the array `features`, `feats`, `embeddings`, …, or the only one of numbers in two dimensions | the array `ids`, `paths`, `filenames`, …, or the only one of texts |
| .npy, and a .csv | all of it | the column `id`, `path`, …, or the only one, in the same order |
| .parquet | a column of lists | a column `id`, `path`, …, or the only one of texts |
| .h5 with ids in it | as of .npz | as of .npz |
| .h5 without | the mean over its patches' rows, as TRIDENT, STAMP and CLAM write them | its own name |

Nothing is unpickled, and no link in an HDF5 file is followed.
"""  # noqa: E501

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from featcache.atomic import regular
from featcache.errors import DataError, FeatcacheError, UnknownData, counted, first_line
from featcache.hashing import sha256_file, sha256_json

VECTORS = ("features", "feats", "embeddings", "embedding", "vectors", "vector", "X")
IDS = (
    "ids", "id", "paths", "path", "filenames", "filename", "files", "file", "images", "image",
    "names", "name", "slides", "slide", "slide_id", "sha256",
)  # fmt: skip
H5 = (".h5", ".hdf5")
_PATCHES_AT_ONCE = 8192
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Vectors:
    """What files hold.

    Attributes
    ----------
    ids : list of str
        As they stand in the files; unique.
    X : float32 array of shape (n, d)
        Finite.
    sha256 : str
        Of the file; of several, the digest of their names and digests.
    pooled : bool
        Whether each vector is the mean over an image's patches.
    """

    ids: list[str]
    X: NDArray[np.float32]
    sha256: str
    pooled: bool = False


@dataclass(frozen=True, eq=False)
class _Part:
    """One file's ids and vectors, (n, d)."""

    path: Path
    ids: list[str]
    X: NDArray[np.float32]
    pooled: bool = False


def read_vectors(
    files: Iterable[str | Path], vectors: str | None = None, ids: str | None = None
) -> Vectors:
    """Read the vectors of one or several files.

    Parameters
    ----------
    files : iterable of str or Path
        A folder stands for the HDF5 files in it.
    vectors, ids : str, optional
        Names of the array, dataset or column that holds them, if they are not usual ones.

    Raises
    ------
    UnknownData
        If a file or array isn't there.
    DataError
        If a file can't be read without unpickling, if its ids repeat or are fewer than its
        vectors, or if a vector has NaN or infinite values.
    """
    paths = _listed(files)
    tables, read = _tables(paths), list[Path]()
    parts = []
    for path in paths:
        if path in tables.values():
            continue
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            raise DataError(
                f"{path} is no file of vectors that can be read",
                f"Pass {', '.join(sorted(_READERS))}; .npy with a .csv of its ids.",
            )
        table = tables.get(path)
        parts.append(_checked(reader(path, vectors, ids, table)))
        read += [path] if table is None else [path, table]
    digest = _digest(read)
    _refuse_differences(parts)
    return Vectors(
        [id_ for part in parts for id_ in part.ids],
        np.concatenate([part.X for part in parts]) if len(parts) > 1 else parts[0].X,
        digest,
        parts[0].pooled,
    )


def _listed(files: Iterable[str | Path]) -> list[Path]:
    found: dict[Path, None] = {}
    for named in files:
        path = Path(named).expanduser()
        inside = sorted(p for p in path.glob("*") if p.suffix.lower() in H5)
        if not path.exists() or (path.is_dir() and not inside):
            what = f"no {' or '.join(H5)} file in {path}" if path.is_dir() else f"no file {path}"
            raise UnknownData(what, "Check the path of the vectors.")
        found |= dict.fromkeys(inside if path.is_dir() else [path])
    if not found:
        raise DataError("no file of vectors named", "For instance: vectors.npz")
    return list(found)


def _tables(paths: Sequence[Path]) -> dict[Path, Path]:
    """The .csv that holds a .npy file's ids: of the same name, or the only one."""
    arrays = [path for path in paths if path.suffix.lower() == ".npy"]
    tables = [path for path in paths if path.suffix.lower() == ".csv"]
    if len(arrays) == len(tables) == 1:
        return {arrays[0]: tables[0]}
    named = {path.with_suffix(""): path for path in tables}
    found = {
        path: named.pop(path.with_suffix("")) for path in arrays if path.with_suffix("") in named
    }
    alone = [path for path in arrays if path not in found]
    if alone or named:
        odd = alone[0] if alone else next(iter(named.values()))
        missing = ".csv of its ids" if alone else ".npy of its vectors"
        raise DataError(f"{odd} comes without a {missing}", "Pass both, of one name.")
    return found


def _digest(paths: Sequence[Path]) -> str:
    if len(paths) == 1:
        return sha256_file(paths[0])
    return sha256_json(sorted([path.name, sha256_file(path)] for path in paths))


def _checked(part: _Part) -> _Part:
    if len(part.ids) != len(part.X):
        raise DataError(
            f"{part.path} has {counted(len(part.X), 'vector')} and {counted(len(part.ids), 'id')}",
            "There must be one id for each vector, in the same order.",
        )
    if not part.X.size:
        raise DataError(f"{part.path} holds no vectors")
    bad = np.flatnonzero(~np.isfinite(part.X).all(axis=1))
    if len(bad):
        shown = ", ".join(part.ids[row] for row in bad[:_SHOWN])
        raise DataError(
            f"{part.path}: {len(bad)} of {counted(len(part.X), 'vector')} are NaN or infinite "
            f"as float32: {shown}",
            "Embed these images again.",
        )
    return part


def _refuse_differences(parts: Sequence[_Part]) -> None:
    first = parts[0]
    seen: dict[str, Path] = {}
    for part in parts:
        if part.X.shape[1] != first.X.shape[1]:
            raise DataError(
                f"{first.path} has {counted(first.X.shape[1], 'number')} a vector, {part.path} "
                f"{part.X.shape[1]:,}",
                "Import the vectors of one network at a time.",
            )
        if part.pooled != first.pooled:
            raise DataError(
                f"{first.path} and {part.path} are of two kinds: one holds an image's patches, the "
                "other a vector for each image",
                "Import one kind at a time.",
            )
        for id_ in part.ids:
            if id_ in seen:
                where = "twice" if seen[id_] == part.path else f"as {seen[id_]} has"
                raise DataError(
                    f"{part.path} has a vector of {id_} {where}", "Keep one vector for each id."
                )
            seen[id_] = part.path


def _npz(path: Path, vectors: str | None, ids: str | None, _: Path | None) -> _Part:
    try:
        with np.load(regular(path), allow_pickle=False) as file:
            arrays, objects = {}, []
            for name in file.files:
                try:
                    arrays[name] = file[name]
                except ValueError:  # objects, which nothing is said of if they aren't needed
                    objects.append(name)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, error) from None
    try:
        return _named(path, arrays, vectors, ids)
    except DataError:
        if not objects:
            raise
        raise DataError(
            f"{path}: {', '.join(objects)} holds Python objects, and reading them can run code",
            "Save it as numbers, or as texts: np.array([...], dtype=str).",
        ) from None


def _npy(path: Path, vectors: str | None, ids: str | None, table: Path | None) -> _Part:
    try:
        found = np.load(regular(path), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, error) from None
    known = [] if table is None else _column(table, ids)
    return _Part(path, known, _numbers(path, "the array", found))


def _column(path: Path, name: str | None) -> list[str]:
    try:
        with regular(path).open(newline="", encoding="utf-8-sig") as file:
            header, *rows = csv.reader(file)
    except (OSError, ValueError, csv.Error) as error:
        raise _unreadable(path, error) from None
    place = header.index(_choose(path, "column of ids", header, name, IDS, header))
    short = [number for number, row in enumerate(rows, 2) if len(row) <= place]
    if short:
        raise DataError(f"{path}: line {short[0]} has no id")
    return [row[place] for row in rows]


def _parquet(path: Path, vectors: str | None, ids: str | None, _: Path | None) -> _Part:
    try:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq
    except ImportError:
        raise FeatcacheError(
            "reading Parquet needs pyarrow", 'pip install "featcache[parquet]"'
        ) from None
    try:
        schema = pq.read_schema(regular(path))
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None
    lists = [
        field.name
        for field in schema
        if pa.types.is_list(field.type)
        or pa.types.is_large_list(field.type)
        or pa.types.is_fixed_size_list(field.type)
    ]
    texts = [
        field.name
        for field in schema
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]
    name = _choose(path, "column of vectors", schema.names, vectors, VECTORS, lists)
    known = _choose(path, "column of ids", schema.names, ids, IDS, texts)
    if name not in lists:
        raise DataError(
            f"{path}: its column {name!r} holds {schema.field(name).type}, no vectors",
            "Name one of lists of numbers with --vectors.",
        )
    try:  # no other column: tables hold whole images, too
        table = pq.read_table(path, columns=[name, known], partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None
    column = table[name].combine_chunks()
    widths = pc.unique(pc.list_value_length(column)).to_pylist()
    if len(widths) > 1 or widths == [None]:
        shown = ", ".join("none" if width is None else str(width) for width in widths[:_SHOWN])
        raise DataError(f"{path}: the vectors of {name!r} are of several lengths: {shown}")
    values = column.flatten().to_numpy(zero_copy_only=False)
    block = values.reshape(len(column), -1) if len(column) else np.zeros((0, 1))
    return _Part(path, [str(id_) for id_ in table[known].to_pylist()], _numbers(path, name, block))


def _h5(path: Path, vectors: str | None, ids: str | None, _: Path | None) -> _Part:
    try:
        regular(path)
        with h5py.File(path, "r", locking=False) as file:
            if "key" in file.attrs and "complete" in file.attrs:
                raise DataError(
                    f"{path} is a feature file of featcache's own",
                    "Put it into the data set's folder of the cache as it is.",
                )
            plain = {
                name: file[name]
                for name in file
                if isinstance(file.get(name, getlink=True), h5py.HardLink)
                and isinstance(file[name], h5py.Dataset)
                and not (file[name].external or file[name].is_virtual)  # these lead elsewhere
            }
            known = [name for name in ((ids and [ids]) or IDS) if name in plain]
            if known or ids:
                arrays = {n: d[...] for n, d in plain.items() if d.ndim <= 2}
                return _named(path, arrays, vectors, ids)
            usual = [name for name, dataset in plain.items() if name not in ("coords",)]
            name = _choose(path, "dataset of vectors", list(plain), vectors, VECTORS, usual)
            return _Part(path, [path.stem], _mean(path, name, plain), plain[name].ndim > 1)
    except (OSError, RuntimeError, KeyError) as error:
        raise _unreadable(path, error) from None


def _mean(path: Path, name: str, plain: Mapping[str, h5py.Dataset]) -> NDArray[np.float32]:
    """The mean over the patches of one image, (1, d); a vector as it is."""
    dataset = plain[name]
    if dataset.ndim == 1:
        return _numbers(path, name, dataset[...][None])
    whole = dataset.ndim == 3 and dataset.shape[0] == 1  # (1, patches, d), as some write it
    n, width = dataset.shape[-2:]
    if dataset.ndim != 2 and not whole:
        raise DataError(f"{path}: {name!r} has the shape {dataset.shape}, not (patches, d)")
    places = plain.get("coords")
    if places is not None and places.shape[-2] != n:
        raise DataError(
            f"{path}: {counted(n, 'patch', 'patches')} in {name!r}, and {places.shape[-2]:,} in "
            "'coords'",
            "The file is damaged, or was not finished: write it again.",
        )
    if not n:
        raise DataError(f"{path} holds no patches", "Leave it out, and its image.")
    total = np.zeros(width, np.float64)
    for start in range(0, n, _PATCHES_AT_ONCE):
        part = np.s_[start : start + _PATCHES_AT_ONCE]
        rows = _numbers(path, name, dataset[0, part] if whole else dataset[part])  # (c, d)
        total += rows.sum(axis=0, dtype=np.float64)
    mean: NDArray[np.float32] = (total / n).astype(np.float32)[None]  # (1, d)
    return mean


def _named(
    path: Path, arrays: Mapping[str, NDArray[Any]], vectors: str | None, ids: str | None
) -> _Part:
    """Vectors and ids among a file's arrays."""
    wide = [n for n, array in arrays.items() if array.ndim == 2 and array.dtype.kind in "fiu"]
    name = _choose(path, "array of vectors", list(arrays), vectors, VECTORS, wide)
    texts = [n for n, array in arrays.items() if array.ndim == 1 and array.dtype.kind in "USO"]
    known = _choose(path, "array of ids", list(arrays), ids, IDS, texts)
    column = arrays[known]
    if column.ndim != 1 or column.dtype.kind not in "USOiu":
        raise DataError(
            f"{path}: {known!r} is {column.dtype} of shape {column.shape}, no list of ids",
            "Name another with --ids.",
        )
    texts = [
        value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        for value in column.tolist()
    ]
    return _Part(path, texts, _numbers(path, name, arrays[name]))


def _numbers(path: Path, name: str, values: NDArray[Any]) -> NDArray[np.float32]:
    """Vectors as float32, (n, d)."""
    if values.dtype.kind not in "fiu" or values.ndim != 2:
        raise DataError(
            f"{path}: {name} is {values.dtype} of shape {values.shape}, not numbers of shape "
            "(n, d)",
            "Save it as float32, or name another with --vectors.",
        )
    with np.errstate(over="ignore"):  # infinities are refused, with their ids
        found: NDArray[np.float32] = np.ascontiguousarray(values, dtype=np.float32)
    return found


def _choose(
    path: Path,
    what: str,
    names: Sequence[str],
    wanted: str | None,
    usual: Sequence[str],
    fitting: Sequence[str],
) -> str:
    """The name that was asked for, else the first usual one, else the only fitting one."""
    option = "--ids" if "ids" in what else "--vectors"
    if wanted is not None:
        if wanted in names:
            return wanted
        raise UnknownData(
            f"{path} has no {what.split()[0]} {wanted!r}", f"It has: {', '.join(names)}."
        )
    found = next((name for name in usual if name in names), None)
    if found is None and len(fitting) == 1:
        return fitting[0]
    if found is None:
        raise DataError(
            f"{path}: which is its {what}?",
            f"Name it with {option}. It has: {', '.join(names) or 'nothing'}.",
        )
    return found


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} can't be read: {first_line(error)}",
        "It is damaged, cut short, of another kind than its name says, or holds Python objects.",
    )


_Reader = Callable[[Path, str | None, str | None, Path | None], _Part]
_READERS: dict[str, _Reader] = {
    ".npz": _npz,
    ".npy": _npy,
    ".parquet": _parquet,
    **dict.fromkeys(H5, _h5),
}
