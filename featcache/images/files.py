"""Images in files: read one, digest all, and skip what an earlier run has digested."""

from __future__ import annotations

import difflib
import errno
import importlib.util
import logging
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.errors import DataError, UnknownData, counted, first_line
from featcache.hashing import sha256_bytes, sha256_file
from featcache.images.manifest import IMAGES_CSV, Images, make_images, read_images_csv

log = logging.getLogger("featcache")

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .dib .tif .tiff .gif .webp .ppm .pgm .pbm .pnm .tga .jp2 .avif"
    .split()
)  # fmt: skip

HEIF = frozenset((".heic", ".heif", ".hif"))  # read if pillow-heif is installed

# A file changed again within the clock's grain keeps its time stamp, so that a digest taken
# that soon after a change can't be trusted later (git calls such files racily clean).
# FAT counts in steps of two seconds.
GRAIN_NS = 2_000_000_000

_CLASS_DEPTH = 2  # split/class/

_LARGEST = 4 << 30  # bytes: more than any image that is no decompression bomb


def from_files(
    name: str,
    paths: Sequence[str | Path],
    *,
    ids: Sequence[str],
    labels: Sequence[str],
    groups: Sequence[str] | None = None,
    split: Sequence[str] | None = None,
    cache: Path | None = None,
    rehash: bool = False,
    digests: bool = True,
    source: str = "",
) -> Images:
    """The manifest of image files; those that can't be read are left out, with a warning.

    Parameters
    ----------
    name : str
        The data set's name.
    paths : sequence of str or Path
        One for each image; strings are quicker by far when there are many.
    ids, labels, groups, split : sequence of str
        One for each image; groups and split may be left out.
    cache : Path, optional
        The cache folder, whose images.csv knows the digests of unchanged files.
    rehash : bool, default False
        Take every digest again.
    digests : bool, default True
        False: read no file, and take each for a content of its own.
    source : str
        What the user named.
    """
    check_utf8(ids)
    scan_ns = time.time_ns()
    bad: dict[int, str] = {}  # row -> what is wrong with its file
    size, mtime_ns = _sizes_and_times(paths, bad)
    known = recall(name, ids, size, mtime_ns, None if rehash else cache) if digests else [
        sha256_bytes(id_.encode()) for id_ in ids
    ]  # fmt: skip

    def digest(row: int) -> str:
        try:
            return "" if row in bad else sha256_file(Path(paths[row]))
        except OSError as error:
            bad[row] = _why(error)
            return ""

    take_digests(known, digest, min(8, os.cpu_count() or 1))
    if bad:
        _say_left_out(paths, bad)
        good = [row for row in range(len(paths)) if row not in bad]
        size, mtime_ns = size[good], mtime_ns[good]
        paths = [paths[row] for row in good]
        known = [known[row] for row in good]
        ids, labels = ([column[row] for row in good] for column in (ids, labels))
        groups, split = (
            None if column is None else [column[row] for row in good] for column in (groups, split)
        )
    return make_images(
        name,
        ids,
        known,
        labels=labels,
        groups=groups,
        split=split,
        read=FileReader(paths),
        size=size,
        mtime_ns=np.where(mtime_ns > scan_ns - GRAIN_NS, 0, mtime_ns),
        source=source,
        root=_root(paths, ids),
    )


class FileReader:
    """Reads the file of a row."""

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self._paths = paths

    def __call__(self, row: int) -> bytes:
        return read_file(self._paths[row])

    def part(self, rows: NDArray[np.intp]) -> FileReader:
        """The same for these rows alone."""
        return FileReader([self._paths[row] for row in rows.tolist()])


def _root(paths: Sequence[str | Path], ids: Sequence[str]) -> str:
    """The folder that the ids are relative to; "" where they are no paths below one."""
    if not ids or not Path(paths[0]).as_posix().endswith(ids[0]):
        return ""
    if Path(ids[0]).is_absolute():
        return Path(ids[0]).anchor
    root = Path(paths[0]).as_posix().removesuffix(ids[0])
    return str(Path(root).absolute()) if root.endswith("/") else ""


