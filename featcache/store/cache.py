"""Cache: the folder of feature files, one folder in it for each data set; what is in it."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.atomic import guard_writes
from featcache.errors import (
    CacheMissing,
    CacheRefused,
    CacheUnwritable,
    DataError,
    counted,
    unknown,
)
from featcache.images.dhash import Hashes, no_hashes
from featcache.images.manifest import (
    IMAGES_CSV,
    Images,
    check_name,
    read_images_csv,
    write_images_csv,
)
from featcache.images.remote import is_url, without_secrets
from featcache.images.sources import read_origin
from featcache.store.failures import read_failures, write_failures
from featcache.store.feature_file import (
    Digests,
    FeatureFile,
    positions,
    read_trained_on,
    to_digests,
)
from featcache.store.features import (
    NO_VIEW,
    Features,
    canonical,
    columns_of,
    find_views,
    read_tables,
)
from featcache.store.key import Entry, Key
from featcache.store.spec import (
    commands_for_absent,
    extract_commands,
    means,
    names_of,
    parse_spec,
    split_key,
)

log = logging.getLogger("featcache")

FAILED_CSV = "failed.csv"


class Cache:
    """The folder that holds every data set's features.

    Parameters
    ----------
    folder : str or Path, default "cache"
        Made when something is first written.

    Raises
    ------
    CacheUnwritable
        For the address of an object store.
    """

    def __init__(self, folder: str | Path = "cache") -> None:
        if is_url(folder):
            raise CacheUnwritable(
                f"the cache can't be at {without_secrets(str(folder))}: HDF5 files are written in "
                "place, in a folder",
                "Name a folder, on a disk or a mounted file system. Images may be at a URL "
                "(--data), and what workers have embedded may travel through one (--parts); for a "
                "copy there, upload the finished folder, or what featcache cache export writes.",
            )
        self.folder = Path(folder)

    def data_sets(self) -> list[str]:
        """Names of the data sets, sorted: folders with feature files, or a list of images.

        A folder that no data set can be called like is warned of.
        """
        found = (self.folder.glob(f"*/{pattern}") for pattern in (IMAGES_CSV, "[!.]*.h5"))
        names = []
        for name in sorted({path.parent.name for paths in found for path in paths}):
            try:
                names.append(check_name(name))
            except DataError as error:
                log.warning("left out: %s", error.problem)
        return names

    def has_images(self, data: str) -> bool:
        """Whether the list of a data set's images is there."""
        return (self.folder / data / IMAGES_CSV).is_file()

    def path(self, data: str, key: Key) -> Path:
        """Where the features of a data set under a key stand, or would stand."""
        return self.folder / check_name(data) / f"{key.stem}.h5"

    def partial(self, data: str, key: Key) -> Path:
        """Where they are collected until all are there."""
        final = self.path(data, key)
        return final.with_name(f".{final.name}.partial")

    def has(self, data: str, key: Key) -> bool:
        """Whether there is a file under this key, finished or in progress."""
        return self.path(data, key).is_file() or self.partial(data, key).is_file()

    def entries(self, data: str) -> list[Entry]:
        """The finished files of a data set, oldest first; unreadable ones are warned of."""
        found = []
        for path in sorted((self.folder / check_name(data)).glob("[!.]*.h5")):
            try:
                with _finished(path) as file:
                    stat = path.stat()
                    found.append(
                        Entry(data, path, file.key, len(file), file.dim, stat.st_size,
                              stat.st_mtime)
                    )  # fmt: skip
            except FileNotFoundError:  # pruned meanwhile
                continue
            except CacheRefused as error:
                log.warning("left out: %s", error.problem)
        return sorted(found, key=lambda entry: (entry.mtime, entry.path.name))

    def images(self, data: str | None = None) -> Images:
        """The manifest of a data set as it was extracted; by default of the only one.

        Raises
        ------
        CacheMissing
            If nothing was extracted, or the list of images was deleted.
        UnknownName
            If there is no such data set, or there are several and none is named.
        """
        known = self.data_sets()
        if not known:
            raise CacheMissing(
                f"nothing was extracted into {self.folder}/ yet",
                commands_for_absent((), "digits", "", "resnet18", str(self.folder)),
            )
        if data is None and len(known) > 1:
            raise unknown("data set", "", known, "Say which with --data.")
        name = known[0] if data is None else data
        if name not in known:
            raise unknown("data set in the cache", name, known)
        path = self.folder / name / IMAGES_CSV
        source, _, options = read_origin(path.parent)
        if not self.has_images(name):
            raise CacheMissing(
                f"{path} is gone: nothing says which rows are which images",
                extract_commands(self.entries(name), source, options=options),
            )
        return replace(read_images_csv(path, name), source=source or name, options=options)

    def note_images(self, images: Images) -> None:
        """Write the manifest beside its features; a dHash that an earlier one has is kept.

        Parameters
        ----------
        images : Images
        """
        path = self.folder / images.name / IMAGES_CSV
        images = replace(images, dhash=self.dhash(images))
        try:
            with guard_writes(path):
                write_images_csv(path, images)
        except CacheUnwritable:
            if not _lists(path, images):
                raise

    def dhash(self, images: Images) -> Hashes:
        """The dHash of each image by its content: its own, or the one that images.csv has.

        Parameters
        ----------
        images : Images

        Returns
        -------
        uint8 array of shape (n, 32), or (0, 32) if none is known; zeros where one is not
        """
        if len(images.dhash) and images.dhash.any(axis=1).all():
            return images.dhash
        known = [images]
        with suppress(OSError, DataError):  # there is no list, or it is to be written anew
            known.append(read_images_csv(self.folder / images.name / IMAGES_CSV, images.name))
        hashes = np.concatenate([one.dhash for one in known if len(one.dhash)] or [no_hashes()])
        sha256 = [one.sha256 for one in known if len(one.dhash)]
        there = hashes.any(axis=1)  # (k,)
        if not there.any():
            return no_hashes()
        have = to_digests(np.concatenate(sha256)[there])
        where = positions(to_digests(images.sha256), have)  # (n,)
        found = np.where(where[:, None] >= 0, hashes[there][where], 0).astype(np.uint8)  # (n, 32)
        return found if found.any() else no_hashes()

    def missing(self, data: str, key: Key, digests: Digests) -> NDArray[np.bool_]:
        """Which of these images have no row under a key in a data set's finished file.

        Parameters
        ----------
        data : str
        key : Key
        digests : uint8 array of shape (n, 32)

        Returns
        -------
        bool array of shape (n,)

        Raises
        ------
        CacheRefused
            If the file is damaged, or another key's.
        """
        path = self.path(data, key)
        if not path.is_file():
            return np.ones(len(digests), np.bool_)
        with _finished(path) as file:
            _check_key(file, key)
            return positions(digests, file.digests) < 0

    def known_dim(self, key: Key) -> int | None:
        """Width of the vectors under this key, if any file of the cache holds some."""
        for path in sorted(self.folder.glob(f"*/{key.stem}.h5")):
            try:
                with FeatureFile(path) as file:
                    if file.key == key:
                        return file.dim
            except CacheRefused as error:
                log.warning("not reused: %s", error.problem)
        return None

    def failed(self, data: str) -> dict[str, str]:
        """sha256 -> what was wrong, for those of a data set's images that can't be decoded.

        Parameters
        ----------
        data : str
        """
        rows = read_failures(self.folder / data / FAILED_CSV)
        return {row[1]: row[3] for row in rows if len(row) == 4 and row[2] == "decode"}

    def note_failed(self, images: Images, problems: Mapping[int, tuple[str, str]]) -> None:
        """Write failed.csv beside the features; without problems there is none.

        Parameters
        ----------
        images : Images
        problems : mapping of int to (str, str)
            Row of the manifest -> kind, "decode" or "read", and what is wrong. Images that are
            `absent` are added, as "missing".
        """
        write_failures(self.folder / images.name / FAILED_CSV, images, problems)

    def choose(
        self, data: str | Images, backbone: Sequence[str] = (), view: Sequence[str] = ()
    ) -> list[Entry]:
        """The finished files that stand for these backbones.

        Parameters
        ----------
        data : str or Images
            The data set, or its name. Images that were opened anew are named in remedies.
        backbone : sequence of str
            Names, specs such as `vit_b_16:size=384`, or `name@key` with the first digits of a
            key; by default every backbone that the data set has. Of several files that fit the
            newest is taken.
        view : sequence of str, default ()
            Views that are to be loaded too, for the remedy.

        Raises
        ------
        CacheMissing
            If a backbone was not extracted for this data set.
        """
        name = data if isinstance(data, str) else data.name
        source, _, options = read_origin(self.folder / name)
        if isinstance(data, Images) and data.can_read:
            source, options = data.source, data.options
        known = self.entries(name)
        return choose(known, name, str(self.folder), source, backbone, view, options)

    def features(
        self, images: Images, entries: Sequence[Entry], view: Sequence[str] = (),
        lazy: bool = False,
    ) -> Features:  # fmt: skip
        """Load the vectors of these images, one block for each entry, aligned by content.

        The blocks stand in the order of the backbones' names, whatever that of the entries is.

        Left out with a warning are images that failed.csv lists, and those that an extraction is
        still to embed, be it under way or interrupted: readers don't wait for it.

        Parameters
        ----------
        images : Images
        entries : sequence of Entry
            From `choose`.
        view : sequence of str, default ()
            Names such as "hflip": each adds the vectors of all images seen so as further rows,
            after those of the images themselves.
        lazy : bool, default False
            Leave the vectors in their files: X is a `LazyRows`, which reads rows when asked.

        Raises
        ------
        CacheMissing
            If a view was not extracted.
        CacheRefused
            If an image has no vector, and no extraction of it was begun.
        """
        entries = _in_order(entries)
        views, tables = (NO_VIEW, *dict.fromkeys(view)), [entries]
        if view:
            tables += find_views(self.entries(images.name), entries, views[1:], images)
        digests = to_digests(images.sha256)
        files = [entry for table in tables for entry in table]
        # Looked at before the files: an extraction that ends in between leaves none absent.
        begun = [self.partial(images.name, entry.key).exists() for entry in files]
        where = []
        for entry in files:
            with _finished(entry.path) as file:
                where.append(positions(digests, file.digests))
        absent = np.any([w < 0 for w in where], axis=0)
        if absent.any():
            waited_for = np.any([w < 0 for w, b in zip(where, begun, strict=True) if not b], axis=0)
            self._check_absent(images, absent, absent & ~waited_for, entries, views[1:])
        if absent.all():
            raise CacheRefused(
                f"not one of {counted(len(images), 'image')} of {images.name} has a vector"
            )
        keep, dhash = np.flatnonzero(~absent), self.dhash(images)
        seen = tuple(read_trained_on(entry.path) for entry in entries)
        return Features(
            X=read_tables(tables, where, keep, digests[keep], lazy),
            **columns_of(images, keep, views),
            blocks=tuple(entry.dim for entry in entries),
            names=tuple(_names(entries)),
            keys=tuple(entry.key.digest for entry in entries),
            data=images.name,
            trained_on=seen if any(seen) else (),
            origins=tuple(entry.key for entry in entries),
            quantised={e.key.digest: e.path for e in entries if e.key.calibration},
            dhash=np.tile(dhash[keep], (len(views), 1)) if len(dhash) else dhash,
        )

    def _check_absent(
        self, images: Images, absent: NDArray[np.bool_], begun: NDArray[np.bool_],
        entries: Sequence[Entry], view: Sequence[str],
    ) -> None:  # fmt: skip
        """Refuse images without a vector, unless they can't be decoded or are `begun`."""
        known_bad = self.failed(images.name)
        bad = np.array([sha256 in known_bad for sha256 in images.sha256.tolist()], np.bool_)
        rows = np.flatnonzero(absent & ~bad)
        if len(rows):
            what = (
                f"{len(rows)} of {counted(len(images), 'image')} of {images.name} have no vector "
                f"yet (for instance {images.ids[rows[0]]})"
            )
            commands = extract_commands(entries, images.source, view, images.options)
            if not begun[rows].all():
                raise CacheRefused(what, commands)
            log.warning(
                "%s and are left out: their extraction is under way, or was interrupted. Go on "
                "with it: %s", what, commands,
            )  # fmt: skip
        if (absent & bad).any():
            log.warning(
                "%s: %s; those that failed are left out (%s)",
                images.name,
                Coverage.of(images, ~absent, known_bad),
                self.folder / images.name / FAILED_CSV,
            )


