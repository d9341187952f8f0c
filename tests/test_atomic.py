"""A file is replaced as a whole or not at all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from featcache import atomic
from featcache.atomic import making_folder, place, replacing


def test_the_old_one_is_read_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_after_an_error_the_old_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def stopped() -> None:
        with replacing(path) as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a.txt"):
        pass


def test_two_threads_don_t_meet(tmp_path: Path) -> None:
    path, both = tmp_path / "a.txt", Barrier(2)

    def write(text: str) -> None:
        with replacing(path) as temporary:
            temporary.write_text(text)
            both.wait()
            assert temporary.read_text() == text

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, ("one", "two")))
    assert path.read_text() in ("one", "two")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_folder_is_replaced_without_being_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """Until the new one is there, the old one is; and a kill leaves one of them."""
    folder, steps = tmp_path / "run", []
    folder.mkdir()
    (folder / "run.json").write_text("old")
    plain = Path.rename

    def rename(path: Path, target: Path) -> Path:
        steps.append((folder / "run.json").exists())
        return plain(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr("shutil.rmtree", gone := Gone(folder))
    if not at_once:
        monkeypatch.setattr(atomic.ctypes, "CDLL", lambda _: object())
    with making_folder(folder) as temporary:
        temporary.mkdir()
        (temporary / "run.json").write_text("new")
        assert place(temporary, folder, "run.json", again=True)
        assert (folder / "run.json").read_text() == "new"
    assert steps == ([] if at_once else [True, False, True])
    assert gone.seen == ["new"]
    assert list(tmp_path.iterdir()) == [folder]


class Gone:
    """`rmtree`; notes what is under a run folder's name when something of an age is deleted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[str] = []

    def __call__(self, path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            self.seen.append((self.folder / "run.json").read_text())
            for file in path.iterdir():
                file.unlink()
            path.rmdir()


def test_a_folder_that_can_not_be_replaced_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text("old")
    monkeypatch.setattr(atomic.ctypes, "CDLL", lambda _: object())
    with pytest.raises(FileNotFoundError):
        place(tmp_path / "never written", folder, "run.json", again=True)
    assert (folder / "run.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]
