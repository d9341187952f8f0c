"""Run folders and caches that somebody else wrote: nothing is written or read outside them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from stored import blobs, store

from featcache.cli.main import cli
from featcache.errors import DataError
from featcache.images.manifest import Images, write_images_csv
from featcache.images.sources import find_reader, is_named, open_images
from featcache.reporting.plots.samples import right_samples, thumbnail
from featcache.reporting.plots.style import save_figure
from featcache.reporting.run_page import write_run_page
from featcache.reporting.run_reader import read_contents
from featcache.reporting.schema import read_run

PRIVATE = "private/passport.png"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache and reports as `fit` leaves them."""
    folder = tmp_path_factory.mktemp("made")
    X, y = blobs(60, (6,))
    store(folder / "cache", X, y, (6,))
    words = ["fit", "--data", "toy", "--backbone", "net0", "--head", "knn", "--folds", "2"]
    where = ["--cache", str(folder / "cache"), "--reports", str(folder / "reports")]
    done = CliRunner().invoke(cli, [*words, *where])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A run folder, below reports/ and beside its cache."""
    for name in ("cache", "reports"):
        shutil.copytree(made / name, tmp_path / name)
    return next(tmp_path.glob("reports/toy/*/run.json")).parent


def changed(run: Path, **facts: Any) -> None:
    path = run / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def report(run: Path) -> Any:
    words = ["report", "--reports", str(run.parents[1]), "--cache", str(run.parents[2] / "cache")]
    return CliRunner().invoke(cli, words)


@pytest.mark.parametrize("name", ["/{away}", "../../away", "..", "a/b", "", "a\\b", "\ud800"])
def test_the_data_set_of_a_run_is_a_plain_name(run: Path, tmp_path: Path, name: str) -> None:
    away = tmp_path / "away"
    away.mkdir()
    (away / "comparison.png").write_text("mine")
    changed(run, data=name.format(away=str(away).lstrip("/")))
    with pytest.raises(DataError, match="no run folder"):
        read_run(run)
    done = report(run)
    assert done.exit_code != 0
    assert not isinstance(done.exception, (OSError, UnicodeError))
    assert [path.name for path in away.iterdir()] == ["comparison.png"]
    assert (away / "comparison.png").read_text() == "mine"


@pytest.mark.parametrize("name", ["run.json", "metrics.json"])
def test_a_pipe_in_a_run_folder_is_not_waited_for(run: Path, name: str) -> None:
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(DataError, match="no run folder"):
        read_run(run)


@pytest.mark.parametrize(
    "name",
    ["predictions.csv", "leaks.json", "embedding.csv", "report.html", "confusion.png"]
    + [f"cache/{name}" for name in ("origin.json", "failed.csv", "images.csv")],
)
def test_nor_is_any_other(run: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "cache/toy" / Path(name).name if "/" in name else run / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    done = report(run)
    assert done.exit_code == (1 if name == "predictions.csv" else 0), done.output
    ls = CliRunner().invoke(cli, ["cache", "ls", "--cache", str(tmp_path / "cache")])
    assert ls.exit_code == 0, ls.output
    status = CliRunner().invoke(cli, ["cache", "status", "--cache", str(tmp_path / "cache")])
    assert status.exit_code == (1 if name.endswith("images.csv") else 0), status.output


@pytest.mark.parametrize(
    "text", ['{"source": "\\ud800", "root": ""}', "[" * 100_000, '{"source": 1, "root": NaN}', "[]"]
)
def test_a_strange_origin_is_none(run: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "cache" / "toy" / "origin.json").write_text(text)
    for words in (["cache", "status"], ["fit", "--backbone", "vgg11", "--data", "toy"]):
        done = CliRunner().invoke(cli, [*words, "--cache", str(tmp_path / "cache")])
        assert not isinstance(done.exception, (UnicodeError, RecursionError)), done.output


@pytest.mark.parametrize("name", ["a:b", "a*", 'a"b', "x" * 210])
def test_a_folder_that_is_no_data_set_is_left_out(run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "cache" / name).mkdir()
    (tmp_path / "cache" / name / "images.csv").write_text("x")
    done = CliRunner().invoke(cli, ["cache", "ls", "--cache", str(tmp_path / "cache")])
    assert done.exit_code == 0
    assert "net0" in done.output
    assert "left out" in done.output


def test_plots_are_not_written_through_links(run: Path, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("roc.png", "roc.svg", ".roc.tmp.png", ".roc.tmp.svg"):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(victim)
    save_figure(Figure(), run, "roc")
    for name in ("report.html", "per_class.csv", "embedding.csv"):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(victim)
    write_run_page(run, cache=tmp_path / "cache")
    assert victim.read_text() == "mine"


# Pictures on a page.


@pytest.fixture
def folder(pictures: Path, tmp_path: Path) -> Path:
    """A data set's folder in a cache, whose images are below `pictures`."""
    (tmp_path / "private").mkdir()
    next(pictures.rglob("*.png")).rename(tmp_path / PRIVATE)
    folder = tmp_path / "cache" / "pictures"
    folder.mkdir(parents=True)
    write_images_csv(folder / "images.csv", open_images(pictures, cache=None))
    return folder


