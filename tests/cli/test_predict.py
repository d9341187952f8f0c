"""`featcache predict` and `featcache export`, from images to labels, as a user meets them."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from featcache.cli.main import cli, run

RANDOM = ["--weights", "random:0", "--image-size", "32"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with photos in a test split, two backbones, and two runs."""
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for label, level in (("dark", 60), ("light", 150), ("mid", 105)):
            folder = home / "photos" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(rng.normal(level, 40, (24, 30, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.delenv("FEATCACHE_WEIGHTS", raising=False)
        both = ["--backbone", "resnet18,squeezenet1_1"]
        assert run(["extract", "--data", "photos", *both, *RANDOM, "--device", "cpu", "-q"]) == 0
        assert run(["compare", "--head", "logreg,mlp", "--set", "mlp.epochs=3", "-q",
                    "--no-singles"]) == 0  # fmt: skip
    return home


@pytest.fixture
def here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    monkeypatch.delenv("FEATCACHE_WEIGHTS", raising=False)
    return trained


def _run_of(here: Path, head: str) -> Path:
    return next(here.glob(f"reports/photos/*.concat.{head}.*"))


def _told(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return {f"photos/{row['id']}": row for row in csv.DictReader(file)}


@pytest.mark.parametrize("head", ["logreg", "mlp"])
def test_csv_holds_what_the_evaluation_said(
    here: Path, capsys: pytest.CaptureFixture[str], head: str
) -> None:
    folder = _run_of(here, head)
    assert run(["predict", str(folder), "photos/test", "--format", "csv"]) == 0
    captured = capsys.readouterr()
    assert "trained on 36 rows (the training rows of the test split)" in captured.err
    rows = list(csv.DictReader(captured.out.splitlines()))
    told = _told(folder)
    assert {row["path"] for row in rows} == set(told)
    for row in rows:
        assert row["pred"] == told[row["path"]]["pred"]
        for name in ("p_dark", "p_light", "p_mid"):
            assert float(row[name]) == pytest.approx(float(told[row["path"]][name]), abs=1e-5)


def test_json_parses_and_ranks(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = _run_of(here, "logreg").name
    assert run(["predict", name[:-4], "photos/test/dark", "--format", "json", "-q"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert [Path(one["path"]).name for one in whole] == [f"{i:02d}.png" for i in range(6)]
    for one in whole:
        assert list(one["probabilities"]) == ["dark", "light", "mid"]
        assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    top = ["--format", "json", "--top", "2", "-q"]
    assert run(["predict", name, "photos/test/dark", *top]) == 0
    for one, all_of_it in zip(json.loads(capsys.readouterr().out), whole, strict=True):
        first, second = one["probabilities"].values()
        assert first >= second
        assert one["label"] == next(iter(one["probabilities"])) == all_of_it["label"]


def test_a_table_on_the_screen_and_in_a_file(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(_run_of(here, "mlp"))
    assert run(["predict", folder, "photos/test/dark/00.png", "--top", "3", "-q"]) == 0
    out = capsys.readouterr().out
    assert "label 3" in out
    assert "photos/test/dark/00.png" in out
    target = tmp_path / "labels.tsv"
    assert run(["predict", folder, "photos/test", "-o", str(target), "-q"]) == 0
    assert capsys.readouterr().out == ""
    lines = target.read_text().splitlines()
    assert (len(lines), lines[0].split("\t")) == (19, ["image", "label", "probability"])
    page = [folder, "photos/test", "--format", "markdown", "-o", str(target), "-q"]
    assert run(["predict", *page]) == 0
    lines = target.read_text().splitlines()
    assert (len(lines), lines[0]) == (20, "| image | label | probability |")


@pytest.mark.parametrize("form", ["table", "csv", "json", "markdown"])
def test_a_bad_image_costs_itself_only(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    (tmp_path / "bad.png").write_text("no image")
    good = shutil.copy("photos/test/mid/00.png", tmp_path / "good.png")
    folder = str(_run_of(here, "logreg"))
    paths = [str(tmp_path / "bad.png"), str(good), str(tmp_path / "gone.png")]
    assert run(["predict", folder, *paths, "--format", form, "-q"]) == 3
    captured = capsys.readouterr()
    assert "2 images can't be read" in captured.err
    assert "bad.png: not an image" in captured.err
    assert "gone.png: can't be read: No such file" in captured.err
    assert "good.png" in captured.out
    assert "bad.png" not in captured.out
    assert run(["predict", folder, paths[0], paths[2], "--format", form]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_nothing_readable_still_parses(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(_run_of(here, "logreg"))
    assert run(["predict", folder, "gone.png", "--format", "json", "-q"]) == 1
    assert json.loads(capsys.readouterr().out) == []


def test_a_list_on_standard_input(here: Path) -> None:
    folder = str(_run_of(here, "logreg"))
    done = CliRunner().invoke(
        cli, ["predict", folder, "-", "--format", "csv", "-q"],
        input="photos/test/dark/00.png\n\nphotos/test/light\n",
    )  # fmt: skip
    assert done.exit_code == 0
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(rows) == 7


def test_a_file_is_written_whole_or_not_at_all(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featcache.prediction import output

    def broken(*_: object) -> None:
        raise OSError("no space left")

    target = tmp_path / "labels.csv"
    target.write_text("before")
    monkeypatch.setattr(output, "write_csv", broken)
    folder = str(_run_of(here, "logreg"))
    args = ["predict", folder, "photos/test", "--format", "csv", "-o", str(target), "-q"]
    assert run(args) == 1
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["labels.csv"]


def test_a_copy_labels_elsewhere(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(_run_of(here, "mlp"))
    out = str(tmp_path / "photos-model")
    assert run(["export", folder, "--standalone", "-o", out]) == 0
    assert capsys.readouterr().out.strip() == out
    image = str(here / "photos/test/dark/00.png")
    assert run(["predict", folder, image, "--format", "json", "-q"]) == 0
    before = json.loads(capsys.readouterr().out)[0]["probabilities"]
    monkeypatch.chdir(tmp_path)
    assert run(["predict", "photos-model", image, "--format", "json", "-q"]) == 0
    after = json.loads(capsys.readouterr().out)[0]["probabilities"]
    assert after == pytest.approx(before, abs=1e-6)


@pytest.mark.slow
def test_an_onnx_file_says_how_far_it_is_off(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    target = tmp_path / "m.onnx"
    assert run(["export", str(_run_of(here, "mlp")), "--onnx", str(target)]) == 0
    assert "checked with onnxruntime on 5 images" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(target))
    (proba,) = session.run(None, {"pixels": np.zeros((3, 3, 32, 32), np.uint8)})
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("args", "code", "parts"),
    [
        (["predict", "resnet18"], 2, ["PATH"]),
        (["predict", "nothing", "photos"], 2, ["no run 'nothing'"]),
        (["predict", "resnet18", "photos"], 2, ["beginning of 2 runs"]),
        (["predict", "photos", "photos/test/dark"], 1, ["neither a run folder nor a model"]),
        (["predict", "{run}", "empty"], 1, ["no images below"]),
        (["predict", "{run}", "x*.png"], 1, ["no file is like"]),
        (["predict", "{run}", "photos", "--device", "cuda:7"], 2, ["cuda:7"]),
        (["predict", "{run}", "photos", "--top", "0"], 2, ["--top"]),
        (["export", "{run}"], 2, ["-o FOLDER", "--onnx FILE"]),
        (["export", "{run}", "--onnx", "m.onnx", "--standalone"], 2, ["stands alone"]),
        (["export", "{run}", "-o", "photos"], 1, ["there already"]),
        (["predict", "{run}", "photos", "-o", "photos"], 2, ["-o photos is a folder"]),
        (["predict", "{run}", "photos", "-o", "no/x"], 2, ["-o no/x lies in a folder that is not"]),
        (["export", "{run}", "--onnx", "photos"], 2, ["--onnx photos is a folder"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_gets_one_clear_error(
    here: Path, capsys: pytest.CaptureFixture[str], args: list[str], code: int, parts: list[str]
) -> None:
    (here / "empty").mkdir(exist_ok=True)
    folder = str(_run_of(here, "logreg"))
    assert run([arg.format(run=folder) for arg in args]) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    for part in parts:
        assert part in err


def test_what_the_error_says_to_type_makes_the_model(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shlex

    folder = _run_of(here, "mlp")
    before = (folder / "run.json").read_bytes()
    shutil.move(folder / "model", tmp_path / "model")
    assert run(["predict", str(folder), "photos/test"]) == 1
    command = capsys.readouterr().err.splitlines()[-1]
    assert run([*shlex.split(command)[1:], "-q"]) == 0
    assert (folder / "run.json").read_bytes() == before
    capsys.readouterr()
    assert run(["predict", str(folder), "photos/test", "--format", "csv", "-q"]) == 0
    again = capsys.readouterr().out
    assert run(["predict", str(tmp_path / "model"), "photos/test", "--format", "csv", "-q"]) == 0
    assert capsys.readouterr().out == again
