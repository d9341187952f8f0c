"""What is made to be sent holds no absolute path, no user and no host."""

from __future__ import annotations

import getpass
import json
import re
import shutil
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from noise import noise

import featcache
from featcache.cli.main import cli
from featcache.images.manifest import ORIGIN_JSON
from featcache.reporting.schema import read_run

SECRET = "jane-doe-ward-7"  # a folder's name that nobody is to see


def call(*words: object) -> Result:
    done = CliRunner().invoke(cli, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the commands leave, if every path that they are given is absolute."""
    home = tmp_path_factory.mktemp("made") / SECRET
    rng_seed = 0
    for name in ("cat", "dog"):
        (home / "photos" / name).mkdir(parents=True)
        for number in range(12):
            rng_seed += 1
            noise(rng_seed).save(home / "photos" / name / f"{number:02d}.png")
    (home / "photos" / "cat" / "broken.png").write_bytes(b"no picture")
    (home / "photos" / "cat" / "copy.png").write_bytes(
        (home / "photos" / "dog" / "00.png").read_bytes()
    )
    where = ["--cache", home / "cache"]
    done = CliRunner().invoke(
        cli,
        ["extract", "--data", str(home / "photos"), "--backbone", "resnet18", "--weights", "random",
         "--cache", str(home / "cache"), "--image-size", "32"],
    )  # fmt: skip
    assert done.exit_code == 3, done.output  # one can't be decoded
    where += ["--reports", home / "reports"]
    call("compare", "--data", home / "photos", "--head", "knn,nearest_mean", "--folds", "2", *where)
    call("report", "--data", home / "photos", *where)
    run = best(home)
    call("export", run, "--standalone", "-o", home / "model")
    call("export", run, "--onnx", home / "model.onnx")
    call("cache", "export", home / "features.npz", "--cache", home / "cache")
    return home


def best(home: Path) -> Path:
    return next(home.glob("reports/photos/*/report.html")).parent


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.is_relative_to(folder / "photos"):
            continue
        name = path.relative_to(folder).as_posix()
        yield name, path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                yield from ((f"{name}:{one}", packed.read(one)) for one in packed.namelist())


def test_absolute_paths_users_and_hosts_are_in_origin_json_only(home: Path) -> None:
    words = [SECRET, str(home.parent), socket.gethostname()]
    words += [f"/{getpass.getuser()}/", f"{Path(featcache.__file__).parent}/"]
    found = {
        (name, word)
        for name, data in contents(home)
        for word in words
        if len(word) > 3 and word.encode() in data
    }
    assert {name for name, _ in found} <= {
        f"cache/photos/{ORIGIN_JSON}",
        *(f"{run.relative_to(home).as_posix()}/{ORIGIN_JSON}" for run in home.glob("reports/*/*")),
    }, found
    assert any(name.startswith("reports/") for name, _ in found)


def test_the_run_knows_its_places_and_a_copy_for_others_does_not(
    home: Path, tmp_path: Path
) -> None:
    run = best(home)
    assert read_run(run).opened == ("--data", str(home / "photos"))
    call("export", run, "--run", "-o", tmp_path / "to-send")
    assert not (tmp_path / "to-send" / ORIGIN_JSON).exists()
    copied = read_run(tmp_path / "to-send")
    assert copied.opened == ("--data", "photos")
    assert copied.metrics == read_run(run).metrics
    assert (tmp_path / "to-send" / "model" / "model.json").is_file()
    assert (tmp_path / "to-send" / "report.html").is_file()
    assert SECRET.encode() not in b"".join(data for _, data in contents(tmp_path))


def test_of_an_older_run_the_copy_has_no_place_either(home: Path, tmp_path: Path) -> None:
    old = tmp_path / "old" / "photos" / "run"
    shutil.copytree(best(home), old)
    facts = json.loads((old / "run.json").read_text())
    facts |= json.loads((old / ORIGIN_JSON).read_text())
    (old / ORIGIN_JSON).unlink()
    (old / "run.json").write_text(json.dumps(facts))
    (old / "link").symlink_to(home / "photos")
    (old / "splits.json").unlink()
    (old / "splits.json").symlink_to("splits.json")  # to itself
    call("export", old, "--run", "-o", tmp_path / "sent")
    assert not (tmp_path / "sent" / "splits.json").is_symlink()
    assert not (tmp_path / "sent" / "report.html").exists()
    assert not (tmp_path / "sent" / "link").exists()
    assert SECRET.encode() not in b"".join(data for _, data in contents(tmp_path / "sent"))


@pytest.mark.parametrize("words", [["report"], ["fit", "--head", "knn", "--folds", "2"]])
def test_a_page_without_pictures(home: Path, words: list[str]) -> None:
    page, where = best(home) / "report.html", ["--cache", home / "cache"]
    call("report", "--data", home / "photos", *where, "--reports", home / "reports")
    assert any(f"data:image/{kind}" in page.read_text() for kind in ("jpeg", "png"))
    shown = re.compile("<li[^>]*><img|data-src=")
    assert shown.search(page.read_text())
    before = {path: path.stat().st_mtime_ns for path in home.glob("reports/*/*/report.html")}
    call(*words, *(["--data", home / "photos"] * (words[0] == "fit")), "--no-pictures", *where,
         "--reports", home / "reports")  # fmt: skip
    changed = [path for path, then in before.items() if path.stat().st_mtime_ns != then]
    assert changed or len(list(home.glob("reports/*/*/report.html"))) > len(before)
    for path in changed:
        assert not shown.search(path.read_text())
        assert "--no-pictures" in path.read_text()
