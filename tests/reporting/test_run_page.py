"""report.html: one whole file that shows what the run folder holds, and escapes what it says."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import logging
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import classification_report
from stored import blobs, store

from featcache.errors import DataError
from featcache.reporting import run_page
from featcache.reporting.compare import compare
from featcache.reporting.comparison import sort_runs
from featcache.reporting.run_page import QUICK, quick_page, standing, write_run_page
from featcache.reporting.run_reader import read_contents
from featcache.store.cache import Cache

from .pages import HOSTILE, Page, check_self_contained, make_odd_run, toy_images

PLOTS = ("curves", "confusion", "roc", "pr", "reliability", "embedding")


@pytest.fixture
def made(tmp_path):
    run, features = make_odd_run(tmp_path / "reports", folds=3)
    return run, features


@pytest.mark.rendered
def test_one_whole_file_with_every_part(made, tmp_path):
    run, features = made
    images = toy_images(features)
    Cache(tmp_path / "cache").note_images(images)
    path = write_run_page(
        run.folder, features=features, images=images, cache=tmp_path / "cache", depth=QUICK
    )
    page = Page(path)
    check_self_contained(page)
    assert page.text.count(HOSTILE) > 10  # as text, in tables and beside pictures
    for heading in ("Metrics", "What it gets wrong", "Classes", "Ranking and calibration",
                    "Training", "Map of the features", "Data", "Where the time went",
                    "Do it again"):  # fmt: skip
        assert heading in page.text
    for name in PLOTS:
        with Image.open(run.folder / f"{name}.png") as image:
            assert image.width > 300
        assert (run.folder / f"{name}.svg").read_text(encoding="utf-8").startswith("<?xml")
    low, high = run.interval
    assert f"{low:.2f} … {high:.2f}" in page.text
    assert "95 % interval of" in page.text.replace("\N{NO-BREAK SPACE}", " ")
    wrong = sum(f["test"] for f in json.loads((run.folder / "metrics.json").read_text())["folds"])
    assert f"of {wrong} test images predicted wrong" in page.text
    pictures = [img for img in page.all("img") if "plot" not in (img.get("class") or "")]
    assert len(pictures) > 12
    assert all((img["src"] or "").startswith("data:image/") for img in pictures)
    assert "not at hand" not in page.text
    points = [attrs for attrs in page.all("use") if "data-id" in attrs]
    assert len(points) == wrong  # the tested images, all of them
    assert f"All {wrong} test images are drawn. The features" in page.text
    assert {attrs["data-id"] for attrs in points} == set(features.ids.tolist())
    assert all((attrs["data-src"] or "").startswith("data:image/") for attrs in points)
    assert path.stat().st_size < 5_000_000


def test_the_script_of_the_page_is_the_only_one_that_may_run(made):
    text = write_run_page(made[0].folder).read_text(encoding="utf-8")
    script = text.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [one["content"] for one in Page(made[0].folder / "report.html").all("meta")
                 if one.get("http-equiv") == "Content-Security-Policy"]  # fmt: skip
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    for unsafe in ("innerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert unsafe not in script


def test_a_map_of_some_images_says_how_many_and_has_pictures_of_some(made):
    run, features = made
    depth = run_page.Depth(30, 250, 10)
    write_run_page(run.folder, features=features, images=toy_images(features), depth=depth)
    page = Page(run.folder / "report.html")
    points = [attrs for attrs in page.all("use") if "data-id" in attrs]
    assert len(points) == 30
    assert sum("data-src" in attrs for attrs in points) == 10
    assert "30 images are drawn, at random of 90: t-SNE takes minutes" in page.text
    assert "10 of them come with their picture, mistakes first" in page.text
    write_run_page(
        run.folder, features=features, images=toy_images(features), depth=depth, pictures=False
    )
    page = Page(run.folder / "report.html")
    assert not any("data-src" in attrs for attrs in page.all("use"))
    assert "Pictures were left out on purpose" in page.text


def test_the_most_confident_mistake_comes_first(made):
    run, _ = made
    page = write_run_page(run.folder).read_text(encoding="utf-8")
    with (run.folder / "predictions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["true"] != row["pred"]]
    surest = sorted(rows, key=lambda row: -float(row[f"p_{row['pred']}"]))
    places = [page.index(row["id"].replace("<", "&lt;").replace(">", "&gt;")) for row in surest[:5]]
    assert places == sorted(places)


def test_what_is_not_at_hand_is_said(made):
    run, _ = made
    page = Page(write_run_page(run.folder))
    check_self_contained(page)
    assert "The images are not at hand" in page.text
    assert "The features are not at hand" in page.text
    assert "The cache is not at hand" in page.text


def test_of_features_on_disk_the_list_of_images_is_not_read_again(tmp_path, monkeypatch):
    X, y = blobs(60)
    split = ["test" if i % 3 == 0 else "train" for i in range(60)]
    cache, images = store(tmp_path / "cache", X, y, (6, 4), split=split)
    cache.note_images(images)
    lazy = cache.features(images, cache.choose("toy"), lazy=True)
    run = compare(lazy, head="dummy", singles=False, reports=tmp_path).best.folder
    wanted = Page(write_run_page(run, cache=cache.folder))
    monkeypatch.delattr(Cache, "images")
    found = Page(write_run_page(run, cache=cache.folder, features=lazy))
    assert "images 60" in found.text
    assert found.text[found.text.index("Data") :] == wanted.text[wanted.text.index("Data") :]


def test_per_class_csv_is_that_of_sklearn(made):
    run, _ = made
    write_run_page(run.folder)
    with (run.folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = classification_report(
        [row["true"] for row in rows], [row["pred"] for row in rows], output_dict=True
    )
    with (run.folder / "per_class.csv").open() as file:
        found = list(csv.DictReader(file))
    assert len(found) == 3
    for row in found:
        theirs = expected[row["class"]]
        assert float(row["precision"]) == pytest.approx(theirs["precision"], abs=1e-6)
        assert float(row["recall"]) == pytest.approx(theirs["recall"], abs=1e-6)
        assert float(row["f1"]) == pytest.approx(theirs["f1-score"], abs=1e-6)
        assert int(row["images"]) == theirs["support"]


def test_a_head_without_probabilities_or_history(tmp_path):
    run, _ = make_odd_run(tmp_path, proba=False, history=False)
    page = Page(write_run_page(run.folder))
    for absent in ("Ranking and calibration", "Training", "Curves"):  # no empty sections
        assert absent not in page.text
    assert not (run.folder / "roc.png").exists()


@pytest.mark.rendered
def test_leaky_is_the_first_line_and_attention_has_its_table(made):
    run, _ = made
    facts = json.loads((run.folder / "run.json").read_text())
    (run.folder / "run.json").write_text(json.dumps({**facts, "leaky": True}))
    scores = json.loads((run.folder / "metrics.json").read_text())
    weights = {"classes": ["cat", "dog"], "backbones": ["big", "small"]}
    scores["folds"][0]["attention"] = {**weights, "mean": [[0.6, 0.4], [0.2, 0.8]]}
    scores["folds"][1]["attention"] = {**weights, "mean": [[0.8, 0.2], [0.4, 0.6]]}
    scores["folds"][2]["attention"] = {**weights, "mean": "damaged"}
    (run.folder / "metrics.json").write_text(json.dumps(scores))
    page = Page(write_run_page(run.folder))
    body = page.text[page.text.index("Skip to the content") + len("Skip to the content") :]
    assert body.strip().startswith("Leaky on purpose")
    assert "0.700 ± 0.141" in page.text
    assert (run.folder / "attention.png").is_file()


def test_a_plot_that_fails_costs_a_warning_only(made, monkeypatch, caplog):
    def broken(_):
        raise ValueError("no canvas")

    monkeypatch.setattr(run_page, "plot_roc", broken)
    with caplog.at_level(logging.WARNING, logger="featcache"):
        page = Page(write_run_page(made[0].folder))
    assert any("roc" in message and "no canvas" in message for message in caplog.messages)
    assert "Precision and recall" in page.text


def test_the_map_is_kept_and_made_again_only_when_it_is_to_be_larger(made, monkeypatch):
    run, features = made
    calls = []
    real = run_page.embed
    monkeypatch.setattr(run_page, "embed", lambda *a: calls.append(a) or real(*a))
    for depth in (run_page.Depth(30, 250), run_page.Depth(30, 250), run_page.Depth(60, 250)):
        write_run_page(run.folder, features=features, depth=depth)
    assert len(calls) == 2
    with (run.folder / "embedding.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 60


@pytest.mark.parametrize("folds", [None, 3])
def test_intervals_of_the_metrics_that_are_no_means_over_rows(tmp_path, folds):
    run, _ = make_odd_run(tmp_path, folds=folds)
    rows = {row["name"]: row for row in run_page._metrics(read_contents(run.folder))}
    assert rows["accuracy"]["interval"] == run.interval
    for name in ("balanced accuracy", "F1 (macro)", "AUC"):
        low, high = rows[name]["interval"]
        assert low < rows[name]["mean"] < high < low + 0.4
    low, high = rows["log loss (nats)"]["interval"]
    assert low < rows["log loss (nats)"]["mean"] < high
    assert rows["calibration error (ECE)"]["interval"] is None
    (run.folder / "metrics.json").write_text(
        (run.folder / "metrics.json").read_text().replace('"train', '"was')
    )
    rows = {row["name"]: row for row in run_page._metrics(read_contents(run.folder))}
    assert rows["AUC"]["interval"] is None  # the folds are not on record
    assert rows["accuracy"]["interval"] == run.interval


def test_where_it_stands(tmp_path):
    first, _ = make_odd_run(tmp_path, "mlp", right_rate=0.95)
    second, _ = make_odd_run(tmp_path, "svm", right_rate=0.4)
    third, _ = make_odd_run(tmp_path, "knn", right_rate=0.95)
    runs = sort_runs([first, second, third]).runs
    assert standing(runs[0], runs) == (
        "The best of 3 runs on the same rows; 1 of them can't be told from it "
        "(paired max-T test, 5 %)."
    )
    assert "Number 3 of 3" in standing(runs[2], runs)
    assert "is better by more than chance" in standing(runs[2], runs)
    assert "can't be told from this one" in standing(runs[1], runs)
    assert standing(first, []) == ""


def test_the_quick_page_is_not_made_twice(made, tmp_path, monkeypatch):
    run, features = made
    page, others = run.folder / "report.html", tmp_path / "reports"

    def is_made_again():
        before = page.stat().st_ino if page.exists() else 0
        quick_page(run.folder, [run], features, tmp_path / "cache")
        return page.stat().st_ino != before

    assert is_made_again()
    assert not is_made_again()
    make_odd_run(others, "svm", folds=3)  # where it stands may have changed
    assert is_made_again()
    assert not is_made_again()
    monkeypatch.setattr("featcache.__version__", "9.9")
    assert is_made_again()
    os.utime(run.folder / "metrics.json", (1e9, 1e9))
    assert is_made_again()


@pytest.mark.parametrize("odd", [[], [1], "text", 3, None])
def test_folds_without_metrics_have_dashes(tmp_path, odd):
    run, _ = make_odd_run(tmp_path, folds=3)
    path = run.folder / "metrics.json"
    plain = json.loads(path.read_text())
    plain["folds"][0]["metrics"] = odd
    path.write_text(json.dumps(plain))
    assert "Each fold" in Page(write_run_page(run.folder)).text


@pytest.mark.parametrize("damage", ["", "id,fold\na,b\n", "id,fold,true,pred,p_cat\n1,2,3,4,x,y\n"])
def test_a_damaged_folder_is_one_clear_error(made, damage):
    run, _ = made
    (run.folder / "predictions.csv").write_text(damage)
    with pytest.raises(DataError, match=r"predictions\.csv"):
        write_run_page(run.folder)


@pytest.mark.rendered
def test_many_classes(tmp_path):
    """100 classes: no table of 10,000 cells, and every plot is still drawn."""
    from featcache.reporting.plots.confusion import plot_confusion, worst_pairs
    from featcache.reporting.run_reader import read_contents

    run, _ = make_odd_run(tmp_path)
    rng = np.random.default_rng(0)
    labels = [f"class{i:03d}" for i in range(100)]
    facts = json.loads((run.folder / "run.json").read_text())
    (run.folder / "run.json").write_text(json.dumps({**facts, "classes": labels}))
    with (run.folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "fold", "true", "pred"])
        for i in range(1000):
            true, pred = rng.choice(labels, 2)
            writer.writerow([f"{i}.png", "test", true, pred])
    contents = read_contents(run.folder)
    assert plot_confusion(contents) is not None
    page = Page(write_run_page(run.folder))
    assert "Confusion in numbers" not in page.text
    assert len(worst_pairs(contents)) == 8
    shutil.rmtree(run.folder)