def recall(
    name: str,
    ids: Sequence[str],
    size: NDArray[np.int64],
    mtime_ns: NDArray[np.int64],
    cache: Path | None,
) -> list[str]:
    """The digests of images whose size and time of change are as they were; "" for others.

    They are in the cache folder's images.csv, if an earlier run has written one.
    """
    digests = [""] * len(ids)
    path = None if cache is None else cache / name / IMAGES_CSV
    if path is None or not path.is_file():
        return digests
    known = read_images_csv(path, name)
    memo = {
        id_: (s, t, digest)
        for id_, s, t, digest in zip(
            known.ids.tolist(), known.size.tolist(), known.mtime_ns.tolist(),
            known.sha256.tolist(), strict=True,
        )
    }  # fmt: skip
    for row, (id_, s, t) in enumerate(zip(ids, size.tolist(), mtime_ns.tolist(), strict=True)):
        old_size, old_time, digest = memo.get(id_, (0, 0, ""))
        if (s, t) == (old_size, old_time) and t:
            digests[row] = digest
    return digests


def take_digests(digests: list[str], digest: Callable[[int], str], threads: int) -> None:
    """Take those that are still "", some at a time; `digest` gives that of a row."""
    todo = [row for row, known in enumerate(digests) if not known]
    with ThreadPoolExecutor(threads) as pool:
        for row, found in zip(todo, pool.map(digest, todo), strict=True):
            digests[row] = found


def _changed_ns(stat_: os.stat_result) -> int:
    """When a file was last changed, or put in another's place.

    A file unpacked or copied over another may bring the same size and time of modification with
    it; the time of its inode's change it can't bring.
    """
    return max(stat_.st_mtime_ns, stat_.st_ctime_ns)


def read_file(path: str | Path) -> bytes:
    """The bytes of an image file.

    Raises
    ------
    OSError
        If it can't be read, or is no image's: a pipe, which is never opened, or a file of many
        gigabytes.
    """
    check_file(path)
    return Path(path).read_bytes()


def check_file(path: str | Path) -> os.stat_result:
    """What the system says of an image file; raises as `read_file`, and doesn't open it."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    if found.st_size > _LARGEST:
        raise OSError(errno.EFBIG, f"its {found.st_size / 1e9:,.0f} GB are more than an image has")
    return found


def _sizes_and_times(
    paths: Sequence[str | Path], bad: dict[int, str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Size and time of change of each file, 0 for those that are noted in `bad`."""
    size, mtime_ns = np.zeros(len(paths), np.int64), np.zeros(len(paths), np.int64)
    for row, path in enumerate(paths):
        try:
            found = check_file(path)
        except OSError as error:
            bad[row] = _why(error)
        else:
            if os.access(path, os.R_OK):
                size[row], mtime_ns[row] = found.st_size, _changed_ns(found)
            else:
                bad[row] = os.strerror(errno.EACCES)
    return size, mtime_ns


def _why(error: OSError) -> str:
    return error.strerror or first_line(error)


def _say_left_out(paths: Sequence[str | Path], bad: Mapping[int, str]) -> None:
    """Warn of the files that can't be read; refuse if there is no other."""
    first = min(bad)
    what = (
        f"{len(bad)} of {counted(len(paths), 'image file')} can't be read, for instance "
        f"{paths[first]}: {bad[first]}"
    )
    remedy = "Look at its permissions, and whether it is a link to nowhere; then mend or remove it."
    if len(bad) == len(paths):
        raise DataError(what, remedy)
    log.warning("left out: %s. %s", what, remedy)


def check_utf8(ids: Sequence[str]) -> None:
    odd = [id_ for id_ in ids if not _is_utf8(id_)]
    if odd:
        raise DataError(
            f"{counted(len(odd), 'file name')} not valid UTF-8, for instance {odd[0]!a}",
            "Rename them, for instance with convmv.",
        )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def list_images(root: Path) -> list[str]:
    """Paths of the image files below `root`, relative to it with forward slashes, sorted.

    Follows links to folders, but to none that the link itself is in; leaves out hidden files and
    folders. A folder that several links lead to comes once below each folder of the first two
    levels, which are classes and splits: that it is in two of them is found as a leak.
    """
    found: list[str] = []
    skipped: list[str] = []
    seen: set[tuple[str, ...]] = set()
    around: dict[str, frozenset[str]] = {}  # folder -> the real folders that it is in, and its own
    for folder, subfolders, files in os.walk(root, onerror=_say_unlisted, followlinks=True):
        below = os.path.relpath(folder, root).replace(os.sep, "/")
        real = os.path.realpath(folder)
        outside = around.get(below.rpartition("/")[0] or ".", frozenset())
        once = (*below.split("/")[:_CLASS_DEPTH], real)
        if real in outside or once in seen:
            subfolders.clear()
            continue
        seen.add(once)
        around[below] = outside | {real}
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        prefix = "" if below == "." else f"{below}/"
        for file in files:
            (found if is_image(file) else skipped).append(prefix + file)
    say_skipped(skipped, root)
    return sorted(found)


