"""Selection, tuning and weights of backbones on their way into a run folder."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from featcache.errors import RecipeError, UnknownName
from featcache.fitting.grid import Candidate
from featcache.fitting.splits import make_folds
from featcache.reporting.compare import compare
from featcache.reporting.comparison import write_comparison
from featcache.reporting.run_page import write_run_page
from featcache.reporting.schema import read_run

from .conftest import make_features


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


def test_no_weights_without_a_fusion_that_has_them(tmp_path):
    run = compare(make_features(60), head="knn", folds=2, reports=tmp_path, singles=False).best
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

    def linear_svm(gamma):
        machine = LinearSVC(C=0.03 * gamma, max_iter=10_000, random_state=steps)
        cv = StratifiedKFold(3, shuffle=True, random_state=parts)
        return CalibratedClassifierCV(machine, cv=cv, ensemble=False)

    made = {
        "logreg": lambda gamma: LogisticRegression(C=0.01, max_iter=1000),
        "svm": linear_svm,
    }
    table = compare(features, head=list(made), singles=False, folds=4, reports=tmp_path / "r",
                    settings={"svm.kernel": "linear"})  # fmt: skip
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
