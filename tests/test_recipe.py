"""Recipes: strict, helpful, and the same experiment as the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from featcache.cli.main import run as command
from featcache.errors import FeatcacheError, RecipeError, UnknownName
from featcache.recipe import Recipe, extract_for, load_recipe, make_recipe, run

PIPELINES = sorted((Path(__file__).parent.parent / "pipelines").glob("*.yaml"))


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.name)
def test_every_shipped_recipe_loads_and_opens_with_its_question(path: Path) -> None:
    load_recipe(path)
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith("?")


def test_one_name_stands_for_a_list_of_one() -> None:
    assert make_recipe({"backbone": "resnet18"}).backbone == ["resnet18"]


@pytest.mark.parametrize(
    ("plain", "part"),
    [
        ({"backbone": "a", "fusoin": "concat"}, "Did you mean fusion"),
        ({}, "lacks 'backbone'"),
        ({"backbone": "a", "folds": "five"}, "folds is 'five'"),
        ({"backbone": "a", "seed": True}, "seed"),
        ({"backbone": "a", "seed": 2**32}, "seed"),
        ({"backbone": "resnet18", "select": "foo:3"}, "unknown selection 'foo'"),
        ({"backbone": "resnet18", "select": "anova:0"}, "amount is 0"),
        ({"backbone": []}, "backbone"),
        ({"backbone": "a", "image_size": 64.5}, "image_size"),
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
    assert make_recipe({"backbone": "a", "seed": 0}).seed == 0


def test_names_are_those_of_the_command_line() -> None:
    from featcache.cli.compare import compare
    from featcache.cli.extract import extract

    options = {p.name for command in (extract, compare) for p in command.params}
    renamed = {"settings": "set"}
    not_of_the_experiment = {"quiet", "again", "rehash", "wait"}
    assert {renamed.get(o, o) for o in options} - not_of_the_experiment == set(Recipe.model_fields)


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
    with pytest.raises(FeatcacheError, match="1 images failed, more than --max-failures"):
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
