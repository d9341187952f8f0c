"""Names, recipes and URLs that are made to do more than name something."""

from __future__ import annotations

import csv
import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from noise import noise

from featcache.cli.console import say_error, visible
from featcache.cli.main import run
from featcache.cli.tables import show_table
from featcache.errors import DataError, RecipeError
from featcache.images.remote import check_url, without_secrets
from featcache.images.sources import open_images
from featcache.recipe import load_recipe

EVIL = "\x1b]0;title\x07\x9b31m\u202etxt"


@pytest.mark.parametrize("name", ["a\x1b[31mb", "re\rturn", "bell\x07", "c1\x9b"])
def test_a_class_of_control_characters_is_refused(pictures: Path, name: str) -> None:
    (pictures / "cat").rename(pictures / name)
    with pytest.raises(DataError, match="holds control characters") as caught:
        open_images(pictures, cache=None)
    assert caught.value.problem.isprintable()


@pytest.mark.parametrize("column", ["label", "group"])
def test_a_label_longer_than_csv_reads_is_refused(pictures: Path, column: str) -> None:
    row = {"path": "cat/00.png", "label": "x", "group": "g"} | {column: "y" * 131_073}
    table = pictures / "list.csv"
    table.write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    with pytest.raises(DataError, match=f"the {column} 'yyy.* 131,073 characters") as caught:
        open_images(table, cache=None)
    assert len(caught.value.problem) < 200


def test_control_characters_do_not_reach_a_terminal(
    pictures: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "cat" / f"{EVIL}.png").symlink_to("gone")
    assert run(["extract", "--data", str(pictures), "--cache", str(cache), "--backbone", "resnet18",
                "--weights", "random"]) == 0  # fmt: skip
    say_error(f"no {EVIL}", f"look at {EVIL}\nand there")
    show_table(["name"], [[EVIL]])
    found = capsys.readouterr()
    said = found.out + found.err
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(said)
    assert said.count(r"\x1b]0;title\x07\x9b31m\u202etxt") == 4


def test_what_can_be_seen_is_shown_as_it_is() -> None:
    assert visible("Käse\tlong\nline — 猫") == "Käse\tlong\nline — 猫"


def test_a_recipe_extends_no_pipe_and_nothing_without_end(tmp_path: Path) -> None:
    recipe = tmp_path / "a.yaml"
    recipe.write_text("extends: base.yaml\n")
    os.mkfifo(tmp_path / "base.yaml")
    with pytest.raises(RecipeError, match=r"base\.yaml can't be read.* no regular file"):
        load_recipe(recipe)
    recipe.write_text("extends: /dev/zero\n")
    with pytest.raises(RecipeError, match="no regular file"):
        load_recipe(recipe)
    recipe.write_text("#" * (2 << 20))
    with pytest.raises(RecipeError, match="longer than"):
        load_recipe(recipe)
    os.truncate(recipe, 625_000_000_000)
    with pytest.raises(RecipeError, match="longer than"):
        load_recipe(recipe)


@pytest.mark.parametrize(
    "url",
    ["S3://SECRET@bucket/photos", "HTTPS://SECRET@host/photos", "Https://user:SECRET@host/photos",
     "S3://user:SECRET@bucket/photos", "https://user:8080@host/SECRET?x=SECRET",
     "https://host/photos#token=SECRET", "HTTP://host/photos/#SECRET"],
)  # fmt: skip
def test_secrets_in_urls_of_odd_forms_are_refused_unshown(url: str) -> None:
    with pytest.raises(DataError) as caught:
        check_url(url)
    assert "SECRET" not in str(caught.value).replace("/SECRET?", "/?")


def test_a_key_with_a_hash_in_a_bucket_is_a_name() -> None:
    assert check_url("S3://bucket/a#b/") == "s3://bucket/a#b"
    assert without_secrets("see s3://bucket/a#b") == "see s3://bucket/a#b"


def test_odd_names_of_images_are_kept(tmp_path: Path) -> None:
    (tmp_path / "d" / "a").mkdir(parents=True)
    noise(0).save(tmp_path / "d" / "a" / "=1+2\n.png")
    assert open_images(tmp_path / "d", cache=None).ids.tolist() == ["a/=1+2\n.png"]


FORMULA = "=cmd|' /C calc'!A0\r"


def test_formulas_and_returns_in_ids_are_read_as_they_were(tmp_path: Path) -> None:
    from stored import store

    import featcache as fc
    from featcache.images.manifest import read_images_csv, write_images_csv
    from featcache.reporting.plots.features import read_map
    from featcache.reporting.run_reader import read_contents

    rng = np.random.default_rng(0)
    y = ["-1", "=SUM(1)", "@home"] * 12
    cache, images = store(tmp_path / "cache", rng.normal(size=(36, 4)).astype("f4"), y, (4,))
    ids = np.array([f"{FORMULA}{number}" for number in range(36)])
    images = dataclasses.replace(images, ids=ids)
    write_images_csv(tmp_path / "images.csv", images)
    read = read_images_csv(tmp_path / "images.csv", "toy")
    assert read.ids.tolist() == ids.tolist()
    assert read.labels.tolist() == y
    features = cache.features(images, cache.choose("toy"))
    (run,) = fc.compare(
        features, head="knn", folds=2, reports=tmp_path / "r", cache=tmp_path / "cache"
    )
    contents = read_contents(run.folder)
    assert sorted(contents.ids) == sorted(ids)
    assert sorted(contents.true) == sorted(y)
    assert contents.classes == sorted(set(y))
    shown = read_map(run.folder)
    assert shown is not None
    assert set(shown.ids) <= set(ids)
    for name in ("predictions.csv", "embedding.csv", "per_class.csv"):
        with (run.folder / name).open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell[:1] in "=@" and cell]


def test_rows_that_are_all_equal_have_a_map(tmp_path: Path) -> None:
    """t-SNE itself crashes on them: here, in this process, it would take the tests along."""
    from stored import store

    from featcache.reporting.plots.features import embed

    cache, images = store(tmp_path, np.ones((60, 6), "f4"), ["a", "b"] * 30, (6,))
    found = embed(cache.features(images, cache.choose("toy")), rows=60, steps=260)
    assert (found.xy == 0).all()


def test_a_page_that_can_t_be_made_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stored import blobs, store

    from featcache.reporting import run_page

    def broken(*_: object, **__: object) -> None:
        raise ValueError("no page today")

    monkeypatch.setattr(run_page, "write_page", broken)
    X, y = blobs(40, (4,))
    store(tmp_path / "cache", X, y, (4,))
    words = ["fit", "--data", "toy", "--head", "knn", "--folds", "2"]
    where = ["--cache", str(tmp_path / "cache"), "--reports", str(tmp_path / "r")]
    assert run([*words, *where]) == 1
    said = capsys.readouterr()
    assert "report.html could not be made" in said.err
    assert len(list(tmp_path.glob("r/toy/*/metrics.json"))) == 1