@dataclass(frozen=True)
class Coverage:
    """How many images of a data set have a vector.

    Attributes
    ----------
    found : int
        Images in the manifest, whatever is wrong with them.
    embedded : int
        Those that have a vector.
    distinct : int
        Different contents among these: equal images share one vector.
    failed : int
        Those without, because they can't be decoded.
    """

    found: int
    embedded: int
    distinct: int
    failed: int

    @classmethod
    def of(cls, images: Images, there: NDArray[np.bool_], failed: Container[str]) -> Coverage:
        """Count.

        Parameters
        ----------
        images : Images
        there : bool array of shape (n,)
            Which of them have a vector.
        failed : container of str
            sha256 of what can't be decoded.
        """
        absent = images.sha256[~there].tolist()
        return cls(
            found=len(images),
            embedded=int(there.sum()),
            distinct=len(set(images.sha256[there].tolist())),
            failed=sum(sha256 in failed for sha256 in absent),
        )

    @property
    def missing(self) -> int:
        """Images that an extraction would embed."""
        return self.found - self.embedded - self.failed

    def __str__(self) -> str:
        if self.found == self.distinct:
            return counted(self.found, "image")
        repeats = f" ({self.distinct:,} distinct)" if self.distinct < self.embedded else ""
        parts = [f"{self.embedded:,} embedded{repeats}"]
        parts += [f"{self.failed:,} failed"] if self.failed else []
        parts += [f"{self.missing:,} missing"] if self.missing else []
        return f"{counted(self.found, 'image')}: {', '.join(parts)}"


