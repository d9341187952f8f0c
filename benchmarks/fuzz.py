"""Changed run folders and models against the commands that read them.

    python benchmarks/fuzz.py --runs 500 --models 500

Each is changed at random: values of JSON files replaced, left out or put elsewhere, cells of
tables, bytes and lengths of binary files, files that become pipes, folders or links. Half of the
models get checksums that fit again, as whoever forges one would. The commands run in a child of
their own: report, fit, export and predict on a run; predict and export on a model. What counts is a
traceback, a crash, a hang (more than `--seconds`), and anything written outside the reports and the
cache, which an audit hook and files laid out for it see.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import numpy as np
from PIL import Image
from small import coloured, small_backbone
from stored import blobs, store

from featcache.cli.main import run as command
from featcache.errors import FeatcacheError
from featcache.extraction.extract import fill_cache
from featcache.fitting import fold
from featcache.hashing import sha256_file
from featcache.prediction.model import load_model
from featcache.reporting import bundle, compare, predictions
from featcache.reporting.plots import style
from featcache.store.cache import Cache

ODD: list[Any] = [
    None, True, -1, 0, 1e308, 10**400, float("nan"), "", "..", "../../victim", "/etc/passwd",
    "{outside}/victim", "a\x1b[2Kb", "\ud800", "x" * 100_000, "=1+2", [], {}, [[]], [None],
    ["a", 1], {"a": {"a": {}}}, "s3://evil.example/x", "<script>alert(1)</script>", "{{ 7 * 7 }}",
]  # fmt: skip
BACKBONE = small_backbone()
CHANGES = (
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.truncate", "os.link",
    "shutil.rmtree", "shutil.copyfile", "shutil.move",
)  # fmt: skip
WORSE = 9  # a child's exit code for a traceback
OUTSIDE = 10  # for something written elsewhere


# What is changed.


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    keys: Any = list(value) if isinstance(value, dict) else ()
    keys = range(len(value)) if isinstance(value, list) else keys
    found = [(value, key) for key in keys]
    return found + [deep for key in keys for deep in places(value[key])]


def change_json(path: Path, draw: random.Random, outside: Path) -> None:
    value = json.loads(path.read_text())
    for _ in range(draw.randint(1, 3)):
        there = places(value)
        if not there:
            break
        # The first of a hundred names are as likely as the hundred thousandth number.
        holder, key = draw.choice(there[:200] if draw.random() < 0.5 else there)
        odd = draw.choice(ODD)
        kind = draw.randrange(4)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            other, name = draw.choice(there)
            holder[key] = copy.deepcopy(other[name])
        else:
            holder[key] = odd.format(outside=outside) if odd == "{outside}/victim" else odd
    path.write_text(json.dumps(value) if draw.random() < 0.98 else "[" * 100_000)


def change_table(path: Path, draw: random.Random, outside: Path) -> None:
    rows = [line.split(",") for line in path.read_text().split("\n")]
    for _ in range(draw.randint(1, 4)):
        row = draw.choice(rows)
        kind = draw.randrange(5)
        if kind == 0:
            row.insert(draw.randrange(len(row) + 1), "more")
        elif kind == 1:
            del row[draw.randrange(len(row)) :]
        else:
            odd = draw.choice([*ODD, '"', "\0", "\r", "nan", "inf", "-1e400"])
            if row:
                row[draw.randrange(len(row))] = str(odd)
    path.write_text("\n".join(map(",".join, rows)), errors="replace")


def change_bytes(path: Path, draw: random.Random, outside: Path) -> None:
    content = bytearray(path.read_bytes())
    kind = draw.randrange(5)
    if kind == 0:
        del content[draw.randrange(len(content) + 1) :]
    elif kind == 1:
        content += content[: draw.randrange(len(content) + 1)]
    else:
        for _ in range(draw.choice([1, 1, 3, 30])):
            if content:
                near = draw.random() < 0.5
                place = draw.randrange(min(len(content), 4096) if near else len(content))
                content[place] = draw.randrange(256)
    path.write_bytes(content)


def change_kind(path: Path, draw: random.Random, outside: Path) -> None:
    path.unlink()
    kind = draw.randrange(5)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        path.symlink_to(outside / "victim")
    elif kind == 3:
        path.symlink_to(path.name)


def change(folder: Path, draw: random.Random, outside: Path) -> str:
    """Change one or two files of a folder; their names."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".png")
    named = []
    for path in draw.sample(files, draw.choice([1, 1, 2])):
        how: Callable[[Path, random.Random, Path], None] = change_bytes
        if draw.random() < 0.12:
            how = change_kind
        elif path.suffix == ".json" and draw.random() < 0.8:
            how = change_json
        elif path.suffix == ".csv" and draw.random() < 0.8:
            how = change_table
        how(path, draw, outside)
        named.append(path.name)
    return "+".join(named)