def say_skipped(names: Iterable[str], where: object) -> None:
    """Say how many files are no images by their ending; hidden ones are not spoken of."""
    seen = [name for name in names if not name.startswith(".") and "/." not in name]
    if not seen:
        return
    endings = Counter(os.path.splitext(name)[1].lower() or "without an ending" for name in seen)
    shown = [f"{count:,} {ending}" for ending, count in endings.most_common(_SHOWN)]
    more = ["…"] if len(endings) > _SHOWN else []
    text = ", ".join(shown + more)
    log.info("%s: skipped %s: %s", where, counted(len(seen), "file"), text)
    if heif := [name for name in seen if os.path.splitext(name)[1].lower() in HEIF]:
        count = counted(len(heif), "HEIC image")
        log.warning("%s left out, for instance %s: %s", count, heif[0], NEEDS_HEIF)


_SHOWN = 8
NEEDS_HEIF = 'reading HEIC needs pillow-heif: pip install "featcache[heif]"'


@cache
def suffixes() -> frozenset[str]:
    """The endings of the images that can be read here."""
    return SUFFIXES | HEIF if importlib.util.find_spec("pillow_heif") else SUFFIXES


def _say_unlisted(error: OSError) -> None:
    log.warning("left out: %s can't be listed: %s", error.filename, _why(error))


def near_paths(path: str | Path) -> str:
    """A sentence naming what is beside a path that is not there and is called nearly so, or ""."""
    missing = Path(path).expanduser()
    while not missing.parent.exists() and missing.parent != missing:
        missing = missing.parent
    try:
        names = [one.name for one in missing.parent.iterdir() if not one.name.startswith(".")]
    except OSError:
        return ""
    beside = {name.lower(): name for name in names}
    near = difflib.get_close_matches(missing.name.lower(), beside, cutoff=0.6)
    rest = Path(path).expanduser().relative_to(missing)
    shown = [str(missing.parent / beside[name] / rest) for name in near]
    return f"Did you mean {' or '.join(shown)}?" if shown else ""


def is_image(name: str) -> bool:
    """Whether a file's name, or path with forward slashes, is an image's and nothing is hidden."""
    hidden = name.startswith(".") or "/." in name
    return not hidden and os.path.splitext(name)[1].lower() in suffixes()


# Words that say how to split, and no column: by equal images alone, or by the data's own groups.
KINDS = ("image", "subject")


@dataclass(frozen=True)
class SourceOptions:
    """What `open_images` was asked besides the source.

    Attributes
    ----------
    source : str
        What the user named.
    name : str or None
        The data set's name.
    root : Path, str or None
        The folder, or its URL, that a table's paths are relative to; or the folder where
        torchvision keeps its data.
    group : str or None
        What says which images belong together.
    cache : Path or None
        The cache folder, which knows the digests of unchanged files.
    rehash : bool
        Take every digest again.
    download : bool
        Let torchvision download a data set that is not there.
    columns : mapping of str to str
        "path", "label", "split" or "group" -> what a table calls it.
    class_map : Path, str or None
        A file of labels and their readable names.
    digests : bool
        False: files are listed only, see `from_files`.
    """

    source: str
    name: str | None = None
    root: Path | str | None = None
    group: str | None = None
    cache: Path | None = None
    rehash: bool = False
    download: bool = True
    columns: Mapping[str, str] = field(default_factory=dict)
    class_map: Path | str | None = None
    digests: bool = True

    @property
    def words(self) -> tuple[str, ...]:
        """What was asked besides source and name, as options of the command line."""
        column = None if self.group in KINDS else self.group
        columns = ",".join(f"{role}={name}" for role, name in self.columns.items())
        options = {"--data-root": self.root, "--group": column, "--columns": columns,
                   "--class-map": self.class_map}  # fmt: skip
        return tuple(str(word) for pair in options.items() if pair[1] for word in pair)

    def refuse_group(self, kind: str) -> None:
        """For a source that has no columns to group by."""
        if self.group not in (None, *KINDS):
            raise UnknownData(
                f"{kind} has no column {self.group!r} to group by",
                "Groups by column need a CSV or Parquet file: path,label,group.",
            )
