"""Recipes: strict, helpful, and the same experiment as the commands."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from packages import XGBOOST, needs_xgboost

from featcache.cli.main import run as command
from featcache.errors import FeatcacheError, RecipeError, UnknownName
from featcache.recipe import (
    Recipe,
    check_here,
    extract_for,
    load_recipe,
    make_recipe,
    protocols_of,
    run,
)


def test_one_name_stands_for_a_list_of_one() -> None:
    assert make_recipe({"backbone": "resnet18"}).backbone == ["resnet18"]


@pytest.mark.parametrize(
    ("plain", "part"),
    [
        ({"backbone": "resnet18", "fusoin": "concat"}, "Did you mean fusion"),
        ({}, "lacks 'backbone'"),
        ({"backbone": "resnet18", "folds": "five"}, "folds is 'five'"),
        ({"backbone": "resnet18", "seed": True}, "seed"),
        ({"backbone": "resnet18", "seed": 2**32}, "seed"),
        ({"backbone": "resnet18", "select": "foo:3"}, "unknown selection 'foo'"),
        ({"backbone": "resnet18", "select": "anova:0"}, "amount is 0"),
        ({"backbone": []}, "backbone"),
        ({"backbone": "resnet18", "image_size": 64.5}, "image_size"),
    ],
)
def test_a_bad_recipe_is_one_clear_error(plain: dict[str, Any], part: str) -> None:
    with pytest.raises((RecipeError, UnknownName), match=part):
        make_recipe(plain)


@pytest.mark.parametrize("text", ["- a\n- b\n", "", "a: [", "1: 2", "just text", "[" * 5000])
def test_what_is_no_mapping_is_no_recipe(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"r\.yaml"):
        load_recipe(tmp_path / "r.yaml")


def test_yaml_can_t_build_objects(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("backbone: !!python/object/apply:os.system ['false']\n")
    with pytest.raises(RecipeError, match="YAML"):
        load_recipe(tmp_path / "r.yaml")


def test_seed_zero_is_a_seed() -> None:
    assert make_recipe({"backbone": "resnet18", "seed": 0}).seed == 0


def test_names_are_those_of_the_command_line() -> None:
    from featcache.cli.compare import compare
    from featcache.cli.extract import extract

    options = {p.name for command in (extract, compare) for p in command.params}
    renamed = {"settings": "set"}
    not_of_the_experiment = {
        "quiet", "again", "rehash", "wait", "dask", "parts", "pictures", "report", "dhash",
        "format", "show", "wide",
    }  # fmt: skip
    of_recipes_only = {"limit", "protocols", "finetune"}
    known = set(Recipe.model_fields) - of_recipes_only
    assert {renamed.get(o, o) for o in options} - not_of_the_experiment == known


def test_a_recipe_runs_from_images_to_comparison(tmp_path: Path) -> None:
    plain = {
        "data": "digits", "backbone": ["resnet18"], "weights": "random:0", "image_size": 32,
        "head": ["logreg"], "folds": 2,
        "cache": str(tmp_path / "cache"), "reports": str(tmp_path / "reports"),
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(plain))
    done = run(tmp_path / "r.yaml")
    assert [r.name for r in done] == ["resnet18.concat.logreg"]
    assert done.best.metric("accuracy") > 0.7
    assert (tmp_path / "reports" / "comparison.md").is_file()


@pytest.mark.parametrize(
    ("plain", "part"),
    [
        ({"head": "svn"}, "Did you mean svm"),
        ({"fusion": "conct"}, "Did you mean concat"),
        ({"set": {"mlp.hiden": 3}}, "hiden"),
        ({"set": {"nothing.x": 3}}, "belongs to nothing"),
        ({"gate": "open"}, "unknown gate 'open'"),
        ({"view": ["hflop"]}, "Did you mean hflip"),
        ({"view": "none"}, "unknown view 'none'"),
        ({"balance": True}, "no views to fill up with"),
        ({"leaky": True, "strict": True}, "leaky and strict"),
        ({"folds": 3, "test_split": True}, "both folds and the test split"),
        ({"repeats": 0}, "repeats"),
    ],
)
def test_mistakes_are_found_before_anything_is_extracted(
    tmp_path: Path, plain: dict[str, Any], part: str
) -> None:
    recipe = {"backbone": "resnet18", "cache": str(tmp_path / "cache"), **plain}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    for start in (load_recipe, run):  # load_recipe is what --dry-run does
        with pytest.raises(FeatcacheError, match=part) as caught:
            start(tmp_path / "r.yaml")
        assert caught.value.exit_code == 2
    assert not (tmp_path / "cache").exists()


def test_a_recipe_object_is_checked_too(tmp_path: Path) -> None:
    with pytest.raises(FeatcacheError, match="Did you mean svm"):
        run(Recipe(backbone=["resnet18"], head=["svn"], cache=str(tmp_path / "cache")))


def test_a_recipe_with_views_repeats_and_leaks_on_purpose(tmp_path: Path, pictures: Path) -> None:
    plain = {
        "data": str(pictures), "backbone": "resnet18", "weights": "random:0", "image_size": 32,
        "view": "rot90", "head": "logreg", "folds": 2, "repeats": 2, "near_duplicates": False,
        "cache": str(tmp_path / "cache"), "reports": str(tmp_path / "reports"),
    }  # fmt: skip
    honest = run(make_recipe(plain)).best
    assert honest.split == "2 x 2 folds"
    assert honest.tested == 12
    leaky = run(make_recipe({**plain, "leaky": True, "repeats": 1})).best
    assert leaky.leaky
    assert leaky.tested == 24
    assert (tmp_path / "reports" / "comparison.md").read_text().startswith("LEAKY PROTOCOL")


def test_a_recipe_says_how_many_images_may_fail(tmp_path: Path, pictures: Path) -> None:
    (pictures / "cat" / "broken.png").write_text("no image")
    plain = {
        "data": str(pictures), "backbone": "squeezenet1_1", "weights": "random:0",
        "image_size": 32, "cache": str(tmp_path / "cache"),
    }  # fmt: skip
    with pytest.raises(FeatcacheError, match="1 image failed, more than --max-failures"):
        extract_for(make_recipe({**plain, "max_failures": 0}))
    report = extract_for(make_recipe({**plain, "max_failures": "50%", "retry_failed": True}))
    assert list(report.failed) == ["cat/broken.png"]


def test_rehash_and_again_are_of_one_call(tmp_path: Path, pictures: Path) -> None:
    plain = {
        "data": str(pictures), "backbone": "squeezenet1_1", "weights": "random:0",
        "image_size": 32, "head": "ridge", "folds": 2, "near_duplicates": False,
        "cache": str(tmp_path / "cache"), "reports": str(tmp_path / "reports"),
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(plain))
    created = []
    for options in ([], [], ["--again", "--rehash", "--wait"]):
        assert command(["run", "-q", str(tmp_path / "r.yaml"), *options]) == 0
        (run_json,) = tmp_path.glob("reports/*/*/run.json")
        created.append(run_json.stat().st_mtime_ns)
    assert created[0] == created[1] < created[2]


def _write(folder: Path, **files: dict[str, Any]) -> Path:
    """YAML files by their stems; the path of the first."""
    for name, plain in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
    return folder / f"{next(iter(files))}.yaml"


# --- extends


def test_a_recipe_extends_another_beside_it(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    base = {"backbone": ["resnet18", "alexnet"], "folds": 4, "head": "svm", "seed": 3,
            "set": {"mlp.hidden": 64, "svm.C": 2.0}}  # fmt: skip
    _write(tmp_path, base=base)
    child = {"extends": "../base.yaml", "backbone": "vgg16", "set": {"svm.C": 5.0}, "seed": None}
    made = load_recipe(_write(tmp_path / "below", child=child))
    assert (made.backbone, made.folds, made.head, made.seed) == (["vgg16"], 4, ["svm"], 0)
    assert made.set == {"mlp.hidden": 64, "svm.C": 5.0}


def test_three_files_in_a_row_and_a_circle(tmp_path: Path) -> None:
    path = _write(
        tmp_path, a={"extends": "b.yaml"}, b={"extends": "c.yaml", "folds": 3},
        c={"backbone": "resnet18", "folds": 9, "seed": 5},
    )  # fmt: skip
    assert (load_recipe(path).folds, load_recipe(path).seed) == (3, 5)
    _write(tmp_path, c={"extends": "./a.yaml"})
    with pytest.raises(RecipeError, match=r"a\.yaml -> b\.yaml -> c\.yaml -> a\.yaml"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("child", "base", "part"),
    [
        ({"extends": "bsae.yaml"}, {}, r"(?s)extends .*bsae.yaml, and there is none.*base.yaml"),
        ({"extends": ["base.yaml"]}, {}, "extends is"),
        ({"extends": "base.yaml"}, {"backbon": "a"}, r"base.yaml has an unknown key 'backbon'"),
        ({"extends": "base.yaml", "quick": {"hed": "a"}}, {}, r"(?s)child.yaml.*'quick.hed'.*head"),
        ({"extends": "base.yaml", "quick": 3}, {}, "quick is 3"),
        ({"extends": "base.yaml", "protocols": {"a": {"weights": "b"}}}, {"backbone": "resnet18"},
         "can't change 'weights'"),
        ({"extends": "."}, {}, "can't be read as YAML"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_names_the_file(
    tmp_path: Path, child: dict[str, Any], base: dict[str, Any], part: str
) -> None:
    path = _write(tmp_path, child=child, base=base)
    with pytest.raises(RecipeError, match=part) as caught:
        load_recipe(path)
    assert caught.value.exit_code == 2


# --- quick, and what is changed from outside


def test_a_quick_run_is_kept_apart(tmp_path: Path) -> None:
    plain = {"data": "photos", "name": "photos", "backbone": "resnet18", "set": {"mlp.hidden": 9},
             "data_root": "x", "quick": {"data": "digits", "set": {"mlp.epochs": 1}}}  # fmt: skip
    path = _write(tmp_path, study=plain)
    quick = load_recipe(path, quick=True)
    assert (quick.data, quick.data_root, quick.name) == ("digits", None, "study-quick")
    assert quick.reports == str(Path("reports") / "quick")
    assert quick.set == {"mlp.hidden": 9, "mlp.epochs": 1}
    assert load_recipe(path).name == "photos"
    assert load_recipe(path, quick=True, reports="x").reports == str(Path("x") / "quick")


def test_a_recipe_without_a_quick_size_says_so(tmp_path: Path) -> None:
    path = _write(tmp_path, a={"backbone": "resnet18"})
    with pytest.raises(RecipeError, match="no quick size"):
        load_recipe(path, quick=True)


def test_other_data_does_away_with_what_was_said_of_the_old(tmp_path: Path) -> None:
    plain = {"data": "torchvision:CIFAR10", "name": "cifar10", "limit": 20, "data_root": "x",
             "backbone": "resnet18"}  # fmt: skip
    path = _write(tmp_path, a=plain)
    other = load_recipe(path, data="photos")
    assert (other.data, other.name, other.limit, other.data_root) == ("photos", None, None, None)
    again = load_recipe(path, data="photos", limit=5, name="mine")
    assert (again.name, again.limit) == ("mine", 5)


def test_settings_from_outside_win_over_those_of_protocols(tmp_path: Path) -> None:
    plain = {
        "backbone": "resnet18", "set": {"mlp.dropout": 0.1},
        "protocols": {"a": {"set": {"mlp.lr": 0.1}}, "b": {"leaky": True}},
    }  # fmt: skip
    path = _write(tmp_path, study=plain)
    a, b = protocols_of(load_recipe(path, set={"mlp.lr": 0.5})).values()
    assert a.set == b.set == {"mlp.dropout": 0.1, "mlp.lr": 0.5}


def test_a_network_takes_the_place_of_another_in_protocols_too(tmp_path: Path) -> None:
    plain = {
        "backbone": ["vgg16:layer=features:colour=hsv", "vgg16:filter=log-1", "alexnet"],
        "protocols": {"a": {"backbone": ["alexnet", "vgg16:filter=log-1"]}, "b": {"folds": 3}},
    }  # fmt: skip
    path = _write(tmp_path, study=plain)
    other = load_recipe(path, replace={"vgg16": "resnet18"})
    # What the network sees stays; `features` is a part of VGG16.
    assert other.backbone == ["resnet18:colour=hsv", "resnet18:filter=log-1", "alexnet"]
    assert protocols_of(other)["a"].backbone == ["alexnet", "resnet18:filter=log-1"]
    assert protocols_of(other)["b"].backbone == other.backbone
    own = load_recipe(path, replace={"vgg16": "resnet18:colour=lab:size=64"})
    assert own.backbone[0] == "resnet18:colour=lab:size=64"
    assert load_recipe(path).backbone == plain["backbone"]


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("vgg61=resnet18", "(?s)no network 'vgg61' to replace.*vgg16"),
        ("vgg16=resnt18", "(?s)unknown backbone 'resnt18'.*resnet18"),
        ("vgg16=alexnet", "alexnet"),
        ("vgg16", "NETWORK=BACKBONE"),
        ("vgg16=", "NETWORK=BACKBONE"),
    ],
)
def test_a_network_that_can_t_take_the_place_is_an_error(
    tmp_path: Path, word: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _write(tmp_path, study={"backbone": ["vgg16", "alexnet"]})
    assert command(["run", str(path), "--replace", word, "--dry-run"]) == 2
    assert re.search(part, capsys.readouterr().err)


# --- protocols


@pytest.mark.parametrize(
    ("protocols", "part"),
    [
        ({"a": {"leaky": True}, "b": {"leaky": True}}, "'a' and 'b' say the same"),
        ({"a": {}, "b": {"folds": None}}, "'a' and 'b' say the same"),
        ({"a": {"cache": "x"}}, "can't change 'cache'"),
        ({"a": {"leeky": True}}, "(?s)can't change 'leeky'.*leaky"),
        ({"a": {"backbone": "alexnet"}}, "asks for the backbone 'alexnet'"),
        ({"a": {"view": "hflip"}}, "asks for the view 'hflip'"),
        ({"a": {"group": "patient"}}, "groups by the column 'patient'"),
        ({"a": {"head": "svn"}}, "Did you mean svm"),
        ({"a": {"folds": 1}}, "protocol 'a': folds is 1"),
        ({" ": {}}, "without a name"),
        ({"a": 3}, "protocols.a is 3"),
        ({"a": {"balance": True}}, "no views to fill up with"),
    ],
)
def test_a_protocol_that_makes_no_sense_is_an_error(protocols: dict[str, Any], part: str) -> None:
    with pytest.raises(FeatcacheError, match=part) as caught:
        make_recipe({"backbone": "resnet18", "protocols": protocols})
    assert caught.value.exit_code == 2


def test_protocols_stand_side_by_side(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = {
        "data": str(pictures), "backbone": ["resnet18", "squeezenet1_1"], "weights": "random:0",
        "image_size": 32, "view": ["rot90", "rot180"], "head": "nearest_mean", "folds": 2,
        "near_duplicates": False, "cache": str(tmp_path / "cache"),
        "reports": str(tmp_path / "reports"),
        "protocols": {"as published": {"leaky": True}, "leak-free": {"group": "image"},
                      "one network": {"backbone": "squeezenet1_1"}},
    }  # fmt: skip
    path = _write(tmp_path, study=plain)
    assert command(["run", "-q", str(path)]) == 0
    said = capsys.readouterr().out
    folder = tmp_path / "reports" / "pictures"
    table = (folder / "study.protocols.csv").read_text().splitlines()
    assert len(table) == 1 + 3 + 3 + 1
    rows = [row.split(",")[-9:-1] for row in table[1:]]
    leaky = [row for row in rows if row[1] == "as published (LEAKY)"]
    assert {row[-1] for row in leaky} == {"36"}  # views are tested too
    assert {row[-1] for row in rows if row not in leaky} == {"12"}
    assert "'as published' is a LEAKY protocol" in said
    assert "'as published' is a LEAKY protocol" in (folder / "study.protocols.md").read_text()
    noted = {json.loads(p.read_text()).get("protocol") for p in folder.glob("*/run.json")}
    assert noted >= {"as published", "leak-free"}
    done = run(path)
    assert len(done) == 7
    assert not done.best.leaky
    assert done.runs[-1].leaky
    page = (tmp_path / "reports" / "comparison.html").read_text()
    assert "as published" in page


# --- limit


def test_a_limit_makes_a_data_set_of_its_own(tmp_path: Path, pictures: Path) -> None:
    plain = {
        "data": str(pictures), "backbone": "squeezenet1_1", "weights": "random:0", "limit": 3,
        "image_size": 32, "head": "ridge", "folds": 2, "near_duplicates": False,
        "cache": str(tmp_path / "cache"), "reports": str(tmp_path / "reports"),
    }  # fmt: skip
    assert run(make_recipe(plain)).best.tested == 9
    assert run(make_recipe({**plain, "limit": None})).best.tested == 12
    assert {p.name for p in (tmp_path / "cache").iterdir()} == {"pictures-3", "pictures"}


# --- fine-tuning


@pytest.mark.parametrize(
    ("finetune", "more", "part"),
    [
        ({"epoch": 3}, {}, "(?s)unknown key 'epoch'.*epochs"),
        ({"epochs": 0}, {}, "epochs is 0"),
        ({"epochs": 2, "protocol": "study"}, {}, "3 of 2 epochs are frozen"),
        ([{}, {"protocol": "std"}], {}, "(?s)unknown protocol of fine-tuning 'std'.*study"),
        ({"networks": ["resnet18+vgg16"]}, {}, "networks names vgg16, which backbone doesn't"),
        ({"lr": "high"}, {}, "lr is 'high'"),
        ({"flip": "yes"}, {}, "finetune.flip is 'yes'"),
        ({"image_size": True}, {}, "finetune.image_size is True"),
        ({"fusion": "vote"}, {}, "can't be trained end to end"),
        ({}, {"leaky": True, "view": "hflip"}, "can't redo a protocol that leaks"),
        ({}, {"layer": "avgpool"}, "'layer' can't be fine-tuned"),
    ],
)
def test_fine_tuning_is_checked_before_anything_is_done(
    finetune: Any, more: dict[str, Any], part: str
) -> None:
    with pytest.raises(FeatcacheError, match=part):
        make_recipe({"backbone": "resnet18", "finetune": finetune, **more})


def test_fine_tuning_joins_the_comparison_when_asked(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("accelerate")
    plain = {
        "data": str(pictures), "backbone": "squeezenet1_1", "weights": "random:0",
        "image_size": 32, "head": ["mlp", "ridge"], "folds": 2, "near_duplicates": False,
        "set": {"mlp.epochs": 1, "mlp.hidden": 8, "ridge.alpha": 10.0},
        "cache": str(tmp_path / "cache"), "reports": str(tmp_path / "reports"),
        "finetune": [
            {"epochs": 1, "freeze_epochs": 0, "device": "cpu", "precision": "fp32", **more}
            for more in ({"protocol": "study"}, {"networks": ["squeezenet1_1"]})
        ],
    }  # fmt: skip
    path = _write(tmp_path, study=plain)
    assert command(["run", "-q", str(path)]) == 0
    assert "mlp.finetuned" not in capsys.readouterr().out
    assert command(["run", "-q", str(path), "--finetune"]) == 0
    said = capsys.readouterr().out
    assert "mlp.finetuned" in said
    tuned = (tmp_path / "reports" / "pictures").glob("*finetuned*/run.json")
    facts, other = sorted(
        (json.loads(one.read_text()) for one in tuned), key=lambda one: len(one["settings"])
    )
    assert "protocol" not in facts["settings"]
    assert other["settings"]["protocol"] == "study"
    assert facts["command"].endswith("study.yaml --finetune")
    ridge = next((tmp_path / "reports" / "pictures").glob("*ridge*/run.json"))
    assert json.loads(ridge.read_text())["rows"] == facts["rows"]  # the same images and folds
    assert facts["settings"]["mlp.hidden"] == 8


def test_fine_tuning_that_is_not_in_the_recipe_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _write(tmp_path, a={"backbone": "resnet18"})
    assert command(["run", str(path), "--finetune"]) == 2
    assert "says nothing of fine-tuning" in capsys.readouterr().err


# --- what only a machine, or a fit, would tell


@pytest.mark.parametrize(
    ("plain", "part"),
    [
        ({"device": "cuda:99"}, "no device cuda:99"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"precision": "fp8"}, "unknown precision"),
        ({"engine": "jax"}, "unknown engine"),
        ({"batch_size": 0}, "batch size 0"),
        ({"workers": 0}, "workers 0"),
        ({"set": {"mlp.dropout": 2}}, "dropout is 2"),
        ({"set": {"mlp.epochs": 0}}, "epochs is 0"),
        ({"set": {"mlp.optimiser": "adamm"}}, "(?s)unknown optimiser.*adam"),
        ({"fusion": "attention", "set": {"attention.dim": 10, "mlp.heads": 3}}, "10"),
        ({"head": "logreg", "set": {"logreg.C": -1}}, "logreg can't be fitted"),
        ({"head": "svm", "set": {"svm.kernel": "cubic"}}, "unknown kernel"),
        ({"head": "knn", "set": {"knn.n_neighbors": 0}}, "n_neighbors is 0"),
        pytest.param(
            {"head": "xgboost", "set": {"xgboost.max_depth": -3}},
            "xgboost can't be fitted",
            marks=needs_xgboost,
        ),
        ({"finetune": {"device": "cuda:99"}}, "no device cuda:99"),
        ({"protocols": {"a": {"set": {"mlp.dropout": 7}}}}, "dropout is 7"),
    ],
)
def test_a_dry_run_finds_what_would_fail_later(
    tmp_path: Path, plain: dict[str, Any], part: str
) -> None:
    recipe = make_recipe({"backbone": ["resnet18", "alexnet"], **plain})
    with pytest.raises(FeatcacheError, match=part):
        check_here(recipe)


@pytest.mark.parametrize(
    ("plain", "part"),
    [
        ({"test_split": True}, "no test split of its own"),
        ({"folds": 5}, "class 'cat' has 3 images, fewer than 5 folds"),
        ({"group": "patient"}, "no column 'patient'"),
        ({"group": "subject"}, "no groups, or a single one"),
        ({"protocols": {"a": {"folds": 3}, "b": {"folds": 7}}}, "fill 7 folds"),
        ({"folds": 3}, ""),
    ],
)
def test_a_dry_run_looks_at_the_labels_of_a_table(
    tmp_path: Path, plain: dict[str, Any], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"{label}{i}.png" for label in ("cat", "dog") for i in range(3)]
    for name in names:
        (tmp_path / name).write_bytes(b"never read")
    (tmp_path / "list.csv").write_text(
        "path,label\n" + "".join(f"{name},{name[:3]}\n" for name in names)
    )
    plain = {"data": str(tmp_path / "list.csv"), "backbone": ["resnet18"], **plain}
    code = command(["run", str(_write(tmp_path, a=plain)), "--dry-run"])
    assert (code == 0) == (part == "")
    assert part in capsys.readouterr().err


@pytest.mark.parametrize("head", ["knn", "svm", "mlp", "forest", XGBOOST])
def test_settings_that_want_more_rows_than_a_probe_has_are_let_through(head: str) -> None:
    settings = {"knn.n_neighbors": 500, "concat.pca": 256, "svm.cv": 20, "mlp.hidden": [64, 64]}
    check_here(make_recipe({
        "backbone": ["resnet18", "alexnet"], "set": settings, "select": "anova:2000",
        "head": head, "fusion": ["concat", "stack", "gated"],
    }))  # fmt: skip


def test_a_dry_run_says_what_would_be_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = {
        "data": "no/such/folder", "backbone": ["resnet18", "alexnet"], "head": ["mlp", "svm"],
        "view": "hflip", "repeats": 2, "folds": 5, "finetune": {},
        "protocols": {"as published": {"leaky": True, "repeats": 1}, "leak-free": {}},
    }  # fmt: skip
    assert command(["run", str(_write(tmp_path, a=plain)), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "# extract: resnet18, alexnet, each image also as hflip\n" in said
    assert "# as published (LEAKY): 6 candidates x 5 folds = 30 fits\n" in said
    assert "# leak-free: 6 candidates x 10 folds = 60 fits\n" in said
    assert "if --finetune is given (it takes a GPU): alexnet+resnet18 with concat, 8 epochs" in said
    assert "# NOT HERE: no/such/folder" in said
