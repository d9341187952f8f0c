"""FeatureFile: one backbone's vectors in HDF5, written so that a kill loses at most a batch.

Datasets: `features` (n, d) float32 or float16; `sha256` (n, 32) uint8, the content of each row's
image; `done` (n,) uint8; `checksum` (n,) uint32, CRC-32 of each row's sha256 and vector;
`trained_on` (m, 32) uint8, only if the backbone was fine-tuned: the contents that trained it;
`quantised` (m,) uint8, only for int8: the quantised network.
Attributes: `format`, `key` (canonical JSON), `complete`, `created`, and what made it. Behind
HDF5's own bytes a finished file ends with its seal: sha256 of all that no row's checksum covers,
so that libhdf5 never sees a flipped bit. Files of older versions have none.

Nothing in the file leads out of it: each dataset is its own, in one piece, plain.
Contiguous, allocated when created, default library version: such a file can be opened again
after a SIGKILL at any moment. A row is written, flushed, and only then marked as done.
"""

from __future__ import annotations

import math
import shlex
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from featcache.atomic import check_space, guard_writes, is_hollow, replacing, sync
from featcache.errors import CacheDenied, CacheRefused, DataError, counted
from featcache.images.manifest import IMAGES_CSV, read_images_csv
from featcache.images.sources import read_origin
from featcache.store.key import FORMAT, Entry, Key, read_key
from featcache.store.seal import check_seal, seal
from featcache.store.spec import extract_commands, in_cache

Digests = NDArray[np.uint8]

ROWS_CHECKED = 31 * 33  # rows that are read and checked together, while they are in a near cache
_LINE = 33  # odd, as 31 is: damage at regular distances then hits some line an odd number of times
_AT_ONCE = 2**22  # numbers read together
TRAINED_ON = "trained_on"
QUANTISED = "quantised"
_SHOWN = 5
_DAMAGE = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError)  # all h5py's
_AGAIN = "Delete it and run the extract command again."
_OF_ROWS = ("features", "sha256", "checksum", "done")  # seen row by row whether they are damaged


