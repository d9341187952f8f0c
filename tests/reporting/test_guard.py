"""Views, leaks and repeated folds on their way through a comparison to the run folders."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from featcache.errors import CacheRefused, RecipeError
from featcache.fitting.metrics import interval
from featcache.fitting.splits import make_folds
from featcache.reporting import compare as module
from featcache.reporting.compare import compare
from featcache.reporting.schema import read_run, rows_digest

from .conftest import make_features, make_run


def with_views(features, view="hflip"):
    """The features and a view of each row, a little off its image."""
    noise = np.random.default_rng(1).normal(scale=0.1, size=features.X.shape)
    return replace(
        features,
        X=np.concatenate([features.X, features.X + noise.astype(np.float32)]),
        ids=np.concatenate([features.ids, np.char.add(features.ids, f"@{view}")]),
        view=np.repeat(["none", view], len(features)),
        **{
            name: np.tile(getattr(features, name), 2) for name in ("y", "sha256", "groups", "split")
        },
    )


def planted(n=80):
    """Features with a test image whose bytes are among the training images too."""
    features = make_features(n)
    sha256 = features.sha256.copy()
    sha256[n - 1] = sha256[1]
    split = np.where(np.arange(n) < n * 3 // 4, "train", "test")
    return replace(features, sha256=sha256, split=split)


def run_json(run):
    return json.loads((run.folder / "run.json").read_text())


def test_leaks_are_warned_of_and_listed_in_every_run(tmp_path, caplog):
    done = compare(planted(), head="logreg", reports=tmp_path)
    assert "1 test image is also among the training images: img00079.png = img00001.png" in (
        caplog.text
    )
    for run in done:
        found = json.loads((run.folder / "leaks.json").read_text())
        assert [leak["kind"] for leak in found["leaks"]] == ["duplicates"]
        assert found["leaks"][0]["pairs"] == [["img00079.png", "img00001.png"]]


def test_strict_refuses_and_lists(tmp_path):
    with pytest.raises(CacheRefused, match="img00079") as caught:
        compare(planted(), head="logreg", reports=tmp_path, strict=True)
    listed = tmp_path / "toy" / "leaks.json"
    assert str(listed) in caught.value.remedy
    assert json.loads(listed.read_text())["leaks"][0]["count"] == 1
    assert not list(tmp_path.glob("*/*/run.json"))
    done = compare(make_features(), head="logreg", folds=3, reports=tmp_path, strict=True)
    assert run_json(done.best)["strict"] is True


def test_the_search_is_made_once_and_not_again_for_what_was_run(tmp_path, monkeypatch, caplog):
    searched = []
    find = module.find_leaks

    def counted(features, folds, near):
        searched.append(near)
        return find(features, folds, near)

    monkeypatch.setattr(module, "find_leaks", counted)
    options = {"head": ["logreg", "ridge"], "reports": tmp_path}
    compare(planted(), near_duplicates=False, **options)
    assert searched == [False]
    compare(planted(), near_duplicates=False, **options)
    assert searched == [False]
    assert caplog.text.count("1 test image is also") == 2
    compare(planted(), **options)
    assert searched == [False, True]  # the first did not look for near duplicates
    with pytest.raises(CacheRefused):
        compare(planted(), near_duplicates=False, strict=True, **options)
    assert len(searched) == 2


def test_views_are_in_the_rows_and_in_run_json(tmp_path):
    plain, seen = make_features(), with_views(make_features())
    digests = {
        rows_digest(plain, make_folds(plain, 4)),
        rows_digest(seen, make_folds(seen, 4)),
        rows_digest(seen, make_folds(seen, 4, leaky=True)),
        rows_digest(plain, make_folds(plain, 4, leaky=True)),
    }
    assert len(digests) == 4
    run = compare(seen, head="logreg", folds=4, reports=tmp_path, singles=False).best
    assert run_json(run)["view"] == ["hflip"]
    assert run_json(run)["leaky"] is False
    assert (run.tested, run.leaky) == (80, False)
    folds = json.loads((run.folder / "metrics.json").read_text())["folds"]
    assert {(fold["train"], fold["train_images"], fold["test"]) for fold in folds} == {
        (120, 60, 20)
    }
    again = compare(seen, head="logreg", folds=4, reports=tmp_path, singles=False).best
    assert again == run


def test_a_leaky_protocol_says_so_everywhere(tmp_path):
    seen = with_views(make_features())
    done = compare(seen, head="logreg", folds=4, leaky=True, reports=tmp_path)
    assert all(run.leaky and run_json(run)["leaky"] is True for run in done)
    assert read_run(done.best.folder).leaky
    assert done.best.split == "4 folds, leaky"
    assert done.best.tested == 160
    assert done.markdown().splitlines()[0].startswith("LEAKY PROTOCOL: in all runs views")
    assert (tmp_path / "comparison.md").read_text().startswith("LEAKY PROTOCOL: ")
    compare(seen, head="logreg", folds=4, reports=tmp_path)
    text = (tmp_path / "comparison.md").read_text()
    assert text.startswith("LEAKY PROTOCOL: in 3 of 6 runs")
    assert "toy, 4 folds, leaky: LEAKY PROTOCOL: in all runs" in text
    honest = compare(seen, head="logreg", folds=4, reports=tmp_path)
    assert "LEAKY" not in honest.markdown()


def test_wishes_that_exclude_each_other(tmp_path):
    with pytest.raises(RecipeError, match="leaky and strict"):
        compare(make_features(), leaky=True, strict=True, reports=tmp_path)
    with pytest.raises(RecipeError, match="no views"):
        compare(make_features(), balance=True, reports=tmp_path)


def test_repeated_folds_against_the_formula_by_hand(tmp_path):
    """Nadeau & Bengio's t with K x R terms, pooled interval, each row R lines."""
    features = make_features(60)
    folds = make_folds(features, folds=3, repeats=2)
    rng = np.random.default_rng(0)
    rights = [rng.random(60) < share for share in (0.9, 0.6)]
    for head, right in zip(("best", "other"), rights, strict=True):
        make_run(tmp_path, features, folds, right, head)
    from featcache.reporting.comparison import read_runs, sort_runs

    best, other = sort_runs(read_runs(tmp_path)).runs
    assert best.split == "2 x 3 folds"
    assert best.tested == 60
    differences = np.array([(rights[0][f.test] * 1.0 - rights[1][f.test]).mean() for f in folds])
    t = differences.mean() / np.sqrt((1 / 6 + 20 / 40) * differences.var(ddof=1))
    assert other.p == pytest.approx(2 * stats.t.sf(t, df=5))
    with (best.folder / "predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 120
    assert len({(line["id"], line["fold"]) for line in lines}) == 120
    assert {line["fold"] for line in lines} == {fold.name for fold in folds}


def test_the_interval_of_repeated_folds_draws_each_image_with_all_its_tests():
    """As wide as that of one K-fold with the same outcomes: repeats add no images."""
    from featcache.fitting.evaluate import evaluate
    from featcache.fitting.pipeline import make_classifier

    features = make_features(120, signal=1.0)
    split = make_folds(features, folds=3, repeats=5)
    result = evaluate(make_classifier("concat", "logreg"), features, split=split)
    outcome: dict[str, list[bool]] = {}
    for fold in result.folds:
        for id_, right in zip(fold.ids.tolist(), (fold.true == fold.pred).tolist(), strict=True):
            outcome.setdefault(id_, []).append(right)
    assert {len(rights) for rights in outcome.values()} == {5}
    shares = np.array([np.mean(rights) for rights in outcome.values()])
    draws = np.random.default_rng(1).choice(shares, (4000, 120)).mean(axis=1)
    assert result.interval == pytest.approx(np.percentile(draws, (2.5, 97.5)), abs=0.012)
    naive = interval(np.concatenate(list(outcome.values())))
    assert naive[1] - naive[0] < 0.7 * (result.interval[1] - result.interval[0])


def test_a_backbone_that_saw_test_rows_is_refused_before_any_fit(tmp_path):
    features = make_features()
    seen = replace(features, trained_on=(frozenset(features.sha256[:3].tolist()), frozenset()))
    with pytest.raises(CacheRefused, match="big was fine-tuned on 3 of 80"):
        compare(seen, head="logreg", reports=tmp_path)
    assert not list(tmp_path.glob("*/*/run.json"))


@pytest.mark.parametrize("damaged", ["", "[]", '{"leaks": 5}', "[" * 100_000])
def test_damaged_findings_are_found_again(tmp_path, caplog, damaged):
    features = planted()
    run = compare(features, head="nearest_mean", reports=tmp_path, singles=False).best
    found = len(caplog.records)
    assert found
    (run.folder / "leaks.json").write_text(damaged)
    compare(features, head="nearest_mean", reports=tmp_path, singles=False)
    assert len(caplog.records) > found