def forge(model: Path) -> None:
    """Make the checksums of a model fit its files again."""
    path = model / "model.json"
    try:
        facts = json.loads(path.read_text())
        for name, listed in facts["files"].items():
            listed["sha256"] = sha256_file(model / name)
        facts.pop("sha256", None)
        path.write_text(json.dumps(facts | {"sha256": bundle._digest(facts)}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return


# What reads it.


def on_run(folder: Path, box: Path) -> None:
    where = ["--cache", str(box / "cache"), "--reports", str(box / "reports")]
    command(["report", *where])
    command(["report", str(folder), *where])
    command(["fit", "--data", "toy", "--head", "knn", "--folds", "2", *where])
    command(["export", str(folder), "--run", "-o", str(box / "sent")])
    command(["predict", str(folder), str(box / "one.png")])


def on_model(folder: Path, box: Path) -> None:
    try:
        model = load_model(folder, backbone=BACKBONE, device="cpu")
        model.predict([np.zeros((8, 8, 3), np.uint8), np.full((9, 7, 3), 255, np.uint8)])
    except FeatcacheError:
        pass
    command(["predict", str(folder), str(box / "one.png"), "--weights-dir", str(box)])
    command(["export", str(folder), "-o", str(box / "sent")])


def watch(box: Path) -> None:
    """End the process when Python writes, renames, deletes or starts anything outside the box."""
    inside = os.path.realpath(box)

    def check(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            if not isinstance(path, (str, bytes)):
                return
            writing = isinstance(mode, str) and any(letter in mode for letter in "wax+")
            writing |= isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
            changed = [path] if writing else []
        elif event in CHANGES:
            changed = [one for one in args[:2] if isinstance(one, (str, bytes))]
            changed = changed[-1:] if event in ("os.symlink", "shutil.copyfile") else changed[:1]
        elif event in ("subprocess.Popen", "os.system", "socket.connect"):
            changed = ["/" + event]
        else:
            return
        for path in changed:
            # A link that is removed or replaced is itself what changes, not what it leads to.
            above, name = os.path.split(os.fsdecode(path))
            itself = event in ("os.remove", "os.rename", "os.symlink")
            real = os.path.join(os.path.realpath(above), name) if itself else os.path.realpath(path)
            real = os.fsdecode(real)
            if not real.startswith(inside) and not real.startswith(("/dev/null", "/proc/self")):
                os.write(2, f"OUTSIDE {event} {real}\n".encode())
                os._exit(OUTSIDE)

    sys.addaudithook(check)


def in_child(work: Callable[[Path, Path], None], folder: Path, box: Path, seconds: float) -> str:
    """What came of it: "" or what went wrong."""
    log = box.parent / "log"
    child = os.fork()
    if not child:
        try:
            null = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(null, 1)
            os.dup2(null, 2)
            signal.alarm(0)
            os.chdir(box)
            watch(box)
            work(folder, box)
        except BaseException:  # noqa: BLE001
            os.write(2, traceback.format_exc().encode(errors="replace"))
            os._exit(WORSE)
        os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.02)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "hang"
    if os.WIFSIGNALED(status):
        return f"crash ({signal.Signals(os.WTERMSIG(status)).name})"
    code = os.WEXITSTATUS(status)
    return {0: "", WORSE: "traceback", OUTSIDE: "written outside"}.get(code, f"exit {code}")


def made_runs(folder: Path) -> list[Path]:
    """Run folders of several kinds, below reports/ and beside their cache."""
    X, y = blobs(60, (6, 4))
    cache, images = store(folder / "cache", X, y, (6, 4))
    features = cache.features(images, cache.choose("toy"))
    kept = fold.MANY_PROBABILITIES
    for head, fusion, most in (
        ("knn", "concat", kept),
        ("mlp", "attention", kept),
        ("lda", "concat", 9),
    ):
        fold.MANY_PROBABILITIES = predictions.MANY_PROBABILITIES = most
        compare.compare(
            features, head=head, fusion=fusion, folds=2, singles=head == "knn",
            reports=folder / "reports", cache=folder / "cache",
            settings={"mlp.epochs": 2} if head == "mlp" else {},
        )  # fmt: skip
    fold.MANY_PROBABILITIES = predictions.MANY_PROBABILITIES = kept
    return [path.parent for path in sorted(folder.glob("reports/toy/*/run.json"))]


def made_models(folder: Path) -> list[Path]:
    """Bundles of several heads."""
    images = coloured(36)
    fill_cache(images, backbone=BACKBONE, cache=folder / "cache")
    cache = Cache(folder / "cache")
    features = cache.features(images, cache.choose(images))
    settings = {"xgboost.n_estimators": 3, "mlp.epochs": 2}
    done = compare.compare(
        features, head=["logreg", "knn", "svm", "xgboost", "mlp", "lda"], test_split=True,
        reports=folder / "models", cache=None, settings=settings,
    )  # fmt: skip
    return [run.folder / "model" for run in done]


def fuzz(
    kind: str, seeds: list[Path], root: Path, count: int, seconds: float, start: int
) -> tuple[Counter[str], list[str]]:
    found: Counter[str] = Counter()
    told = []
    whole = seeds[0].parents[2]
    for number in range(start, start + count):
        draw = random.Random(number)
        box = root / "box"
        shutil.rmtree(box, ignore_errors=True)
        outside = root / "outside"
        shutil.rmtree(outside, ignore_errors=True)
        outside.mkdir()
        (outside / "victim").write_text("mine")
        seed = draw.choice(seeds)
        shutil.copytree(whole, box)
        Image.new("RGB", (8, 8), "red").save(box / "one.png")
        folder = box / seed.relative_to(whole)
        named = change(folder, draw, outside)
        if kind == "models" and draw.random() < 0.5:
            forge(folder)
        os.environ["TMPDIR"] = tempfile.tempdir = str(box)
        result = in_child(on_run if kind == "runs" else on_model, folder, box, seconds)
        tempfile.tempdir = None
        if [p.name for p in outside.iterdir()] != ["victim"] or (
            outside / "victim"
        ).read_text() != "mine":
            result = "written outside"
        found[result or "fine"] += 1
        if result:
            last = (root / "log").read_text(errors="replace").strip().splitlines()[-1:]
            told.append(f"{kind} {number} ({seed.parent.name if kind == 'models' else seed.name}: "
                        f"{named}): {result}: {' '.join(last)[:300]}")  # fmt: skip
            print(told[-1], file=sys.stderr, flush=True)
            shutil.copy(root / "log", root / f"log-{kind}-{number}")
        if number % 50 == 49:
            print(kind, number + 1, dict(found), file=sys.stderr, flush=True)
    return found, told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--models", type=int, default=500)
    parser.add_argument("--start", type=int, default=0, help="number of the first change")
    parser.add_argument("--seconds", type=float, default=60.0, help="what a hang is")
    options = parser.parse_args()
    style.Figure.savefig = lambda self, path, **_: Path(path).write_bytes(b"x")  # type: ignore[method-assign, assignment]
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as work:
        runs = made_runs(Path(made) / "runs")
        models = made_models(Path(made) / "models")
        print("| what | changed | fine | traceback | crash | hang | written outside |")
        print("|---|---|---|---|---|---|---|")
        bad = []
        for kind, seeds, count in (
            ("runs", runs, options.runs),
            ("models", models, options.models),
        ):
            found, told = fuzz(kind, seeds, Path(work), count, options.seconds, options.start)
            crashes = sum(n for name, n in found.items() if name.startswith(("crash", "exit")))
            print(f"| {kind} | {count} | {found['fine']} | {found['traceback']} | {crashes} | "
                  f"{found['hang']} | {found['written outside']} |", flush=True)  # fmt: skip
            bad += told
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
