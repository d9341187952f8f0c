"""The grid is fitted once, on shared folds, and kept."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from featcache.errors import CacheRefused, FeatcacheError, RecipeError, UnknownName
from featcache.fitting.grid import Candidate
from featcache.fitting.metrics import interval
from featcache.fitting.splits import make_folds
from featcache.reporting import compare as module
from featcache.reporting import leaks
from featcache.reporting.compare import compare
from featcache.reporting.comparison import write_comparison
from featcache.reporting.run_page import write_run_page
from featcache.reporting.schema import read_run, rows_digest

from .conftest import make_features, make_run


@pytest.fixture
def fitted(monkeypatch):
    """The candidates that were really fitted, by name."""
    seen: list[str] = []
    evaluate_all = module.evaluate_all

    def counted(*args, **kwargs):
        for candidate, result in evaluate_all(*args, **kwargs):
            seen.append(candidate.name)
            yield candidate, result

    monkeypatch.setattr(module, "evaluate_all", counted)
    return seen


def test_every_candidate_once_on_the_same_rows(tmp_path, fitted):
    told = []
    done = compare(
        make_features(), head=["logreg", "svm"], folds=3, reports=tmp_path,
        fitted=lambda *facts: told.append(facts),
    )  # fmt: skip
    names = {f"{b}.concat.{h}" for b in ("big+small", "big", "small") for h in ("logreg", "svm")}
    assert {run.name for run in done} == set(fitted) == names
    assert len(fitted) == 6
    assert len({run.rows for run in done}) == 1
    assert [(number, count) for number, count, _ in told] == [(i, 6) for i in range(1, 7)]
    accuracy = [run.metric("accuracy") for run in done]
    assert accuracy == sorted(accuracy, reverse=True)
    assert done.best.p is None
    assert all(run.p is not None for run in done.runs[1:])
    for name in ("comparison.csv", "comparison.md", "toy/comparison.png"):
        assert (tmp_path / name).stat().st_size > 0


def test_the_same_again_fits_nothing(tmp_path, fitted):
    options = {"head": ["logreg"], "folds": 3, "reports": tmp_path}
    first = compare(make_features(), **options)
    fitted.clear()
    assert compare(make_features(), **options) == first
    assert fitted == []
    compare(make_features(), **options, singles=False, again=True)
    assert fitted == ["big+small.concat.logreg"]


def test_the_order_of_the_backbones_makes_no_other_candidate(tmp_path, fitted):
    options = {"head": "logreg", "fusion": ["concat", "vote"], "folds": 3, "reports": tmp_path}
    first = compare(make_features().select(["small", "big"]), **options)
    # As they were before there was one order.
    assert {run.folder.name for run in first} == {
        "big+small.concat.logreg.574e9f92", "big+small.vote.logreg.db3c4288",
        "big.concat.logreg.1db981ae", "small.concat.logreg.c27d1a12",
    }  # fmt: skip
    fitted.clear()
    assert compare(make_features(), **options) == first
    assert fitted == []


def test_a_setting_redoes_only_the_candidates_that_it_is_for(tmp_path, fitted):
    options = {"head": ["logreg", "svm"], "folds": 3, "reports": tmp_path, "singles": False}
    compare(make_features(), **options)
    fitted.clear()
    compare(make_features(), **options, settings={"svm.C": 3.0})
    assert fitted == ["big+small.concat.svm"]


def test_other_labels_or_another_seed_are_fitted_again(tmp_path, fitted):
    options = {"head": "logreg", "folds": 3, "reports": tmp_path, "singles": False}
    compare(make_features(), **options)
    compare(make_features(), **options, seed=1)
    features = make_features()
    compare(replace(features, y=np.roll(features.y, 1)), **options)
    assert len(fitted) == 3


def test_broken_features_are_refused_before_anything_is_fitted(tmp_path, fitted):
    features = make_features()
    X = features.X.copy()
    X[3] = np.nan
    with pytest.raises(CacheRefused):
        compare(replace(features, X=X), head="logreg", reports=tmp_path)
    assert fitted == []
    assert not list(tmp_path.iterdir())


def test_a_backbone_with_signal_is_told_from_one_without(tmp_path):
    features = make_features(600, signal=3.0)
    X = features.X.copy()
    X[:, 3:] = np.random.default_rng(9).normal(size=(600, 2))
    split = np.where(np.arange(600) < 300, "train", "test")
    done = compare(replace(features, X=X, split=split), head="logreg", reports=tmp_path)
    assert done.best.split == "test split"
    # Of the two with the signal one is best and the other ties.
    assert [run.tie for run in done] == [False, True, False]
    assert done.runs[2].backbones == ("small",)


def test_a_reports_folder_that_can_t_be_written_is_refused_before_anything_is_fitted(
    tmp_path, fitted
):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(FeatcacheError, match="can't be written") as caught:
        compare(make_features(), head="logreg", folds=3, reports=tmp_path / "taken")
    assert "--reports" in caught.value.remedy
    assert fitted == []


# Selection, tuning and weights of backbones on their way into a run folder.


def facts_of(run):
    read = ("run.json", "metrics.json")
    return [json.loads((run.folder / name).read_text()) for name in read]


def test_names():
    plain = Candidate(("r", "m"), "concat", "mlp")
    assert plain.name == "r+m.concat.mlp"
    chosen = Candidate(("r", "m"), "concat", "mlp", select="anova:256", tune=20)
    assert chosen.name == "r+m.concat.anova-256.mlp.tuned-20"


def test_runs_with_options_have_another_digest(tmp_path):
    features = make_features(60)

    def run(**options):
        return compare(
            features, head="logreg", singles=False, folds=2, reports=tmp_path, **options
        ).best

    runs = [run(), run(select="anova:2"), run(select="anova:3"), run(tune=2), run(tune=3)]
    assert len({one.folder for one in runs}) == 5
    assert run(select="anova:2").folder == runs[1].folder
    assert (runs[1].select, runs[3].tune) == ("anova:2", 2)
    for one in runs:
        again = read_run(one.folder)
        assert (again.name, again.select, again.tune) == (one.name, one.select, one.tune)
    facts, scores = facts_of(runs[3])
    assert facts["settings"] == {"tune": 2, "tuner": "random"}
    for fold in scores["folds"]:
        assert set(fold["tuned"]) >= {"tries", "chosen", "score", "default_score", "cv"}
    assert "tuned" not in facts_of(runs[0])[1]["folds"][0]
    table = compare(features, head="logreg", folds=2, reports=tmp_path, select="anova:2")
    assert {row["select"] for row in table.rows()} == {"anova:2"}


def test_refused_before_the_first_fit(tmp_path):
    features = make_features(60)
    wrong = [({"select": "anowa"}, UnknownName), ({"tuner": "x", "tune": 1}, UnknownName)]
    for options, error in [*wrong, ({"tune": -1}, RecipeError)]:
        with pytest.raises(error):
            compare(features, head="logreg", reports=tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_memory_of_older_runs_is_neither_missed_nor_shown(tmp_path):
    """It was what a fit added to the process: the same fit four times had 49, 0, 0 and 0 MB."""
    run = compare(make_features(60), head="logreg", singles=False, folds=2, reports=tmp_path).best
    facts, scores = facts_of(run)
    assert "memory" not in {*facts, *scores["folds"][0]}
    (run.folder / "run.json").write_text(json.dumps({**facts, "memory": 48_700_000}))
    assert read_run(run.folder) == run
    write_run_page(run.folder)
    table = write_comparison(tmp_path)
    assert "memory_mb" not in table.rows()[0]
    for page in (run.folder / "report.html", tmp_path / "comparison.html"):
        assert "49 MB" not in page.read_text()


@pytest.mark.parametrize(("fusion", "head"), [("attention", "svm"), ("gated", "logreg"),
                                              ("attention", "mlp"), ("gated", "mlp")])  # fmt: skip
def test_weights_of_backbones(tmp_path, fusion, head):
    small = {f"{fusion}.dim": 8, "mlp.hidden": 8, "mlp.epochs": 2}
    run = compare(make_features(60), fusion=fusion, head=head, folds=2, reports=tmp_path,
                  singles=False, settings=small).best  # fmt: skip
    for fold in facts_of(run)[1]["folds"]:
        weights = fold["attention"]
        assert weights["classes"] == ["cat", "dog"]
        assert weights["backbones"] == ["big", "small"]
        np.testing.assert_allclose(np.sum(weights["mean"], axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(("fusion", "head"), [("concat", "knn"), ("hadamard", "mlp")])
def test_no_weights_without_a_fusion_that_has_them(tmp_path, fusion, head):
    small = {"hadamard.dim": 8, "mlp.hidden": 8, "mlp.epochs": 2}
    run = compare(make_features(60), fusion=fusion, head=head, folds=2, reports=tmp_path,
                  singles=False, settings=small).best  # fmt: skip
    assert "attention" not in facts_of(run)[1]["folds"][0]


def test_scores_are_scikit_learns_by_hand_on_exported_features(tmp_path, cache):
    """The cache, exported as npz; then nothing but scikit-learn and numpy."""
    from tiny import tiny_backbone, tiny_images

    from featcache import extract, join
    from featcache.cli.main import cli

    images = tiny_images(80, classes=2)
    for name, dim, seed in (("one", 5, 0), ("two", 4, 1)):
        extract(images, backbone=tiny_backbone(name, dim, seed), cache=cache)
    features = join([extract(images, backbone=tiny_backbone(n, d, s), cache=cache)
                     for n, d, s in (("one", 5, 0), ("two", 4, 1))])  # fmt: skip
    exported = tmp_path / "features.npz"
    done = CliRunner().invoke(cli, ["cache", "export", str(exported), "--cache", str(cache)])
    assert done.exit_code == 0, done.output
    with np.load(exported) as file:
        arrays = {name: file[name] for name in file.files}
    ids, y = arrays["ids"], arrays["y"]
    X = arrays["X"]
    place = {id_: i for i, id_ in enumerate(ids.tolist())}
    folds = make_folds(features, folds=4)
    drawn = np.random.RandomState(0)
    steps, parts = (drawn.randint(2**31 - 1) for _ in range(2))
    parts = np.random.RandomState(parts).randint(2**31 - 1)

    class LinearSVM:
        """One machine, and a sigmoid of decisions on rows that were held out in turn."""

        def __init__(self, gamma):
            self._svc = LinearSVC(C=0.03 * gamma, max_iter=10_000, random_state=steps)

        def fit(self, X, y):
            cv = StratifiedKFold(3, shuffle=True, random_state=parts)
            held = cross_val_predict(self._svc, X, y, cv=cv, method="decision_function")
            self._sigmoid = LogisticRegression(C=100.0, max_iter=1000).fit(held[:, None], y)
            self._svc.fit(X, y)
            return self

        def predict(self, X):
            return self._sigmoid.predict(self._svc.decision_function(X)[:, None])

    made = {
        "logreg": lambda gamma: LogisticRegression(C=0.01, max_iter=1000),
        "svm": LinearSVM,
    }
    table = compare(features, head=list(made), singles=False, folds=4, reports=tmp_path / "r",
                    settings={"svm.kernel": "linear", "logreg.C": 0.01})  # fmt: skip
    for run in table.runs:
        right = []
        for fold in folds:
            train, test = ([place[i] for i in features.ids[rows].tolist()]
                           for rows in (fold.train, fold.test))  # fmt: skip
            scaler = StandardScaler().fit(X[train])
            A, B = scaler.transform(X[train]), scaler.transform(X[test])
            fitted = made[run.head](1 / (A.shape[1] * A.var())).fit(A, y[train])
            right.append((fitted.predict(B) == y[test]).mean())
        assert run.metric("accuracy") == pytest.approx(np.mean(right), abs=1e-9)


# Views, leaks and repeated folds on their way through a comparison to the run folders.


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
    find = leaks.find_leaks

    def counted(features, folds, near):
        searched.append(near)
        return find(features, folds, near)

    monkeypatch.setattr(leaks, "find_leaks", counted)
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


def test_what_was_run_before_there_was_a_dhash_is_searched_again(tmp_path, caplog):
    options = {"head": "logreg", "reports": tmp_path}
    plain = planted()
    compare(plain, **options)
    assert "dHash: " not in caplog.text
    dhash = np.random.default_rng(0).integers(0, 256, (len(plain), 32), dtype=np.uint8)
    dhash[70] = dhash[4]
    features = replace(plain, dhash=dhash)
    done = compare(features, **options)
    assert "img00070.png = img00004.png" in caplog.text
    compare(features, again=True, **options)
    found = json.loads((done.best.folder / "leaks.json").read_text())
    assert found["hashed"] == len(plain)
    assert (
        {"near duplicates", "near labels"} >= {leak["kind"] for leak in found["leaks"][1:]} > set()
    )
    caplog.clear()
    compare(features, near_duplicates=False, **options)
    assert "near duplicates" not in caplog.text


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
    """Each row's mean over the repeats, with Nadeau & Bengio's factor of three folds."""
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
    differences = rights[0] * 1.0 - rights[1]
    t = differences.mean() / np.sqrt((1 + 3 * 20 / 40) * differences.var(ddof=1) / 60)
    assert other.p == pytest.approx(2 * stats.t.sf(t, df=59), abs=0.01)
    with (best.folder / "predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 120
    assert len({(line["id"], line["fold"]) for line in lines}) == 120
    assert {line["fold"] for line in lines} == {fold.name for fold in folds}


def test_the_interval_of_repeated_folds_draws_each_image_with_all_its_tests():
    """About as wide as that of one K-fold: repeats add no images."""
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
    mean = result.metrics["accuracy"]
    reach = 1.98 * np.sqrt(1.5 * mean * (1 - mean) / 120)  # 1 + test / train of three folds
    assert result.interval == pytest.approx((mean - reach, mean + reach), abs=0.015)
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


def test_raw_probabilities_are_short_for_settings(tmp_path, fitted):
    def runs(**options):
        done = compare(
            make_features(), fusion=["concat", "vote"], head=["mlp", "knn"], singles=False, folds=2,
            reports=tmp_path, **options,
        )  # fmt: skip
        return {(run.fusion, run.head): run for run in done}

    short = {"mlp.epochs": 2, "mlp.hidden": 8}
    plain, raw = runs(settings=short), runs(settings=short, calibrate=False)
    assert raw["concat", "mlp"].settings == {**short, "mlp.calibrate": False}
    assert raw["vote", "mlp"].settings == {**short, "mlp.calibrate": False, "vote.calibrate": False}
    assert raw["concat", "knn"].settings == {}
    assert raw["concat", "knn"].folder == plain["concat", "knn"].folder
    assert raw["concat", "mlp"].metric("log_loss") != plain["concat", "mlp"].metric("log_loss")
    assert raw["concat", "mlp"].metric("accuracy") == plain["concat", "mlp"].metric("accuracy")
    before = len(fitted)
    runs(settings={**short, "mlp.calibrate": False, "vote.calibrate": False})
    assert len(fitted) == before