def choose(
    entries: Sequence[Entry],
    data: str,
    folder: str,
    source: str,
    backbone: Sequence[str] = (),
    view: Sequence[str] = (),
    options: Sequence[str] = (),
) -> list[Entry]:
    """The files that stand for these backbones, see `Cache.choose`.

    Parameters
    ----------
    entries : sequence of Entry
        All finished files of the data set, oldest first.
    data, folder : str
        Names of the data set and of the cache folder.
    source : str
        Where its images are; "" where that isn't known.
    backbone : sequence of str
    view : sequence of str, default ()
        Views that are asked for too: the remedy names them.
    options : sequence of str, default ()
        What else opens the images, see `Images.options`.

    Raises
    ------
    CacheMissing
        If there is none.
    UnknownName, RecipeError
        For a spec that can't be read.
    """
    # A view, such as hflip, is taken only where its key is named.
    plain = [e for e in entries if e.key.preprocess.get("view", "none") == "none"]
    names = list(dict.fromkeys(entry.key.backbone for entry in plain))
    backbones = list(backbone) or sorted(names)
    found: dict[int, Entry] = {}
    absent: list[str] = []
    # What says most has the first choice: `vit_b_16` leaves `vit_b_16:size=384` its file.
    for place in sorted(range(len(backbones)), key=lambda i: (-_says(backbones[i]), backbones[i])):
        wanted = backbones[place]
        name, prefix = (wanted, "") if wanted in names else split_key(wanted)
        known = entries if prefix else plain
        fitting = [
            entry
            for entry in known
            if entry.key.digest.startswith(prefix)
            and (means(name, entry.key) or (prefix and name == entry.selector))
        ]
        if not fitting:
            parse_spec(name)  # refuses what is none
            absent.append(wanted)
            continue
        taken = [entry for other, entry in found.items() if backbones[other] != wanted]
        left = [entry for entry in fitting if entry not in taken] or fitting
        if len(left) > 1:
            others = ", ".join(entry.selector for entry in left[:-1])
            log.info(
                "%s has %d files; taking the newest, %s (others: %s)",
                wanted, len(left), left[-1].selector, others,
            )  # fmt: skip
        found[place] = left[-1]
    rest = (folder, view, options)
    if absent:
        missing = [wanted for wanted in backbones if wanted in absent]
        which = [parse_spec(split_key(wanted)[0]).name for wanted in missing]
        among = entries if any(split_key(wanted)[1] for wanted in missing) else plain
        same = [e.selector for e in among if any(means(name, e.key) for name in which)]
        have = ", ".join(same) or ", ".join(names) or "nothing"
        raise CacheMissing(
            f"{data} has no features of {', '.join(missing)} (it has: {have})",
            commands_for_absent(entries, data, source, missing, *rest),
        )
    if not found:
        raise CacheMissing(
            f"no finished features of {data} in {folder}/",
            commands_for_absent(entries, data, source, "resnet18", *rest),
        )
    return [_called(found[place], backbones[place], names) for place in range(len(backbones))]


