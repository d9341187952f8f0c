"""Feature files that somebody else wrote, or a disk has damaged: each costs itself alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from stored import blobs, store

from featcache.cli.main import cli
from featcache.errors import CacheRefused
from featcache.hashing import sha256_file
from featcache.store.cache import Cache
from featcache.store.feature_file import FeatureFile, create, read_trained_on, write_trained_on
from featcache.store.key import Key
from featcache.store.locking import begin
from featcache.store.maintenance import choose_victims, delete, repair, verify

ROWS = 60


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Two feature files of one data set: net0, which is attacked, and net1, which is well."""
    X, y = blobs(ROWS, (6, 4))
    split = ["test" if i % 3 == 0 else "train" for i in range(ROWS)]
    return store(tmp_path / "cache", X, y, (6, 4), split=split)[0]


def path_of(cache: Cache, number: int = 0) -> Path:
    return next((cache.folder / "toy").glob(f"net{number}.*.h5"))


def partial_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def edited(path: Path, edit: Callable[[h5py.File], None]) -> None:
    with h5py.File(path, "r+") as file:
        edit(file)


def kept_outside(victim: Path, name: str) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        size = int(np.prod(shape)) * dtype.itemsize
        file.create_dataset(name, shape, dtype, external=[(str(victim), 0, size)])

    return edit


def linked(link: Callable[[Path, str], object]) -> Callable[[Path, str], Callable[..., None]]:
    def attack(victim: Path, name: str) -> Callable[[h5py.File], None]:
        def edit(file: h5py.File) -> None:
            with h5py.File(victim.with_name("other.h5"), "w") as other:
                file.copy(name, other)
            file.move(name, f"{name}2")
            file[name] = link(victim, name)

        return edit

    return attack


def virtual(victim: Path, name: str) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        shape, dtype = file[name].shape, file[name].dtype
        layout = h5py.VirtualLayout(shape, dtype)
        layout[...] = h5py.VirtualSource(str(victim.with_name("other.h5")), name, shape, dtype)
        del file[name]
        file.create_virtual_dataset(name, layout)

    return edit


def packed(victim: Path, name: str) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        values = file[name][...]
        del file[name]
        file.create_dataset(name, data=values, compression="gzip")

    return edit


ATTACKS = {
    "external storage": kept_outside,
    "external link": linked(lambda path, name: h5py.ExternalLink(path.with_name("other.h5"), name)),
    "soft link": linked(lambda _, name: h5py.SoftLink(f"/{name}2")),
    "virtual": virtual,
    "packed": packed,
}  # fmt: skip


@pytest.mark.parametrize("name", ["features", "sha256", "done", "checksum", "trained_on"])
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("partial", [False, True], ids=["finished", "partial"])
def test_nothing_in_a_file_points_outside_it(
    cache: Cache, tmp_path: Path, attack: str, name: str, partial: bool
) -> None:
    path, victim = path_of(cache), tmp_path / "victim"
    victim.write_bytes(bytes(10_000))
    write_trained_on(path, ["ab" * 32])
    edited(path, ATTACKS[attack](victim, name))
    if partial:
        path = path.replace(partial_of(path))
    for writable in (False, True):
        with pytest.raises(CacheRefused, match=name):
            FeatureFile(path, writable=writable)
    assert victim.read_bytes() == bytes(10_000)


def test_repair_and_extraction_overwrite_no_other_file(cache: Cache, tmp_path: Path) -> None:
    path, victim = path_of(cache), tmp_path / "victim"
    victim.write_bytes(b"\1" * 10_000)
    with FeatureFile(path) as file:
        key, digests = file.key, file.digests
    edited(path, kept_outside(victim, "features"))
    edited(path, lambda file: file.attrs.modify("complete", True))
    for finding in verify(cache, "toy"):
        if finding.problem:
            repair(finding)
    with begin(cache, "toy", key, digests, 6) as file:
        file.write(np.arange(ROWS), np.zeros((ROWS, 6), np.float32))
    assert victim.read_bytes() == b"\1" * 10_000


