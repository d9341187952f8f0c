"""Typing errors are told, and what is up to date is found, before a large library is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from featcache.cli.main import run

HEAVY = ("torch", "torchvision", "sklearn", "scipy", "pandas", "matplotlib")
CODE = (
    "import sys\n"
    "from featcache.cli.main import run\n"
    "code = run(sys.argv[2:])\n"
    "print('loaded', *[n for n in sys.argv[1].split(',') if n in sys.modules], file=sys.stderr)\n"
    "sys.exit(code)"
)


def called(folder: Path, *words: str, heavy: tuple[str, ...] = HEAVY) -> tuple[int, str, list[str]]:
    """Exit code, what it says, and which of the heavy libraries it has imported."""
    command = [sys.executable, "-c", CODE, ",".join(heavy), *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    *said, last = done.stderr.splitlines()
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + "\n".join(said), last.split()[1:]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one image, and recipes."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "photos" / "cat").mkdir(parents=True)
    (folder / "photos" / "cat" / "1.ppm").write_bytes(b"P6 1 1 255\n\0\0\0")
    (folder / "key.yaml").write_text("backbone: resnet18\nfussion: concat\n")
    (folder / "name.yaml").write_text("backbone: resnet18\nhead: [mlp, smv]\n")
    (folder / "there.yaml").write_text("backbone: resnt18\n")
    return folder


@pytest.mark.parametrize(
    ("words", "problem", "remedy"),
    [
        ("extract --backbone resnt18", "unknown backbone 'resnt18'", "resnet18"),
        ("extract --backbone resnet18:sze=3", "unknown option of resnet18 'sze'", "size"),
        ("extract --backbone resnet18 --colour hvs", "hvs", "hsv"),
        ("extract --backbone resnet18 --view hlfip", "unknown view 'hlfip'", "hflip"),
        ("extract --backbone resnet18 --data phtos", "'phtos'", "Did you mean photos?"),
        ("extract --backbone resnet18 --data phtos/cat", "'phtos/cat'", "Did you mean photos/cat?"),
        ("extract --backbone resnet18 --data folder:phtos", "'phtos'", "Did you mean photos?"),
        ("extract --backbone resnet18 --weights ./a.pth", "no weights './a.pth'", "random[:SEED]"),
        ("extract --backbone resnet18 --weights random:x", "random:x", "random:0"),
        ("compare --fusion conct", "unknown fusion 'conct'", "concat"),
        ("compare --head mlp,smv", "unknown head 'smv'", "svm"),
        ("compare --set mlp.hiden=3", "MLPHead has no parameter 'hiden'", "hidden"),
        ("compare --set mpl.hidden=3", "'mpl.hidden' belongs to nothing", "mlp"),
        ("compare --fusion max --set fusion.dimm=3", "MaxFusion has no parameter 'dimm'", "dim"),
        ("compare --select anov:8", "unknown selection 'anov'", "anova"),
        ("compare --metric acuracy", "unknown metric 'acuracy'", "Did you mean accuracy or"),
        ("compare --view hlfip", "unknown view 'hlfip'", "hflip"),
        ("compare --data phtos", "'phtos'", "Did you mean photos?"),
        ("compare --memory lots", "memory is 'lots'", "2GB"),
        ("fit --head smv", "unknown head 'smv'", "svm"),
        ("fit --head svm", "nothing was extracted", "extract"),
        ("rank --data phtos", "'phtos'", "Did you mean photos?"),
        ("finetune --backbone resnt18", "unknown backbone 'resnt18'", "resnet18"),
        ("cache status --backbone resnt18", "unknown backbone 'resnt18'", "resnet18"),
        ("run key.yml", "no recipe 'key.yml'", "Did you mean key.yaml or"),
        ("run key.yaml", "unknown key 'fussion'", "fusion"),
        ("run name.yaml", "unknown head 'smv'", "svm"),
        ("run there.yaml", "unknown backbone 'resnt18'", "resnet18"),
    ],
)  # fmt: skip
def test_a_typing_error_is_told_before_anything_heavy_is_imported(
    place: Path, words: str, problem: str, remedy: str
) -> None:
    code, said, loaded = called(place, *words.split())
    assert (code, loaded) == (1 if "nothing was" in problem else 2, [])
    assert problem in said
    assert remedy in said


def test_the_metrics_are_those_that_there_are() -> None:
    from featcache.cli.options import METRIC_NAMES
    from featcache.fitting.metrics import METRICS

    assert tuple(METRICS) == METRIC_NAMES


def test_settings_are_numbers_where_they_look_it() -> None:
    from featcache.cli.options import _settings
    from featcache.recipe.schema import typed

    given = ("mlp.lr=1e-5", "mlp.hidden=[5, 2E+2]", "a.b=1e", "a.c=e5", "a.d=-1.5e3", "a.e=x1e5")
    ctx, param = click.Context(click.Command("fit")), click.Option(["--set"])
    assert _settings(ctx, param, given) == {
        "mlp.lr": 1e-5, "mlp.hidden": [5, 200.0], "a.b": "1e", "a.c": "e5", "a.d": -1500.0,
        "a.e": "x1e5",
    }  # fmt: skip
    recipe = typed({"backbone": "resnet18", "set": {"mlp.lr": "1e-5"}}, "here")
    assert recipe.set == {"mlp.lr": 1e-5}


def test_settings_that_are_right_pass() -> None:
    from featcache.fitting.fusions import FUSIONS
    from featcache.fitting.heads import HEADS
    from featcache.fitting.names import check_names
    from featcache.fitting.registry import LazyClass, class_of

    known = 0
    for maker in (*FUSIONS.values(), *HEADS.values()):
        assert isinstance(maker, LazyClass)
        if maker.parameters() is not None:
            known += 1
            assert maker.parameters() == set(class_of(maker)().get_params(deep=False))
    assert known > 12
    given = {"mlp.hidden": 3, "forest.anything": 1, "select.amount": 3, "head.epochs": 2}
    check_names(["concat", "attention"], ["svm", "mlp"], given | {"fusion.dim": 3}, "anova:8")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache and a comparison."""
    folder = tmp_path_factory.mktemp("compared")
    rng = np.random.default_rng(0)
    for i in range(40):
        image = folder / "photos" / ("dark", "light")[i % 2] / f"{i}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100, (24, 24, 3)) + 150 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(image)
    options = ["--backbone", "squeezenet1_1", "--weights", "random:0", "--image-size", "32"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(["extract", "--data", "photos", *options]) == 0
        assert run(["compare", *HEADS]) == 0
    return folder


HEADS = ("--head", "mlp,nearest_mean")


def test_an_unchanged_comparison_draws_nothing_and_imports_no_torch(compared: Path) -> None:
    pages = {path: path.stat().st_ino for path in compared.glob("reports/**/*.html")}
    assert len(pages) == 2
    code, said, loaded = called(compared, "compare", *HEADS)
    assert code == 0
    assert "squeezenet1_1" in said
    assert not {"torch", "torchvision", "matplotlib"} & set(loaded)
    assert {path: path.stat().st_ino for path in pages} == pages


def test_lines_and_table_go_by_the_metric(compared: Path) -> None:
    words = ("--head", "nearest_mean,logreg", "--no-report", "--metric")
    code, said, _ = called(compared, "compare", *words, "log_loss")
    assert code == 0
    assert "concat.logreg: log loss 0." in said
    assert "log loss: lower is better" in said
    assert "logreg: F1 1." in called(compared, "compare", *words, "f1")[1]


def test_without_a_report_nothing_is_drawn(compared: Path) -> None:
    words = ("compare", *HEADS, "--folds", "3", "--no-report", "--reports", "plain")
    code, _, loaded = called(compared, *words)
    assert code == 0
    assert "matplotlib" not in loaded
    written = {path.suffix for path in (compared / "plain").rglob("*.*") if path.is_file()}
    assert not {".html", ".png", ".svg"} & written
    assert (compared / "plain" / "comparison.csv").is_file()


@pytest.mark.parametrize(
    "words",
    [
        "backbones vgg",
        "weights list --all",
        "weights path vgg16",
        "cache ls",
        "cache status",
        "doctor",
    ],
)
def test_what_only_looks_imports_nothing_heavy(compared: Path, words: str) -> None:
    from featcache.cli.doctor import has_gpu
    from featcache.extraction.torchvision_models import _installed, _table

    if _table()["version"] != _installed():
        pytest.skip("the table is of another torchvision")
    if words == "doctor" and has_gpu():
        pytest.skip("torch says whether it can use the GPU")
    code, said, loaded = called(compared, *words.split())
    assert (code, loaded) == (1 if "path" in words else 0, [])
    assert "vgg16" in said or "squeezenet1_1" in said


def test_the_hub_s_folder_is_torch_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from featcache.extraction.weights import hub_folder

    for settings in ({}, {"XDG_CACHE_HOME": str(tmp_path)}, {"TORCH_HOME": "~/torch"}):
        for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        theirs = Path(torch.hub.get_dir()) / "checkpoints"
        assert hub_folder() == theirs
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, "torch")
            assert hub_folder() == theirs