def _in_order(entries: Sequence[Entry]) -> list[Entry]:
    names = _names(entries)
    return [entries[names.index(name)] for name in canonical(names)]


def _names(entries: Sequence[Entry]) -> list[str]:
    usual = names_of([entry.key for entry in entries])
    return [entry.called or name for entry, name in zip(entries, usual, strict=True)]


def _finished(path: Path) -> FeatureFile:
    """Open a file under a final name, where nobody else may have put one that is not done."""
    file = FeatureFile(path)
    if not file.complete:
        file.close()
        raise CacheRefused(
            f"{path} was never finished: rows may be absent",
            "Delete it and run the extract command again.",
        )
    return file


def _check_key(file: FeatureFile, key: Key) -> None:
    """The name holds eight digits of the key only: the whole key must agree."""
    if file.key != key:
        changed = "; ".join(file.key.differences(key)) or "its key was altered"
        raise CacheRefused(
            f"{file.path} holds features of another key ({changed})",
            "Move it out of the cache folder.",
        )


def _called(entry: Entry, wanted: str, known: Sequence[str]) -> Entry:
    """The file under the name that stands before its key: `vit_b_16-384px@7be2d41c`.

    By that name it is called in reports, also where it needs none to differ from others.
    """
    name, prefix = ("", "") if wanted in known else split_key(wanted)
    spelt = prefix and name != entry.key.backbone and not parse_spec(name).options
    return replace(entry, called=name) if spelt else entry


def _says(wanted: str) -> int:
    """How much a name says: a key all, options more than none."""
    return 1000 if split_key(wanted)[1] else len(wanted)


def _lists(path: Path, images: Images) -> bool:
    """Whether a list of images has just these rows."""
    try:
        known = read_images_csv(path, images.name)
    except (OSError, DataError):
        return False
    columns = ("ids", "sha256", "labels", "groups", "split")
    return all(np.array_equal(getattr(known, name), getattr(images, name)) for name in columns)