def test_a_bomb_in_trained_on_is_not_unpacked(cache: Cache) -> None:
    path = path_of(cache)
    edited(
        path,
        lambda file: file.create_dataset(
            "trained_on", (2**36, 32), "uint8", chunks=(2**16, 32), compression="gzip"
        ),
    )
    with pytest.raises(CacheRefused, match="trained_on"):
        read_trained_on(path)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(path.parent)  # the name of a socket is short
        try:
            one.bind(path.name)
        finally:
            os.chdir(here)


STRANGE: dict[str, Callable[[Path], None]] = {
    "pipe": fifo,
    "socket": bound,
    "folder": lambda path: path.mkdir(),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path.name),
    "empty": lambda path: path.write_bytes(b""),
}


def commands_go_on(cache: Cache, name: str, *, with_fit: bool = True) -> None:
    """`ls`, `verify`, `prune` and `fit` of others end well beside a bad file, and say its name."""
    where = ["--cache", str(cache.folder)]
    fit = ["fit", "--data", "toy", "--backbone", "net1", "--head", "knn", "--test-split", *where]
    for words, code in (
        (["cache", "ls", *where], 0),
        (["cache", "verify", *where], 4),
        (["cache", "prune", "--dry-run", *where], 0),
        *[([*fit, "--reports", str(cache.folder / "reports")], 0)] * with_fit,
    ):
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == code, (words, done.output)
        assert done.exception is None or isinstance(done.exception, SystemExit)
        assert name in done.output or "prune" in words


@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_file_is_named_and_costs_itself(cache: Cache, kind: str) -> None:
    strange = path_of(cache).with_name("strange.h5")
    STRANGE[kind](strange)
    commands_go_on(cache, "strange.h5", with_fit=kind in ("pipe", "dangling"))


def test_leftovers_that_are_no_files_are_pruned_or_left(cache: Cache) -> None:
    folder = cache.folder / "toy"
    (folder / ".folder.h5.partial").mkdir()
    (folder / ".link.h5.partial").symlink_to("nowhere")
    os.mkfifo(folder / ".pipe.h5.partial")
    delete(choose_victims(cache, ["toy"]))
    assert sorted(path.name for path in folder.glob(".*.partial")) == [".folder.h5.partial"]


def test_a_link_is_read_and_never_written_through(cache: Cache, tmp_path: Path) -> None:
    path = path_of(cache)
    away = Path(shutil.move(path, tmp_path / "away.h5"))
    path.symlink_to(away)
    before = sha256_file(away)
    with FeatureFile(path) as file:
        key, digests = file.key, file.digests
    with pytest.raises(CacheRefused, match="is a link"):
        FeatureFile(path, writable=True)
    path.replace(partial_of(path))
    with begin(cache, "toy", key, digests, 6) as file:
        assert file.done().all()  # its rows were read
        file.write(np.arange(1), np.zeros((1, 6), np.float32))
        file.finish(path)
    assert sha256_file(away) == before
    assert not path.is_symlink()


# Keys and attributes.

PLAIN = json.loads(Key("net0", "test", "none", "none", "penultimate", {"view": "none"}).json())
KEYS: dict[str, str] = {
    "NaN": json.dumps(PLAIN | {"preprocess": {"crop": float("nan")}}),
    "NaN elsewhere": json.dumps(PLAIN | {"preprocess": {"resize": float("nan")}}),
    "no field": json.dumps({k: v for k, v in PLAIN.items() if k != "layer"}),
    "a number": json.dumps(PLAIN | {"backbone": 5}),
    "null": json.dumps(PLAIN | {"weights": None}),
    "a list": json.dumps(PLAIN | {"preprocess": [1]}),
    "a mapping in it": json.dumps(PLAIN | {"preprocess": {"crop": {"x": 1}}}),
    "crop a text": json.dumps(PLAIN | {"preprocess": {"crop": "8"}}),
    "mean a number": json.dumps(PLAIN | {"preprocess": {"mean": 5}}),
    "filters of numbers": json.dumps(PLAIN | {"preprocess": {"filters": [1]}}),
    "half a character": json.dumps(PLAIN | {"layer": "\ud800"}),
    "dtype": json.dumps(PLAIN | {"dtype": "object"}),
    "deep": "[" * 100_000,
    "deep inside": json.dumps(PLAIN).replace('"none"}', '[' * 900 + "]" * 900 + "}"),
    "format": json.dumps(PLAIN | {"format": [1]}),
    "no JSON": "{",
    "long number": json.dumps(PLAIN).replace('"none"}', "1" * 5000 + "}"),
}  # fmt: skip


