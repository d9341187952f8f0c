"""featcache doctor: every finding with its fix, exit code 1 where something is broken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from featcache.cli import doctor
from featcache.cli.doctor import FAIL, OK, WARN, Finding, examine
from featcache.cli.main import cli
from featcache.store import memory_budget


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def named(found: list[Finding], name: str) -> Finding:
    return next(one for one in found if one.name == name)


def test_a_sound_machine(here: Path) -> None:
    found = examine("cache", "reports")
    assert [one for one in found if one.level == FAIL] == []
    names = {one.name for one in found}
    assert {"system", "processor", "libraries", "GPU", "bf16", "engine eager", "engine compile",
            "engine openvino", "folder cache", "folder reports", "HDF5 and locks",
            "weights at hand", "extra pyarrow"} <= names | {"cuda:0"}  # fmt: skip
    assert list(here.iterdir()) == []  # a look leaves nothing behind


def test_every_warning_and_failure_has_a_fix(here: Path) -> None:
    for one in examine("cache", "reports", str(here / "nowhere")):
        assert one.level in (OK, WARN, FAIL)
        assert (one.level == OK) or one.fix


def test_a_driver_without_a_torch_for_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(doctor, "_has_nvidia", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = examine("cache", "reports")
    assert named(found, "GPU").level == WARN
    assert "pytorch.org" in named(found, "GPU").fix


def test_json_and_exit_codes(here: Path) -> None:
    done = CliRunner().invoke(cli, ["doctor", "--format", "json"])
    assert done.exit_code == 0
    assert {"level", "name", "text", "fix"} == set(json.loads(done.stdout)[0])
    for form, begins in (("csv", "level,name,text,fix"), ("markdown", "| level | name |")):
        done = CliRunner().invoke(cli, ["doctor", "--format", form])
        assert done.stdout.startswith(begins)
    (here / "cache").write_text("a file")
    done = CliRunner().invoke(cli, ["doctor"])
    assert done.exit_code == 1
    assert "FAIL folder cache" in done.stdout
    assert "→ Choose another with --cache FOLDER" in done.stdout


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb"), ("TERM", "x")])
def test_colour_is_left_out_if_that_is_asked_for(
    here: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    printed = "import sys; sys.stdout.isatty = sys.stderr.isatty = lambda: True\n"
    printed += "from featcache.cli.main import run\n"
    printed += "run(['doctor', '--weights-dir', 'nowhere']); run(['cache', 'export', 'a.b'])"
    for one in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(one, raising=False)
    monkeypatch.setenv(name, value)
    done = subprocess.run(
        [sys.executable, "-c", printed], capture_output=True, text=True, check=True
    )
    assert ("\x1b[" in done.stdout, "\x1b[" in done.stderr) == (value == "x",) * 2


def test_a_weights_folder_that_is_not_there(here: Path) -> None:
    found = examine("cache", "reports", str(here / "nowhere"))
    assert named(found, "weights folder").level == FAIL


def test_a_check_that_breaks_is_a_finding(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("driver mismatch")

    monkeypatch.setattr(doctor, "_devices", broken)
    one = named(examine("cache", "reports"), "devices")
    assert (one.level, "driver mismatch" in one.text) == (FAIL, True)


def test_what_everybody_needs_fails_and_what_some_need_warns(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("xgboost", "torchvision"):
        monkeypatch.setitem(sys.modules, name, None)
    found = examine("cache", "reports")
    trees, images = named(found, "xgboost"), named(found, "torchvision")
    assert (trees.level, trees.fix) == (WARN, "pip install xgboost")
    assert "the head xgboost can't be fitted" in trees.text
    assert (images.level, images.text, images.fix) == (
        FAIL, "not installed", "pip install torchvision"
    )  # fmt: skip


def test_a_library_that_breaks_is_installed_again(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "broken.py").write_text("raise OSError('libgomp.so.1: cannot open')")
    (here / "lacking.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(here)
    monkeypatch.setattr(doctor, "_NEEDED", ("numpy", "broken", "lacking"))
    quick = examine("cache", "reports")
    assert "doctor --full" in named(quick, "libraries").text
    assert "broken" not in {one.name for one in quick}  # found, but not imported
    found = examine("cache", "reports", full=True)
    broken, lacking = named(found, "broken"), named(found, "lacking")
    assert broken.level == lacking.level == FAIL
    assert "libgomp.so.1" in broken.text
    assert broken.fix == "pip install --force-reinstall broken"
    assert lacking.fix == "pip install no_such_library"


def test_little_memory_is_a_warning(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_budget, "free_memory", lambda: 10**9)
    one = named(examine("cache", "reports"), "memory")
    assert (one.level, one.text) == (WARN, "1.0 GB free")


def test_no_compiler_and_a_full_disk_are_warnings(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    monkeypatch.setattr(doctor, "_LITTLE_SPACE", 1e18)
    found = examine("cache", "reports")
    assert named(found, "engine compile").level == WARN
    assert named(found, "folder cache").level == WARN


def test_locks_that_are_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    one = named(examine("cache", "reports"), "HDF5 and locks")
    assert one.level == FAIL
    assert "FEATCACHE_LOCK=soft" in one.fix
