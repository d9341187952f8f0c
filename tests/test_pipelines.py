"""The recipes that are shipped: each says what it asks, and its quick size runs as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from featcache.cli.main import run as command
from featcache.recipe import load_recipe, protocols_of

FOLDER = Path(__file__).parent.parent / "pipelines"
PIPELINES = sorted(FOLDER.glob("*.yaml"))
# These are run in the default suite, one of them with all its pictures; the others with -m slow.
EVERY_TIME: dict[str, list[pytest.MarkDecorator]] = {
    "cnmc_resnet18_vgg16": [],
    "rehman2025_filters_vit_vgg16": [],
    "shi_yan_series_as_images": [],
    "stand_in": [pytest.mark.rendered],
}
NEEDS = {
    "amin2021_hsv_nsga_svm": ("pymoo",),
    "cifar10_resnet18_mobilenetv2": ("xgboost",),
    "digits": ("xgboost",),
    "hasanaath2024_three_networks": ("timm", "xgboost"),
}
STUDIES = (
    "cifar10", "cnmc", "leukaemia", "hasanaath2024", "amin2021", "anilkumar2021", "rehman2025",
    "kaya2025", "wang2023", "shi_yan",
)  # fmt: skip

each = pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)


def _needed(path: Path) -> None:
    for package in NEEDS.get(path.stem, ()):
        pytest.importorskip(package)


def test_every_study_has_its_recipe() -> None:
    names = [path.stem for path in PIPELINES]
    assert [study for study in STUDIES if not any(name.startswith(study) for name in names)] == []


@each
def test_a_recipe_opens_with_its_question(path: Path) -> None:
    first, second, *_ = path.read_text(encoding="utf-8").splitlines()
    assert first.startswith("# ")
    assert first.endswith("?")
    assert second == "#"


@each
def test_a_recipe_and_its_quick_size_load(path: Path) -> None:
    _needed(path)
    whole, quick = load_recipe(path), load_recipe(path, quick=True)
    assert quick.name == f"{path.stem}-quick"
    assert (quick.data, quick.weights, quick.device) == ("digits", "random:0", "auto")
    assert quick.limit is not None
    assert quick.reports == str(Path(whole.reports) / "quick")
    assert set(protocols_of(quick)) <= set(protocols_of(whole))
    assert any(not one.leaky for one in protocols_of(whole).values())


@each
def test_a_dry_run_is_yaml_that_loads_again(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _needed(path)
    assert command(["run", str(path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "\n# extract: " in said
    assert " fits" in said
    (tmp_path / "again.yaml").write_text(said, encoding="utf-8")
    assert load_recipe(tmp_path / "again.yaml") == load_recipe(path)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=EVERY_TIME.get(path.stem, [pytest.mark.slow]))
        for path in PIPELINES
    ],
)
def test_the_quick_size_runs(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As on a fresh machine: no weights, no network, an empty folder."""
    monkeypatch.chdir(tmp_path)
    assert command(["run", str(path), "--quick", "-q"]) == 0
    said = capsys.readouterr().out
    recipe = load_recipe(path, quick=True)
    data = f"{path.stem}-quick-{recipe.limit}"
    assert (tmp_path / "cache" / data).is_dir()
    assert list((tmp_path / "reports" / "quick" / data).glob("*/metrics.json"))
    assert not (tmp_path / "reports" / "comparison.md").exists()
    assert [name for name in recipe.protocols if name not in said] == []
    table = tmp_path / "reports" / "quick" / data / f"{path.stem}.protocols.csv"
    assert table.is_file() == (len(recipe.protocols) > 1)


def test_every_recipe_is_plain_yaml_with_known_keys() -> None:
    for path in PIPELINES:
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_the_leukaemia_study_compares_its_two_protocols() -> None:
    recipe = load_recipe(FOLDER / "cnmc_resnet18_vgg16.yaml")
    published, honest = protocols_of(recipe).values()
    assert (published.leaky, honest.leaky) == (True, False)
    assert honest.group == "subject"
    assert published.balance
    assert honest.balance
    assert recipe.scale == "0-1"
    assert recipe.set["mlp.hidden"] == [512, 512, 512]
    smears = load_recipe(FOLDER / "leukaemia_smears_resnet18_vgg16.yaml")
    assert protocols_of(smears)["leak-free"].group == "image"
    assert smears.view == recipe.view
