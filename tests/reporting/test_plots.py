"""Plots are drawn, of the runs that compare."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix, precision_score, recall_score, roc_auc_score

from featcache.fitting.metrics import calibration_error
from featcache.reporting.comparison import sort_runs
from featcache.reporting.plots.comparison import front, plot_comparison, plot_cost
from featcache.reporting.plots.confusion import (
    Confusion,
    class_scores,
    confusion,
    duel,
    rivals,
    worst_pairs,
)
from featcache.reporting.plots.curves import (
    Ranks,
    histories,
    plot_learning_curves,
    plot_precision_recall,
    plot_reliability,
    plot_roc,
    reliability,
)
from featcache.reporting.plots.features import (
    attention,
    embed,
    plot_attention,
    plot_map,
    read_map,
    write_map,
)
from featcache.reporting.plots.style import COLOURS, MARKERS, colour, draw, marker, new_figure
from featcache.reporting.run_reader import read_contents

from .conftest import make_features, make_run, own_split
from .pages import make_odd_run

pytestmark = pytest.mark.rendered


def drawn(path) -> str:
    return path.with_suffix(".svg").read_text(encoding="utf-8")


def test_every_run_on_the_latest_rows_is_drawn(tmp_path):
    features, right = make_features(), np.arange(80) < 78
    made = [
        make_run(tmp_path, features, own_split(80, 40), right, head)
        for head in ("mlp", "svm", "logreg")
    ]
    path = plot_comparison(sort_runs(made).runs, tmp_path / "toy")
    assert path == tmp_path / "toy" / "comparison.png"
    with Image.open(path) as image:
        assert image.width > 800
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 5
    for head in ("mlp", "svm", "logreg"):
        assert f"big + small · concat · {head}" in drawn(path)
    older = replace(made[0], rows="others", created="2020-01-01T00:00:00+00:00")
    path = plot_comparison([older, *made[1:]], tmp_path / "toy")
    assert "· concat · mlp" not in drawn(path)
    assert "40 test images" in drawn(path)


def test_more_heads_than_colours(tmp_path):
    features, right = make_features(), np.arange(80) < 78
    one = make_run(tmp_path, features, own_split(80, 40), right, "mlp")
    many = [replace(one, head=f"head{i}") for i in range(12)]
    assert "head11" in drawn(plot_comparison(many, tmp_path / "toy"))


# The numbers behind the plots, each against scikit-learn or a case by hand.

GRID = np.linspace(0, 1, 201)


@pytest.fixture
def contents(tmp_path):
    return read_contents(make_odd_run(tmp_path, folds=3)[0].folder)


def test_confusion_is_sklearn_s(contents):
    found = confusion(contents)
    counts = found.counts
    assert (counts == confusion_matrix(contents.true, contents.pred)).all()
    np.testing.assert_allclose(found.rates, counts / counts.sum(axis=1, keepdims=True))
    pairs = worst_pairs(contents)
    i, j = np.unravel_index(np.argmax(counts - np.diag(np.diag(counts))), counts.shape)
    assert pairs[0][:3] == (contents.classes[i], contents.classes[j], counts[i, j])
    assert all(true != pred and n > 0 for true, pred, n, _ in pairs)


def test_a_class_without_test_images_has_no_rates():
    counts = np.array([[0, 0], [1, 3]])
    found = Confusion(["a", "b"], counts, counts.sum(axis=1))
    assert found.rates.tolist() == [[0, 0], [0.25, 0.75]]


def test_the_area_under_the_curve_on_the_grid_is_sklearn_s():
    rng = np.random.default_rng(0)
    is_class = rng.random(2000) < 0.3
    score = rng.normal(size=2000) + is_class
    area = np.trapezoid(Ranks.of(is_class, score).roc(), GRID)
    assert area == pytest.approx(roc_auc_score(is_class, score), abs=2e-3)


def test_precision_on_the_grid_is_the_best_at_that_recall_or_more():
    rng = np.random.default_rng(1)
    is_class = rng.random(120) < 0.4
    score = rng.normal(size=120) + is_class
    points = []
    for threshold in np.unique(score):
        said = score >= threshold
        points.append((recall_score(is_class, said), precision_score(is_class, said)))
    for recall, found in zip(GRID[1:], Ranks.of(is_class, score).precision()[1:], strict=True):
        assert found == pytest.approx(max(p for r, p in points if r >= recall - 1e-12))


def test_reliability_is_the_metric(contents):
    found = reliability(contents)
    assert found.ece == calibration_error(contents.true, contents.proba, contents.classes)
    assert found.count.sum() == len(contents.true)
    there = found.count > 0
    gaps = np.abs(found.accuracy - found.confidence)[there] * found.count[there]
    assert gaps.sum() / found.count.sum() == pytest.approx(found.ece)


def test_attention_is_averaged_over_folds(contents):
    assert attention(contents) is None
    assert plot_attention(contents) is None
    one = {"classes": ["a"], "backbones": ["x", "y"], "mean": [[0.2, 0.8]]}
    two = {**one, "mean": [[0.4, 0.6]]}
    found = attention(replace(contents, attention=[one, two]))
    np.testing.assert_allclose(found.mean, [[0.3, 0.7]])
    np.testing.assert_allclose(found.sd, [[np.sqrt(0.02), np.sqrt(0.02)]])
    assert attention(replace(contents, attention=[one])).sd is None


def test_the_map_keeps_neighbours_and_is_repeatable(tmp_path):
    features = make_features(120, signal=12.0)
    first, again = (embed(features, 100, 500) for _ in range(2))
    assert (first.xy == again.xy).all()
    assert len(first.ids) == 100
    distance = np.linalg.norm(first.xy[:, None] - first.xy[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    same = first.labels[distance.argmin(axis=1)] == first.labels
    assert same.mean() > 0.95
    write_map(tmp_path, first)
    back = read_map(tmp_path)
    assert back.ids.tolist() == first.ids.tolist()
    np.testing.assert_allclose(back.xy, first.xy, rtol=1e-3, atol=1e-3)
    assert plot_map(back, frozenset(first.ids[:3].tolist())) is not None


@pytest.mark.parametrize("n", [3, 4, 8])
def test_a_map_of_very_few_images(n):
    found = embed(make_features(n))
    assert found.xy.shape == (n, 2)
    assert np.isfinite(found.xy).all()


def test_only_images_themselves_are_on_the_map():
    features = make_features(40)
    view = np.where(np.arange(40) < 20, "none", "hflip")
    found = embed(replace(features, view=view), 100, 250)
    assert set(found.ids.tolist()) == set(features.ids[:20].tolist())


@pytest.mark.parametrize("text", ["", "id,label\n1,2\n", "id,label,x,y\n1,2,3,far\n", "\0"])
def test_a_damaged_map_is_none(tmp_path, text):
    (tmp_path / "embedding.csv").write_text(text)
    assert read_map(tmp_path) is None


def test_learning_curves_of_folds_that_stopped_at_different_epochs():
    long = {"train_loss": [3, 2, 1, 0.5], "val_loss": [3.0, 2.5, 2.4, 2.6]}
    short = {"train_loss": [3, 2], "val_loss": [3.1, 2.9], "val_accuracy": [0.5, 0.6]}
    folds = [{"history": long}, {"history": short}, {"history": None}, {"history": {"odd": 1}}]
    assert histories(folds) == [long, short]
    figure = plot_learning_curves(folds)
    loss, accuracy = figure.axes
    means = [line for line in loss.lines if line.get_label() == "training"]
    assert means[0].get_ydata().tolist() == [3, 2]  # as far as all folds go
    assert (loss.get_xlabel(), accuracy.get_ylabel()) == ("epoch", "accuracy")
    assert plot_learning_curves([{"history": None}]) is None


def test_a_fit_without_validation_rows_has_no_panel_for_them():
    history = {"train_loss": [3.0, 2.0], "val_loss": [], "val_accuracy": []}
    (loss,) = plot_learning_curves([{"history": history}]).axes
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training"]
    empty = {name: [] for name in history}
    assert plot_learning_curves([{"history": empty}]) is None


def test_every_curve_has_a_line_style_of_its_own(contents):
    for figure in (plot_roc(contents), plot_precision_recall(contents)):
        (axes,) = figure.axes
        lines = [line for line in axes.lines if line.get_label() != "chance"]
        assert len({line.get_linestyle() + str(line._dash_pattern) for line in lines}) == len(lines)
        assert any("3 folds" in text.get_text() for text in axes.get_legend().get_texts())
        assert axes.get_xlabel()
        assert axes.get_ylabel()


def test_things_differ_in_colour_or_marker():
    looks = {(colour(i), marker(i)) for i in range(40)}
    assert len(looks) == 40
    assert len(set(COLOURS)) == len(COLOURS)
    assert len(set(MARKERS)) == len(MARKERS)


def test_two_classes_have_the_curve_of_the_second(tmp_path):
    from .conftest import make_run, own_split

    right = np.random.default_rng(0).random(80) < 0.8
    run = make_run(tmp_path, make_features(), own_split(80, 40), right, "mlp")
    found = read_contents(run.folder)
    labels = [text.get_text() for text in plot_roc(found).axes[0].get_legend().get_texts()]
    assert [label for label in labels if label.startswith("dog (AUC")]
    assert not [label for label in labels if label.startswith("cat")]
    assert plot_reliability(found) is not None


def test_the_front_is_what_nothing_beats_in_both(tmp_path):
    one, _ = make_odd_run(tmp_path)
    table = {"a": (0.9, 1.0), "b": (0.8, 0.1), "c": (0.85, 2.0), "d": (0.95, 5.0), "e": (0.9, 3)}
    runs = [replace(one, head=h, metrics={"accuracy": acc}, fit_seconds=s, interval=(acc, acc))
            for h, (acc, s) in table.items()]  # fmt: skip
    assert [run.head for run in front(runs)] == ["b", "a", "d"]
    assert plot_cost(runs) is not None
    assert plot_cost(runs[:1]) is None


def test_rivals_and_duel(tmp_path):
    fused, _ = make_odd_run(tmp_path, "mlp", right_rate=0.95)
    single, _ = make_odd_run(tmp_path, "svm", right_rate=0.4, backbones=("big",))
    assert rivals([fused, single]) == (fused, single)
    assert rivals([fused]) is None
    a, b = read_contents(fused.folder), read_contents(single.folder)
    rows = duel(a, b)
    assert [row.gain for row in rows] == sorted((row.gain for row in rows), reverse=True)
    of = {score.name: score.f1 for score in class_scores(b)}
    assert all(row.f1[1] == of[row.name] for row in rows)


def test_an_old_picture_does_not_outlive_a_plot_that_fails(tmp_path, caplog):
    assert draw("roc", tmp_path, lambda: new_figure(3, 3))
    assert (tmp_path / "roc.svg").is_file()
    assert not draw("roc", tmp_path, lambda: None)
    assert list(tmp_path.iterdir()) == []
