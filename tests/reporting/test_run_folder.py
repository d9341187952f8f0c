"""Run folders: what goes in comes out, all of it or nothing."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featcache.errors import DataError
from featcache.fitting.grid import Candidate, fit_candidate
from featcache.fitting.persist import load_pipeline
from featcache.fitting.splits import folds_from_json, make_folds
from featcache.reporting import run_folder
from featcache.reporting.bundle import FOLDER, read_facts
from featcache.reporting.compare import compare
from featcache.reporting.run_folder import save_run
from featcache.reporting.schema import folder_name, read_run, rows_digest, run_digest

from .conftest import make_features, make_result, make_run, own_split

RIGHT = np.arange(80) % 10 > 0


def test_a_saved_run_is_read_as_it_was(tmp_path):
    features = make_features()
    saved = make_run(tmp_path, features, make_folds(features, 4), RIGHT, "mlp", seconds=2.5)
    assert read_run(saved.folder) == saved
    assert saved.name == "big+small.concat.mlp"
    assert (saved.data, saved.split, saved.tested) == ("toy", "4 folds", 80)
    assert saved.fit_seconds == 2.5
    assert saved.metric("accuracy") == pytest.approx(0.9)
    assert np.isnan(saved.metric("nothing"))


def test_undefined_numbers_are_null_in_json(tmp_path):
    features = make_features()
    saved = make_run(tmp_path, features, own_split(80, 40), RIGHT, "mlp")
    assert saved.split == "test split"
    assert saved.sd["accuracy"] is None
    assert "NaN" not in (saved.folder / "metrics.json").read_text()
    assert read_run(saved.folder) == saved


def test_predictions_and_folds_are_those_of_the_result(tmp_path):
    features = make_features()
    folds = make_folds(features, 4)
    saved = make_run(tmp_path, features, folds, RIGHT, "mlp")
    with (saved.folder / "predictions.csv").open() as file:
        table = {row["id"]: row for row in csv.DictReader(file)}
    assert sorted(table) == features.ids.tolist()
    for i, id_ in enumerate(features.ids.tolist()):
        row = table[id_]
        assert row["true"] == features.y[i]
        assert (row["pred"] == row["true"]) == RIGHT[i]
        assert float(row[f"p_{row['pred']}"]) == 0.9
    kept = folds_from_json(json.loads((saved.folder / "splits.json").read_text()), features)
    for fold, other in zip(kept, folds, strict=True):
        np.testing.assert_array_equal(fold.train, other.train)
        np.testing.assert_array_equal(fold.test, other.test)
        assert {table[id_]["fold"] for id_ in features.ids[fold.test].tolist()} == {fold.name}


def test_awkward_ids_and_labels_survive(tmp_path):
    features = make_features()
    ids = features.ids.astype("U40")
    ids[:3] = ['a,"b".png', "line\nbreak.png", "ünïcode 猫.png"]
    saved = make_run(tmp_path, replace(features, ids=ids), own_split(80, 80)[:1], RIGHT, "mlp")
    with (saved.folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        assert [row["id"] for row in csv.DictReader(file)][:3] == ids[:3].tolist()


@pytest.mark.parametrize("broken", ["_metrics", "write_predictions"])
def test_a_save_that_fails_leaves_the_run_before_it(tmp_path, monkeypatch, broken):
    features = make_features()
    folds = own_split(80, 40)
    before = make_run(tmp_path, features, folds, RIGHT, "mlp")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(run_folder, broken, full)
    for head in ("mlp", "svm"):
        with pytest.raises(OSError, match="no space"):
            make_run(tmp_path, features, folds, ~RIGHT, head)
    assert list((tmp_path / "toy").iterdir()) == [before.folder]
    assert read_run(before.folder) == before


def test_a_run_takes_the_place_of_the_one_before_it(tmp_path):
    features = make_features()
    folds = own_split(80, 40)
    before = make_run(tmp_path, features, folds, RIGHT, "mlp")
    (before.folder / "stray.txt").write_text("of the run before")
    after = make_run(tmp_path, features, folds, ~RIGHT, "mlp")
    assert after.folder == before.folder
    assert read_run(after.folder).metric("accuracy") == pytest.approx(0.1)
    assert sorted(path.name for path in after.folder.iterdir()) == [
        "metrics.json", "predictions.csv", "run.json", "splits.json",
    ]  # fmt: skip


def test_no_model_is_pickled(tmp_path):
    saved = make_run(tmp_path, make_features(), own_split(80, 40), RIGHT, "mlp")
    assert {path.suffix for path in saved.folder.iterdir()} == {".json", ".csv"}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("run.json", ""),
        ("run.json", "[]"),
        ("run.json", "{}"),
        ("metrics.json", '{"mean": {}, "sd": {}, "interval": [0]}'),
        ("metrics.json", None),
        ("run.json", "[" * 100_000),
        (
            "metrics.json",
            '{"mean": {"accuracy": 1' + "0" * 400 + '}, "sd": {}, "interval": [0, 1]}',
        ),
    ],
)
def test_what_is_no_run_folder_says_so(tmp_path: Path, file: str, text: str | None):
    saved = make_run(tmp_path, make_features(), own_split(80, 40), RIGHT, "mlp")
    if text is None:
        (saved.folder / file).unlink()
    else:
        (saved.folder / file).write_text(text)
    with pytest.raises(DataError, match="is no run folder"):
        read_run(saved.folder)


def relabelled():
    features = make_features()
    return replace(features, y=features.y[::-1].copy())


@pytest.mark.parametrize(
    "changed",
    [
        {"features": relabelled()},
        {"features": replace(make_features(), keys=("key0", "another"))},
        {"features": replace(make_features(), names=("big", "other"))},
        {"features": make_features().select(["big"])},
        {"features": replace(make_features(), sha256=make_features().sha256[::-1].copy())},
        {"folds": 3},
        {"folds": 4, "split_seed": 1},
        {"fusion": "attention"},
        {"head": "svm"},
        {"seed": 1},
        {"settings": {"head.hidden": 8}},
    ],
    ids=["label", "key", "backbone", "fewer", "content", "split", "folds", "fusion", "head",
         "seed", "setting"],
)  # fmt: skip
def test_everything_that_a_run_depends_on_is_in_its_digest(changed):
    assert digest(**changed) != digest()


def digest(
    features=None, folds=4, split_seed=0, fusion="concat", head="mlp", seed=0, settings=None
):
    features = make_features() if features is None else features
    rows = rows_digest(features, make_folds(make_features(), folds, seed=split_seed))
    return run_digest(features, rows, fusion, head, seed, settings or {})


def test_the_order_of_rows_is_not_in_the_digest():
    features = make_features()
    folds = make_folds(features, 4)
    order = np.random.default_rng(1).permutation(len(features))
    place = np.argsort(order)
    moved = replace(
        features, X=features.X[order], y=features.y[order], ids=features.ids[order],
        sha256=features.sha256[order], groups=features.groups[order], split=features.split[order],
    )  # fmt: skip
    same = [replace(fold, train=place[fold.train], test=place[fold.test]) for fold in folds]
    assert rows_digest(moved, same) == rows_digest(features, folds)
    # The data's own split lists its rows in the order in which they come.
    sides = np.where(np.arange(80) < 60, "train", "test")
    own, other = replace(features, split=sides), replace(moved, split=sides[order])
    assert rows_digest(other, make_folds(other)) == rows_digest(own, make_folds(own))


def test_groups_stand_with_the_predictions_where_there_are_any(tmp_path):
    features = make_features(groups=[f"patient{i // 8}" for i in range(80)])
    result = make_result(features, own_split(80, 40), RIGHT, "mlp")
    folder = tmp_path / "toy" / "run"
    save_run(folder, result, features, own_split(80, 40), rows="", seed=0, settings={})
    with (folder / "predictions.csv").open() as file:
        groups = [row["group"] for row in csv.DictReader(file)]
    assert [groups[i : i + 8] for i in range(0, 40, 8)] == [
        [groups[i]] * 8 for i in range(0, 40, 8)
    ]
    assert len(set(groups)) == 5


def test_a_folder_s_name_is_the_candidate_s_and_fits_a_file_system(tmp_path):
    assert folder_name("a+b.concat.mlp", "0123456789" * 6) == "a+b.concat.mlp.01234567"
    many = "+".join(f"efficientnet_b{i}" for i in range(40))
    names = {folder_name(f"{many}.{how}.mlp", f"{i:064x}"[::-1]) for i, how in enumerate("cs")}
    assert len(names) == 2
    for name in names:
        assert name.startswith("efficientnet_b0+efficientnet_b1")
        assert len(f".{name}.1234567.tmp".encode()) < 255
        (tmp_path / name).mkdir()
    assert len(folder_name("猫" * 90, "0" * 64).encode()) < 240


def test_many_backbones_make_a_run_that_keeps_its_full_name(tmp_path):
    features = make_features()
    wide = replace(features, names=("a" * 150, "b" * 150))
    run = compare(wide, head="ridge", folds=2, singles=False, reports=tmp_path).best
    assert run.folder.is_dir()
    plain = json.loads((run.folder / "run.json").read_text())
    assert plain["name"] == f"{'a' * 150}+{'b' * 150}.concat.ridge"
    assert read_run(run.folder).backbones == wide.names


@pytest.mark.parametrize(
    "changed",
    [
        {"tested": 10**400},
        {"tune": float("inf")},
        {"tune": "20"},
        {"select": 5},
        {"keys": [5]},
        {"keys": {"big": 5}},
        {"versions": "1.0"},
        {"settings": "none"},
        {"view": 4},
        {"leaky": "yes"},
        {"extraction_seconds": {"big": None}},
        {"command": 5},
    ],
    ids=str,
)
def test_a_value_of_another_type_is_named(tmp_path: Path, changed: dict[str, object]):
    saved = make_run(tmp_path, make_features(), own_split(80, 40), RIGHT, "mlp")
    path = saved.folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(DataError, match=f"is no run folder: TypeError {next(iter(changed))} is"):
        read_run(saved.folder)


def test_a_run_of_another_version_is_read(tmp_path: Path) -> None:
    saved = make_run(tmp_path, make_features(), own_split(80, 40), RIGHT, "mlp")
    path = saved.folder / "run.json"
    facts = json.loads(path.read_text())
    for later in ("leaky", "select", "tune", "view", "balance", "seed", "settings", "classes"):
        del facts[later]
    path.write_text(json.dumps({**facts, "group": None, "of a later version": [1]}))
    found = read_run(saved.folder)
    assert found == saved
    assert (found.seed, found.settings, found.classes, found.group) == (0, {}, (), "")
    assert found.keys == saved.keys == {"big": "key0", "small": "key1"}


def test_what_another_process_has_written_meanwhile_stays(tmp_path: Path):
    features, folds = make_features(), own_split(80, 40)
    theirs = make_run(tmp_path, features, folds, RIGHT, "mlp", seconds=1.0)
    (theirs.folder / "model").mkdir()  # which it is about to fill
    result = make_result(features, folds, ~RIGHT, "mlp", seconds=9.0)
    kept = save_run(
        theirs.folder, result, features, folds, rows=theirs.rows, seed=0, settings={}, again=False
    )
    assert kept == theirs
    assert (theirs.folder / "model").is_dir()
    assert [path.name for path in theirs.folder.parent.iterdir()] == [theirs.folder.name]
    (theirs.folder / "run.json").unlink()  # no whole folder: replaced
    kept = save_run(
        theirs.folder, result, features, folds, rows=theirs.rows, seed=0, settings={}, again=False
    )
    assert kept.fit_seconds == 9.0
    assert read_run(theirs.folder) == kept


def test_a_colon_is_in_no_folders_name() -> None:
    assert folder_name("timm:a+b.concat.mlp", "0" * 64) == "timm.a+b.concat.mlp.00000000"
    of_hub = folder_name("timm:hf-hub:a/b@v/1.concat.mlp", "0" * 64)
    assert of_hub == "timm.hf-hub.a_b@v_1.concat.mlp.00000000"


# Which model a comparison keeps.

QUICK = {"mlp.epochs": 2}


def _model(run: Path):
    facts = read_facts(run / FOLDER)
    return load_pipeline(run / FOLDER, facts["parts"]), facts


def test_on_a_test_split_every_run_keeps_what_was_scored(tmp_path: Path) -> None:
    features = make_features()
    split = np.where(np.arange(len(features)) % 4, "train", "test")
    features = replace(features, split=split)
    done = compare(features, head=["logreg", "mlp"], settings=QUICK, reports=tmp_path)
    for run in done.runs:
        pipeline, facts = _model(run.folder)
        assert facts["trained_on"] == {"rows": 60, "what": "the training rows of the test split"}
        chosen = features.select(run.backbones)
        candidate = Candidate(run.backbones, run.fusion, run.head)
        mine = QUICK if run.head == "mlp" else {}
        own = fit_candidate(candidate, chosen, np.flatnonzero(split == "train"), 0, mine)
        np.testing.assert_allclose(
            pipeline.predict_proba(chosen.X), own.predict_proba(chosen.X), atol=1e-6
        )


def test_with_folds_the_best_is_fitted_again_on_all_rows(tmp_path: Path) -> None:
    features = make_features()
    done = compare(features, head=["logreg", "dummy"], folds=3, reports=tmp_path)
    kept = [run.name for run in done.runs if (run.folder / FOLDER).exists()]
    assert kept == [done.best.name]
    pipeline, facts = _model(done.best.folder)
    assert facts["trained_on"] == {"rows": len(features), "what": "all rows, refitted"}
    assert facts["backbones"][0]["key"] is None  # these features came from no cache
    own = fit_candidate(
        Candidate(done.best.backbones, done.best.fusion, done.best.head),
        features.select(done.best.backbones),
    )
    X = features.select(done.best.backbones).X
    np.testing.assert_allclose(pipeline.predict_proba(X), own.predict_proba(X), atol=1e-6)


def test_another_candidate_gets_its_model_when_it_is_fitted_alone(tmp_path: Path) -> None:
    features = make_features()
    done = compare(features, head=["logreg", "dummy"], folds=3, reports=tmp_path, singles=False)
    other = next(run for run in done.runs if run.folder != done.best.folder)
    before = (other.folder / "run.json").read_bytes()
    compare(features, head=other.head, folds=3, reports=tmp_path, singles=False)
    assert _model(other.folder)[1]["head"] == other.head
    assert (other.folder / "run.json").read_bytes() == before


def test_settings_of_other_heads_are_not_recorded(tmp_path: Path) -> None:
    settings = {"svm.C": 3.0, "logreg.C": 0.5}
    done = compare(make_features(), head="logreg", settings=settings, folds=2, reports=tmp_path)
    assert _model(done.best.folder)[1]["settings"] == {"logreg.C": 0.5}


@pytest.mark.parametrize("options", [{"select": "anova:2"}, {"tune": 2}, {"fusion": "vote"}])
def test_selections_searches_and_late_fusions_are_kept_too(
    tmp_path: Path, options: dict[str, object]
) -> None:
    features = make_features()
    run = compare(features, head="mlp", settings=QUICK, folds=2, reports=tmp_path,
                  singles=False, **options).best  # fmt: skip
    pipeline, facts = _model(run.folder)
    assert facts["name"] == run.name
    assert pipeline.predict(features.X).shape == (len(features),)