class FeatureFile:
    """An open HDF5 file of one backbone's vectors.

    Attributes
    ----------
    path : Path
    key : Key
    complete : bool
        Whether every row is done and the file was closed in order.
    digests : uint8 array of shape (n, 32)
    dim : int
        Width d of a vector.
    """

    def __init__(self, path: Path, writable: bool = False) -> None:
        self.path = path
        self._file = _open(path, writable)
        try:
            with _refusing(path):
                self.key = _check_attributes(path, self._file)
                self.dim = _check_datasets(path, self._file, self.key)
                self.digests: Digests = self._file["sha256"][...]
                self.complete = bool(self._file.attrs["complete"])
        except BaseException:
            self._file.close()
            raise

    def __len__(self) -> int:
        return len(self.digests)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except (OSError, RuntimeError):  # a disk that refused a write refuses the rest too
            if error is None:
                raise

    def close(self) -> None:
        """Close the file; what was written stays."""
        self._file.close()

    @property
    def rows_at_once(self) -> int:
        """How many rows of any width are read together."""
        return max(1, _AT_ONCE // max(1, self.dim))

    @property
    def attributes(self) -> dict[str, Any]:
        """What is recorded besides the key: versions, device, seconds, created, …"""
        with _refusing(self.path):
            found = {name: _plain(value) for name, value in self._file.attrs.items()}
        return {k: v for k, v in found.items() if k != "key" and isinstance(v, str | int | float)}

    @property
    def seconds(self) -> float:
        """What its extraction took; NaN if that isn't recorded."""
        found = self.attributes.get("seconds")
        return float(found) if isinstance(found, int | float) else math.nan

    @property
    def trained_on(self) -> frozenset[str]:
        """The sha256 of the images that trained the backbone; most have none."""
        return frozenset(to_hex(self._file[TRAINED_ON][...]) if TRAINED_ON in self._file else ())

    def offset(self, name: str) -> int:
        """Where in the file a dataset begins."""
        return int(self._file[name].id.get_offset())

    @property
    def quantised(self) -> bytes:
        """The quantised network that made it; empty if there is none."""
        return bytes(self._file[QUANTISED][...].tobytes()) if QUANTISED in self._file else b""

    def replace_dataset(self, name: str, values: NDArray[np.uint8]) -> None:
        """Keep values beside the rows, in place of what is there."""
        if name in self._file:
            del self._file[name]
        self._file.create_dataset(name, data=values)

    def done(self) -> NDArray[np.bool_]:
        """Which rows are written, shape (n,)."""
        return np.asarray(self._file["done"][...] == 1)

    def check_rows(self, rows: NDArray[np.intp], digests: Digests) -> None:
        """Refuse the file if its rows are not these contents: another one has taken its place."""
        there = len(self) > rows.max(initial=-1)
        if not (there and np.array_equal(self.digests[rows], digests)):
            raise CacheRefused(f"{self.path} changed while it was read", "Run the command again.")

    def read(self, rows: NDArray[np.intp], out: NDArray[Any]) -> None:
        """Read rows into `out`, an array of shape (len(rows), dim), and check each.

        Raises
        ------
        CacheRefused
            If one of them doesn't agree with its checksum.
        """
        source, stored = self._file["features"], self._file["checksum"][...]
        in_order = bool((rows == np.arange(len(rows))).all())
        direct = in_order and out.dtype == source.dtype and out.flags.c_contiguous
        # Span by span, in the file's order, then choose: many times faster than HDF5's choosing.
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        step = min(ROWS_CHECKED, self.rows_at_once)
        buffer = np.empty((min(step, len(self)), self.dim), source.dtype)
        damaged = [np.empty(0, np.intp)]
        for start in range(0, len(self), step):
            here = slice(*np.searchsorted(ordered, (start, start + step)))
            part = ordered[here]
            if not len(part):
                continue
            low, high = int(part[0]), int(part[-1]) + 1
            span = out[low:high] if direct else buffer[: high - low]
            source.read_direct(span, np.s_[low:high])
            bad = low + damaged_rows(self.digests[low:high], span, stored[low:high])
            damaged.append(bad[np.isin(bad, part)])
            if not in_order:
                out[order[here]] = span[part - low]
            elif not direct:
                out[low:high] = span
        found = np.concatenate(damaged)
        if len(found):
            raise refuse_damaged(self.path, self.key, found.tolist(), self.digests[found])

    def good(self) -> NDArray[np.bool_]:
        """Which rows are done and agree with their checksum, shape (n,)."""
        good = self.done()
        for start in range(0, len(self), self.rows_at_once):
            part = slice(start, start + self.rows_at_once)
            found = checksums(self.digests[part], self._file["features"][part])
            good[part] &= found == self._file["checksum"][part]
        return good

    def write(self, rows: NDArray[np.intp], values: NDArray[Any]) -> None:
        """Write vectors of shape (len(rows), dim), and only when they are down mark them done."""
        order = np.argsort(rows)
        rows, values = rows[order], values[order].astype(self._file["features"].dtype)
        with guard_writes(self.path):
            _put(self._file["features"], rows, values)
            _put(self._file["checksum"], rows, checksums(self.digests[rows], values))
            self._file.flush()
            _put(self._file["done"], rows, np.ones(len(rows), np.uint8))
            self._file.flush()

    def undo(self, rows: NDArray[np.intp]) -> None:
        """Mark rows as not done."""
        _put(self._file["done"], rows, np.zeros(len(rows), np.uint8))
        self._file.flush()

    def annotate(self, facts: Mapping[str, Any]) -> None:
        """Record facts as attributes."""
        for name, value in facts.items():
            self._file.attrs[name] = value

    def finish(self, final: Path, leave_out: NDArray[np.bool_] | None = None) -> None:
        """Check that every row is done and finite, then put the file in its place at once.

        Parameters
        ----------
        final : Path
            Replaced.
        leave_out : bool array of shape (n,), optional
            Rows whose image could not be embedded: the file gets its place without them.
        """
        if leave_out is not None and leave_out.any():
            self._without(leave_out).finish(final)
            self.close()
            self.path.unlink()
            return
        missing = int((~self.done()).sum())
        if missing:
            raise CacheRefused(
                f"{self.path}: {missing} of {counted(len(self), 'row')} were not written"
            )
        self._refuse_infinite()
        with guard_writes(final):
            self._file.attrs["complete"] = True
            spans = [at for name in _OF_ROWS for at in span(self._file[name])]
            self.close()
            seal(self.path, spans)
            sync(self.path)
            self.path.replace(final)
            sync(final.parent)

    def _without(self, leave_out: NDArray[np.bool_]) -> FeatureFile:
        rows = np.flatnonzero(~leave_out)
        fresh = create(
            self.path.with_name(f"{self.path.name}.new"), self.key, self.digests[rows], self.dim
        )
        for start in range(0, len(rows), self.rows_at_once):
            part = rows[start : start + self.rows_at_once]
            values = np.empty((len(part), self.dim), self.key.dtype)
            self.read(part, values)
            fresh.write(np.arange(start, start + len(part)), values)
        fresh.annotate(self.attributes)
        for name in (TRAINED_ON, QUANTISED):
            if name in self._file:
                fresh._file.create_dataset(name, data=self._file[name][...])
        return fresh

    def _refuse_infinite(self) -> None:
        for start in range(0, len(self), self.rows_at_once):
            rows = self._file["features"][start : start + self.rows_at_once]
            finite = np.isfinite(rows).all(axis=1)
            if not finite.all():
                bad = start + int(np.flatnonzero(~finite)[0])
                raise CacheRefused(
                    f"{self.key.backbone} gave NaN or infinite values for the image with sha256 "
                    f"{to_hex(self.digests[bad : bad + 1])[0][:12]}…",
                    "Try --precision fp32, and check the weights.",
                )


def create(path: Path, key: Key, digests: Digests, dim: int) -> FeatureFile:
    """Create a file for these rows, none of them done yet, and open it for writing.

    Parameters
    ----------
    path : Path
        Replaced at once if it is there.
    key : Key
    digests : uint8 array of shape (n, 32)
    dim : int
        Width of a vector.
    """
    row = dim * np.dtype(key.dtype).itemsize + 64  # bytes, with digest, mark and checksum
    check_space(path, f"{counted(len(digests), 'vector')} of {key.backbone}", len(digests) * row)
    with guard_writes(path), replacing(path) as temporary:
        _lay_out(temporary, key, digests, dim)
    return FeatureFile(path, writable=True)


def read_trained_on(path: Path) -> frozenset[str]:
    """The sha256 of the images that trained the backbone of a feature file; most have none.

    Raises
    ------
    CacheRefused
        If the file is damaged.
    """
    with FeatureFile(path) as file:
        return file.trained_on


def write_trained_on(path: Path, sha256: Iterable[str]) -> None:
    """Record in a feature file which images trained its backbone, in place of what is there.

    Parameters
    ----------
    path : Path
    sha256 : iterable of str
        Hex digests of the images' bytes.
    """
    digests = to_digests(np.array(sorted(set(sha256)), np.str_))  # (n, 32)
    with FeatureFile(path, writable=True) as file:
        file.replace_dataset(TRAINED_ON, digests)


def read_quantised(path: Path) -> bytes:
    """The quantised network that a feature file was made by.

    Raises
    ------
    CacheRefused
        If it isn't there.
    """
    with FeatureFile(path) as file:
        if not file.quantised:
            raise CacheRefused(f"{path} lacks the quantised network that made it", _AGAIN)
        return file.quantised


def write_quantised(path: Path, network: bytes) -> None:
    """Keep a quantised network in a feature file, in place of what is there."""
    check_space(path, "a quantised network", len(network))
    with guard_writes(path), FeatureFile(path, writable=True) as file:
        file.replace_dataset(QUANTISED, np.frombuffer(network, np.uint8))


def to_digests(sha256: NDArray[np.str_]) -> Digests:
    """Hex digests as a uint8 array of shape (n, 32)."""
    return np.frombuffer(bytes.fromhex("".join(sha256.tolist())), np.uint8).reshape(-1, 32)


def to_hex(digests: Digests) -> list[str]:
    """A uint8 array of shape (n, 32) as hex digests."""
    text = digests.tobytes().hex()
    return [text[i : i + 64] for i in range(0, len(text), 64)]


def positions(wanted: Digests, have: Digests) -> NDArray[np.intp]:
    """Where each wanted digest stands in `have`, -1 where it does not; shape (len(wanted),)."""
    if np.array_equal(wanted, have):
        return np.arange(len(have), dtype=np.intp)
    where = {have[i].tobytes(): i for i in range(len(have))}
    return np.fromiter(
        (where.get(wanted[i].tobytes(), -1) for i in range(len(wanted))), np.intp, len(wanted)
    )


def checksums(digests: Digests, features: NDArray[Any]) -> NDArray[np.uint32]:
    """CRC-32 of each row's digest and vector, uint32 of shape (n,)."""
    rows = np.ascontiguousarray(features).view(np.uint8)  # (n, d * itemsize)
    return np.fromiter(
        (zlib.crc32(row, zlib.crc32(digest)) for digest, row in zip(digests, rows, strict=True)),
        np.uint32,
        count=len(rows),
    )


def damaged_rows(
    digests: Digests, features: NDArray[Any], stored: NDArray[np.uint32]
) -> NDArray[np.intp]:
    """Positions of the rows whose CRC-32 is not the stored one.

    The CRC of every row is only taken if `_agree` finds that something is wrong.
    """
    found = [np.empty(0, np.intp)]
    for start in range(0, len(features), ROWS_CHECKED):
        part = slice(start, start + ROWS_CHECKED)
        if not _agree(digests[part], features[part], stored[part]):
            differs = checksums(digests[part], features[part]) != stored[part]
            found.append(start + np.flatnonzero(differs))
    return np.concatenate(found)


def refuse_damaged(path: Path, key: Key, rows: Sequence[int], digests: Digests) -> CacheRefused:
    """The error for rows of a finished file that don't agree with their checksum.

    Parameters
    ----------
    path : Path
    key : Key
        Of the file.
    rows : sequence of int
        The damaged ones.
    digests : uint8 array of shape (n, 32)
        Their images' contents.
    """
    entry = Entry(path.parent.name, path, key, 0, 0, 0, 0.0)
    ids = _ids(path)
    contents = [digest.tobytes().hex() for digest in digests[:_SHOWN]]
    names = [ids.get(sha256, f"sha256 {sha256[:12]}…") for sha256 in contents]
    shown = ", ".join(f"row {row}: {name}" for row, name in zip(rows, names, strict=False))
    does = "doesn't fit its checksum" if len(rows) == 1 else "don't fit their checksums"
    count = f"{counted(len(rows), 'row')} {does}"
    more = ", …" if len(rows) > _SHOWN else ""
    return CacheRefused(
        f"{path} is damaged: {count} ({shown}{more})",
        f"{in_cache(('featcache', 'cache', 'verify', '--repair', '--data', entry.data), entry)}\n"
        f"{extract_commands([entry], read_origin(path.parent).source)}",
    )


def _lay_out(path: Path, key: Key, digests: Digests, dim: int) -> None:
    with h5py.File(path, "w", locking=False) as file:
        file.attrs["format"] = FORMAT
        file.attrs["key"] = key.json()
        file.attrs["created"] = datetime.now(UTC).isoformat(timespec="seconds")
        file.attrs["complete"] = False
        file.create_dataset("sha256", data=digests)
        for name, shape, dtype in (
            ("features", (len(digests), dim), key.dtype),
            ("done", (len(digests),), "uint8"),
            ("checksum", (len(digests),), "uint32"),
        ):
            # Space is taken and zeroed now: a disk that is too small says so before the first
            # forward pass.
            layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            layout.set_fill_time(h5py.h5d.FILL_TIME_ALLOC)
            file.create_dataset(name, shape, dtype, dcpl=layout)


def _open(path: Path, writable: bool) -> h5py.File:
    # Files under a final name never change, so that readers need no lock; writers hold
    # featcache's own.
    mode = "r+" if writable else "r"
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise CacheRefused(f"{path} is no file", "Move it out of the cache folder.")
        # A link may be read: some keep large files elsewhere. What it leads to isn't ours to write.
        if writable and path.is_symlink():
            raise CacheRefused(f"{path} is a link: it is not written through", "Delete the link.")
        check_seal(path, remove=writable)
        return h5py.File(path, mode, locking=False)
    except FileNotFoundError:
        if path.is_symlink():
            raise CacheRefused(f"{path} is a link that leads nowhere", "Delete the link.") from None
        raise
    except PermissionError:
        raise CacheDenied(
            f"no permission to open {path}",
            f"Ask its owner, or: chmod u+r{'w' * writable} {shlex.quote(str(path))}",
        ) from None
    except OSError as error:
        raise CacheRefused(
            f"{path} can't be opened: it is no HDF5 file or cut short ({error})", _AGAIN
        ) from None


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise CacheRefused(f"{path} is damaged: {error}", _AGAIN) from None


def _check_attributes(path: Path, file: h5py.File) -> Key:
    if "key" not in file.attrs or "format" not in file.attrs or "complete" not in file.attrs:
        raise CacheRefused(
            f"{path} was not written by featcache", "Move it out of the cache folder."
        )
    return read_key(str(file.attrs["key"]), str(path))


def _check_datasets(path: Path, file: h5py.File, key: Key) -> int:
    """The width of a vector, once the datasets have been found to fit the key and each other."""
    n, dim = plain_dataset(path, file, "features").shape
    expected = {
        "features": ((n, dim), key.dtype),
        "sha256": ((n, 32), "uint8"),
        "done": ((n,), "uint8"),
        "checksum": ((n,), "uint32"),
    }
    for name, row in ((TRAINED_ON, (32,)), (QUANTISED, ())):
        if file.get(name, getlink=True) is not None:
            expected[name] = ((*plain_dataset(path, file, name).shape[:1], *row), "uint8")
    for name, (shape, dtype) in expected.items():
        dataset = plain_dataset(path, file, name)
        if dataset.shape != shape or dataset.dtype != dtype:
            raise CacheRefused(f"{path}: its dataset {name!r} is of another shape or type", _AGAIN)
        # What is read at once: other datasets whole, of the features a row.
        at_once = dataset.nbytes // max(1, n) if name == "features" else dataset.nbytes
        beyond = dataset.nbytes and span(dataset)[1] > path.stat().st_size
        if beyond or is_hollow(path, at_once):
            raise CacheRefused(f"{path}: its dataset {name!r} is not all there", _AGAIN)
    return int(dim)


def plain_dataset(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset, refused if its bytes are not in this file, in one piece, as `_lay_out` has it.

    A link or another layout leads to other files, or to more bytes than any memory has.
    """
    link = file.get(name, getlink=True)
    if link is None:
        raise CacheRefused(f"{path} is damaged: it has no dataset {name!r}", _AGAIN)
    if not isinstance(link, h5py.HardLink):
        raise CacheRefused(f"{path}: its dataset {name!r} is a link to elsewhere", _AGAIN)
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise CacheRefused(f"{path}: its dataset {name!r} is of another shape or type", _AGAIN)
    made = dataset.id.get_create_plist()
    if made.get_layout() != h5py.h5d.CONTIGUOUS or made.get_nfilters():
        raise CacheRefused(f"{path}: its dataset {name!r} is packed, or in pieces", _AGAIN)
    if made.get_external_count():
        raise CacheRefused(f"{path}: its dataset {name!r} is kept in another file", _AGAIN)
    if dataset.id.get_storage_size() != dataset.nbytes:
        raise CacheRefused(f"{path}: its dataset {name!r} is not all there", _AGAIN)
    return dataset


def span(dataset: h5py.Dataset) -> tuple[int, int]:
    """Where in its file a dataset begins and ends."""
    begin = dataset.id.get_offset() or 0  # None for one without rows
    return begin, begin + dataset.nbytes


def _put(dataset: h5py.Dataset, rows: NDArray[np.intp], values: NDArray[Any]) -> None:
    """Write sorted rows, run by run: HDF5 is slow at scattered ones."""
    if not len(rows):
        return
    starts = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1] + 1]))
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
        dataset[rows[start] : rows[stop - 1] + 1] = values[start:stop]


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _agree(digests: Digests, features: NDArray[Any], stored: NDArray[np.uint32]) -> bool:
    """Whether the sums (XOR) of rows agree with the sums of their stored CRCs.

    The CRC of a sum of rows of one length is the sum of their CRCs; for an even number of rows
    plus that of a row of zeros. The rows stand in a grid, of which each line and each column is
    summed: damage to one, two or three rows is found as surely as by the CRC of each row, and to
    more unless the same bits differ in four rows at the corners of a rectangle. Two rows that
    have changed places are found too.
    """
    vectors = np.ascontiguousarray(features)
    size = next(size for size in (8, 4, 2, 1) if vectors[:1].nbytes % size == 0)
    words = vectors.view(f"u{size}")  # (n, d * itemsize / size)
    odd = _sums(np.ones((len(words), 1), np.uint32))[:, 0]  # 1 for a sum of an odd number of rows
    zeros = np.uint32(zlib.crc32(bytes(digests.shape[1] + vectors[:1].nbytes)))
    expected = _sums(stored[:, None])[:, 0] ^ (zeros * (1 - odd))
    return np.array_equal(
        checksums(_sums(digests.view(np.uint64)).view(np.uint8), _sums(words)), expected
    )


def _sums(rows: NDArray[Any]) -> NDArray[Any]:
    """XOR of the rows in each line of the grid, and in each of its columns."""
    short = -len(rows) % _LINE
    if short:
        rows = np.concatenate([rows, np.zeros((short, rows.shape[1]), rows.dtype)])
    grid = rows.reshape(-1, _LINE, rows.shape[1])  # (lines, columns, width)
    return np.concatenate(
        [np.bitwise_xor.reduce(grid, axis=1), np.bitwise_xor.reduce(grid, axis=0)]
    )


def _ids(path: Path) -> dict[str, str]:
    """sha256 -> id of the images beside a feature file, as far as they are listed."""
    try:
        images = read_images_csv(path.with_name(IMAGES_CSV), path.parent.name)
    except (OSError, DataError):
        return {}
    return dict(zip(images.sha256.tolist(), images.ids.tolist(), strict=True))