def manifest(folder: Path) -> Images:
    from featcache.images.manifest import read_images_csv

    return read_images_csv(folder / "images.csv", "pictures")


@pytest.mark.parametrize("id_", ["{private}", "../private/passport.png", "cat/../../" + PRIVATE])
def test_no_other_picture_than_the_extracted_ones_is_shown(
    folder: Path, tmp_path: Path, id_: str
) -> None:
    wanted = id_.format(private=tmp_path / PRIVATE)
    with pytest.raises(KeyError):
        find_reader(folder, manifest(folder))(wanted)
    # Not even if the cache lists it, too: its content is not known to whoever wrote the list.
    path, origin = folder / "images.csv", folder / "origin.json"
    first = str(manifest(folder).ids[0])
    origin.write_text(origin.read_text().replace('"lists"', '"none"'))
    path.write_text(path.read_text().replace(first, wanted))
    with pytest.raises(OSError, match="not the image that was extracted"):
        find_reader(folder, manifest(folder))(wanted)


def test_nor_one_below_a_root_that_a_file_names(folder: Path, tmp_path: Path) -> None:
    first = str(manifest(folder).ids[0])
    (folder / "origin.json").write_text(json.dumps({"source": "x", "root": str(tmp_path)}))
    path = folder / "images.csv"
    path.write_text(path.read_text().replace(first, PRIVATE))
    with pytest.raises(OSError, match="not the image"):
        find_reader(folder, manifest(folder))(PRIVATE)


def test_a_picture_that_is_a_pipe_is_not_waited_for(folder: Path, pictures: Path) -> None:
    first = str(manifest(folder).ids[0])
    (pictures / first).unlink()
    os.mkfifo(pictures / first)
    with pytest.raises(OSError, match="is no file"):
        find_reader(folder, manifest(folder))(first)


def test_a_page_holds_no_private_picture(run: Path, tmp_path: Path, folder: Path) -> None:
    """As it was: an id in predictions.csv, which anybody can write, and the page to send."""
    path = run / "predictions.csv"
    lines = path.read_text().splitlines()
    private = str(tmp_path / PRIVATE)
    lines = [lines[0], *(f"{private},{line.partition(',')[2]}" for line in lines[1:])]
    path.write_text("\n".join(lines) + "\n")
    origin = folder.parent / "toy" / "origin.json"
    origin.write_text(json.dumps({"source": "x", "root": str(tmp_path)}))
    reader = find_reader(origin.parent, manifest(folder))
    assert reader is not None
    samples = right_samples(read_contents(run), partial(thumbnail, reader))
    assert samples
    assert not [one.uri for one in samples if one.uri]
    assert "data:image/jpeg" not in write_run_page(run, cache=tmp_path / "cache").read_text()


# Places.


@pytest.mark.parametrize(
    ("url", "named", "called"),
    [
        ("s3://bucket/photos", ["--data", "s3://bucket/photos"], True),
        ("s3://bucket/other", ["--data", "s3://bucket"], True),
        ("s3://bucket/photos", ["--data", "csv:s3://bucket/list.csv"], True),
        ("S3://Bucket/photos", ["s3://bucket/photos"], True),
        ("s3://other/photos", ["--data", "s3://bucket/photos"], False),
        ("ftp://bucket/photos", ["s3://bucket/photos"], False),
        ("https://example.org@evil.org/x", ["https://example.org/x"], False),
        ("https://example.org:81/x", ["https://example.org/x"], False),
        ("file::ftp://example.org/x", ["file:///x"], False),
        ("ftp://example.org/x", [], False),
        ("file:///x", [], True),
    ],
)
def test_only_places_that_the_user_named_are_called(
    url: str, named: list[str], called: bool
) -> None:
    assert is_named(url, named) == called


@pytest.mark.parametrize("words", [["report"], ["cache", "status"], ["cache", "verify"]])
def test_no_command_calls_a_place_of_a_foreign_cache(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    from featcache.images import remote

    def called(*_: Any) -> Callable[..., Any]:
        raise AssertionError("a host was called")

    monkeypatch.setattr(remote, "_open", called)
    origin = {"source": "ftp://evil.example/x", "root": "ftp://evil.example/x"}
    (tmp_path / "cache" / "toy" / "origin.json").write_text(json.dumps(origin))
    where = ["--cache", str(tmp_path / "cache")]
    where += ["--reports", str(tmp_path / "reports")] * (words == ["report"])
    done = CliRunner().invoke(cli, [*words, *where])
    assert done.exit_code == 0, done.output