@pytest.mark.parametrize("name", KEYS)
def test_a_strange_key_costs_that_file_only(cache: Cache, name: str) -> None:
    path = path_of(cache)
    edited(path, lambda file: file.attrs.create("key", KEYS[name]))
    commands_go_on(cache, path.name, with_fit=name == "NaN")


ATTRIBUTES = {
    "seconds": "soon",
    "engine": np.arange(5),
    "complete": "yes",
    "format": h5py.Empty("f4"),
    "device": b"\xed\xa0\x80",
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_strange_attributes_cost_nothing(cache: Cache, name: str) -> None:
    path = path_of(cache)
    edited(path, lambda file: file.attrs.create(name, ATTRIBUTES[name]))
    with FeatureFile(path) as file:
        assert np.isnan(file.seconds)
        json.dumps(file.attributes).encode()
    assert len(Cache(cache.folder).entries("toy")) == 2


# Damage.


def flips(path: Path, count: int, seed: int) -> Iterator[tuple[int, int]]:
    rng, size = random.Random(seed), path.stat().st_size
    for _ in range(count):
        yield rng.randrange(size), rng.randrange(8)


def flip(content: bytes, at: int, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[at] ^= 1 << bit
    return bytes(damaged)


def use(cache: Cache) -> str:
    """Use all that is there, as commands do: "" if it went as without damage, else what is said."""
    images, right = cache.images("toy"), np.load(cache.folder / "X.npy")
    verify(cache, "toy")
    try:
        found = cache.features(images, cache.choose("toy", ["net0", "net1"]))
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__} {getattr(error, 'problem', error)}"
    assert np.array_equal(found.X, right)
    assert [not seen for seen in found.trained_on] == [False, True]
    assert found.trained_on[0] == {"ab" * 32}
    return ""


def damage(cache: Cache, count: int, seed: int) -> dict[str, int]:
    path, seen = path_of(cache), dict.fromkeys(("harmless", "refused"), 0)
    content = path.read_bytes()
    for at, bit in flips(path, count, seed):
        path.write_bytes(flip(content, at, bit))
        said = use(cache)
        assert not said or said.startswith(("CacheRefused", "CacheMissing")), (at, bit, said)
        seen["refused" if said else "harmless"] += 1
    path.write_bytes(content)
    return seen


def sealed(cache: Cache) -> None:
    """What one extraction with a fine-tuned backbone leaves."""
    path = path_of(cache)
    with FeatureFile(path) as file:
        key, digests = file.key, file.digests
        values = np.empty((ROWS, 6), np.float32)
        file.read(np.arange(ROWS), values)
    with create(partial_of(path), key, digests, 6) as file:
        file.write(np.arange(ROWS), values)
        write_trained_on(file.path, ["ab" * 32])
        file.annotate({"seconds": 1.5, "device": "cpu", "engine": "torch"})
        file.finish(path)
    images = cache.images("toy")
    np.save(cache.folder / "X.npy", cache.features(images, cache.choose("toy")).X)


def test_a_flipped_bit_is_refused_or_harmless(cache: Cache) -> None:
    """Anywhere in the file: no traceback, no wrong vector, no image forgotten of `trained_on`."""
    sealed(cache)
    seen = damage(cache, 200, 0)
    assert seen["refused"] > 100


@pytest.mark.slow
def test_two_thousand_flipped_bits(cache: Cache) -> None:
    """In child processes with a time limit: no crash and no hang either."""
    sealed(cache)
    code = (
        "import sys; sys.path[:0] = ['tests', '.']\n"
        "from pathlib import Path\n"
        "from security.test_feature_files import Cache, damage\n"
        "print(damage(Cache(Path(sys.argv[1])), 200, int(sys.argv[2])))"
    )
    for seed in range(10):
        words = [sys.executable, "-c", code, str(cache.folder), str(seed)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
