"""FeatureFile: one backbone's vectors in HDF5, written so that a kill loses at most a batch.

Datasets: `features` (n, d) float32 or float16; `sha256` (n, 32) uint8, the content of each row's
image; `done` (n,) uint8; `checksum` (n,) uint32, CRC-32 of each row's sha256 and vector.
Attributes: `format`, `key` (canonical JSON), `complete`, `created`, and what made it.

Contiguous, allocated when created, default library version: such a file can be opened again
after a SIGKILL at any moment. A row is written, flushed, and only then marked as done.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from featcache.atomic import check_space, guard_writes, replacing, sync
from featcache.errors import CacheDenied, CacheRefused, counted
from featcache.store.checksum import ROWS_CHECKED, Digests, checksums, damaged_rows, refuse_damaged
from featcache.store.key import FORMAT, Key, read_key

_ROWS_AT_ONCE = 8192
_DAMAGE = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError)  # all h5py's
_AGAIN = "Delete it and run the extract command again."


def to_digests(sha256: NDArray[np.str_]) -> Digests:
    """Hex digests as a uint8 array of shape (n, 32)."""
    return np.frombuffer(bytes.fromhex("".join(sha256.tolist())), np.uint8).reshape(-1, 32)


def to_hex(digests: Digests) -> list[str]:
    """A uint8 array of shape (n, 32) as hex digests."""
    text = digests.tobytes().hex()
    return [text[i : i + 64] for i in range(0, len(text), 64)]


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
        self._file = _open(path, "r+" if writable else "r")
        try:
            self.key = _check_attributes(path, self._file)
            self.dim = _check_datasets(path, self._file, self.key)
            self.digests: Digests = self._file["sha256"][...]
            self.complete = bool(self._file.attrs["complete"])
        except _DAMAGE as error:
            self._file.close()
            raise CacheRefused(f"{path} is damaged: {error}", _AGAIN) from None
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
    def attributes(self) -> dict[str, Any]:
        """What is recorded besides the key: versions, device, seconds, created, …"""
        return {name: _plain(value) for name, value in self._file.attrs.items() if name != "key"}

    def done(self) -> NDArray[np.bool_]:
        """Which rows are written, shape (n,)."""
        return np.asarray(self._file["done"][...] == 1)

    def read(self, rows: NDArray[np.intp], out: NDArray[Any]) -> None:
        """Read rows into `out`, an array of shape (len(rows), dim), and check each.

        Raises
        ------
        CacheRefused
            If one of them doesn't agree with its checksum.
        """
        source, stored = self._file["features"], self._file["checksum"][...]
        in_order = bool((rows == np.arange(len(rows))).all())
        # Span by span, in the file's order, then choose: many times faster than HDF5's choosing.
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        buffer = np.empty((min(ROWS_CHECKED, len(self)), self.dim), source.dtype)
        damaged = [np.empty(0, np.intp)]
        for start in range(0, len(self), ROWS_CHECKED):
            here = slice(*np.searchsorted(ordered, (start, start + ROWS_CHECKED)))
            part = ordered[here]
            if not len(part):
                continue
            low, high = int(part[0]), int(part[-1]) + 1
            span = buffer[: high - low]
            source.read_direct(span, np.s_[low:high])
            bad = low + damaged_rows(self.digests[low:high], span, stored[low:high])
            damaged.append(bad[np.isin(bad, part)])
            if in_order:
                out[low:high] = span
            else:
                out[order[here]] = span[part - low]
        found = np.concatenate(damaged)
        if len(found):
            raise refuse_damaged(self.path, self.key, found.tolist(), self.digests[found])

    def good(self) -> NDArray[np.bool_]:
        """Which rows are done and agree with their checksum, shape (n,)."""
        good = self.done()
        for start in range(0, len(self), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
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
            self.close()
            sync(self.path)
            self.path.replace(final)
            sync(final.parent)

    def _without(self, leave_out: NDArray[np.bool_]) -> FeatureFile:
        rows = np.flatnonzero(~leave_out)
        fresh = create(
            self.path.with_name(f"{self.path.name}.new"), self.key, self.digests[rows], self.dim
        )
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = rows[start : start + _ROWS_AT_ONCE]
            values = np.empty((len(part), self.dim), self.key.dtype)
            self.read(part, values)
            fresh.write(np.arange(start, start + len(part)), values)
        fresh.annotate(self.attributes)
        if "trained_on" in self._file:  # see store.trained_on
            fresh._file.create_dataset("trained_on", data=self._file["trained_on"][...])
        return fresh

    def _refuse_infinite(self) -> None:
        for start in range(0, len(self), _ROWS_AT_ONCE):
            rows = self._file["features"][start : start + _ROWS_AT_ONCE]
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


def _open(path: Path, mode: str) -> h5py.File:
    # Files under a final name never change, so that readers need no lock; writers hold
    # featcache's own.
    try:
        return h5py.File(path, mode, locking=False)
    except FileNotFoundError:
        raise
    except PermissionError:
        raise CacheDenied(
            f"no permission to open {path}",
            f"Ask its owner, or: chmod u+r{'w' * (mode == 'r+')} {shlex.quote(str(path))}",
        ) from None
    except OSError as error:
        raise CacheRefused(
            f"{path} can't be opened: it is no HDF5 file or cut short ({error})", _AGAIN
        ) from None


def _check_attributes(path: Path, file: h5py.File) -> Key:
    if "key" not in file.attrs or "format" not in file.attrs or "complete" not in file.attrs:
        raise CacheRefused(
            f"{path} was not written by featcache", "Move it out of the cache folder."
        )
    return read_key(str(file.attrs["key"]), str(path))


def _check_datasets(path: Path, file: h5py.File, key: Key) -> int:
    """The width of a vector, once the datasets have been found to fit the key and each other."""
    n, dim = file["features"].shape
    for name, shape, dtype in (
        ("features", (n, dim), key.dtype),
        ("sha256", (n, 32), "uint8"),
        ("done", (n,), "uint8"),
        ("checksum", (n,), "uint32"),
    ):
        dataset = file[name]
        if (
            not isinstance(dataset, h5py.Dataset)
            or dataset.shape != shape
            or dataset.dtype != dtype
        ):
            raise CacheRefused(f"{path}: its dataset {name!r} is of another shape or type", _AGAIN)
        # As `_lay_out` has it: a packed or sparse one may be larger than any memory.
        if dataset.id.get_storage_size() != dataset.nbytes:
            raise CacheRefused(f"{path}: its dataset {name!r} is packed, or not all there", _AGAIN)
    return int(dim)


def _put(dataset: h5py.Dataset, rows: NDArray[np.intp], values: NDArray[Any]) -> None:
    """Write sorted rows, run by run: HDF5 is slow at scattered ones."""
    if not len(rows):
        return
    starts = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1] + 1]))
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
        dataset[rows[start] : rows[stop - 1] + 1] = values[start:stop]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def positions(wanted: Digests, have: Digests) -> NDArray[np.intp]:
    """Where each wanted digest stands in `have`, -1 where it does not; shape (len(wanted),)."""
    if np.array_equal(wanted, have):
        return np.arange(len(have), dtype=np.intp)
    where = {have[i].tobytes(): i for i in range(len(have))}
    return np.fromiter(
        (where.get(wanted[i].tobytes(), -1) for i in range(len(wanted))), np.intp, len(wanted)
    )


NAME = "trained_on"


def read_trained_on(path: Path) -> frozenset[str]:
    """The sha256 of the images that trained the backbone of a feature file; most have none.

    Raises
    ------
    CacheRefused
        If the file holds them in another shape.
    """
    with h5py.File(path, "r", locking=False) as file:
        if NAME not in file:
            return frozenset()
        digests = file[NAME][...]
        if digests.ndim != 2 or digests.shape[1] != 32 or digests.dtype != np.uint8:
            raise CacheRefused(
                f"{path}: its dataset {NAME!r} is of another shape or type",
                "Delete it and run the extract command again.",
            )
        return frozenset(to_hex(digests))


def write_trained_on(path: Path, sha256: Iterable[str]) -> None:
    """Record in a feature file which images trained its backbone, in place of what is there.

    Parameters
    ----------
    path : Path
    sha256 : iterable of str
        Hex digests of the images' bytes.
    """
    digests = to_digests(np.array(sorted(set(sha256)), np.str_))  # (n, 32)
    with h5py.File(path, "r+", locking=False) as file:
        if NAME in file:
            del file[NAME]
        file.create_dataset(NAME, data=digests)
