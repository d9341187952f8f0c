"""Extraction on workers that are real processes."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from noise import noise
from tiny import tiny_backbone, tiny_images

from featcache.cli.main import run
from featcache.errors import ClusterError, DataError, RecipeError
from featcache.extraction import engine
from featcache.extraction.extract import ExtractionContext, fill_cache
from featcache.extraction.report import Report
from featcache.images.manifest import Images, subsample
from featcache.images.sources import open_images
from featcache.scaling import worker
from featcache.scaling.cluster import Cluster
from featcache.scaling.executors import embed_on
from featcache.scaling.plan import Plan, make_plan
from featcache.scaling.scheduler import PartMerger, RangeScheduler
from featcache.scaling.transport import SharedFolder
from featcache.store.cache import Cache
from featcache.store.feature_file import FeatureFile
from featcache.store.key import read_key
from featcache.store.locking import find_parts, hold

from .extracting import contents
from .machines import Machines

OPTIONS: dict[str, Any] = {
    "backbone": "squeezenet1_1", "weights": "random:0", "image_size": 32,
    "batch_size": 4, "workers": 1, "device": "cpu", "precision": "fp32", "view": "hflip",
}  # fmt: skip
ONE = {**OPTIONS, "view": ()}


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.glob("*/.*") if not path.name.endswith(".lock")]


@pytest.fixture(scope="module")
def alone(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """What one machine makes of it."""
    cache = tmp_path_factory.mktemp("alone")
    return cache, fill_cache(open_images(photos, cache=cache), cache=cache, **OPTIONS)


@pytest.mark.parametrize("size", [8, 1000])
def test_the_file_is_that_of_one_machine_to_the_bit(
    machines: Machines, photos: Path, alone: tuple[Path, Report], tmp_path: Path, size: int
) -> None:
    with Cluster(str(machines.file)) as cluster:
        report = fill_cache(
            open_images(photos, cache=tmp_path), cache=tmp_path,
            embed=embed_on(cluster, size=size), **OPTIONS,
        )  # fmt: skip
    assert len(contents(tmp_path)) == 2
    assert contents(tmp_path) == contents(alone[0])
    assert report.failed == alone[1].failed
    assert len(report.failed) == 2
    assert [o.computed for o in report.outcomes] == [o.computed for o in alone[1].outcomes]
    written = [(folder / "photos" / "failed.csv").read_text() for folder in (tmp_path, alone[0])]
    assert written[0] == written[1]
    assert leftovers(tmp_path) == []


def test_images_that_come_by_name(machines: Machines, tmp_path: Path) -> None:
    """Opened by each worker itself."""
    images = subsample(open_images("digits", cache=None), 6)
    fill_cache(images, cache=tmp_path / "one", **ONE)
    with Cluster(str(machines.file)) as cluster:
        fill_cache(images, cache=tmp_path / "many", embed=embed_on(cluster, size=8), **ONE)
    assert len(contents(tmp_path / "many")) == 1
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_the_precision_is_settled_here_and_a_sample_compared(
    machines: Machines, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "fast_precisions", lambda device: ("bf16",))
    asked = {**OPTIONS, "precision": "auto"}
    reports = [fill_cache(open_images(photos), cache=tmp_path / "one", **asked)]
    with Cluster(str(machines.file)) as cluster:
        reports += [
            fill_cache(
                open_images(photos), cache=tmp_path / name, embed=embed_on(cluster, size=8), **asked
            )
            for name in ("many", "many")
        ]
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert [report.computed for report in reports] == [*[reports[0].computed] * 2, 0]
    facts = []
    for report in reports:
        assert [outcome.key.precision for outcome in report.outcomes] == ["bf16", "bf16"]
        with FeatureFile(report.outcomes[0].path) as file:
            facts.append((file.attributes["canary"], file.attributes["fidelity"]))
    assert facts[0] == facts[1]


def test_failures_end_it_as_on_one_machine(
    machines: Machines, photos: Path, tmp_path: Path
) -> None:
    command = ["extract", "--data", str(photos), "--cache", str(tmp_path), "--backbone",
               "squeezenet1_1", "--weights", "random:0", "--image-size", "32", "-q",
               "--dask", str(machines.file)]  # fmt: skip
    assert run([*command, "--max-failures", "1"]) == 1
    assert run(command) == 3
    assert run([*command, "--retry-failed"]) == 3


def test_what_is_there_needs_no_cluster(photos: Path, alone: tuple[Path, Report]) -> None:
    with Cluster("tcp://127.0.0.1:9") as nobody:
        again = fill_cache(
            open_images(photos, cache=alone[0]), cache=alone[0], embed=embed_on(nobody), **OPTIONS
        )
    assert again.computed == 0


def test_no_scheduler_is_said(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featcache.scaling.cluster._PATIENCE", 0.3)
    with (
        Cluster("tcp://127.0.0.1:9") as nobody,
        pytest.raises(ClusterError, match="no Dask scheduler answers at tcp://127"),
    ):
        fill_cache(open_images(photos), cache=tmp_path, embed=embed_on(nobody), **ONE)


def test_a_second_one_on_the_same_cache_is_told_to_wait(
    machines: Machines, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["extract", "--data", str(photos), "--cache", str(tmp_path), "--backbone",
               "squeezenet1_1", "--weights", "random:0", "--image-size", "32", "-q"]  # fmt: skip
    assert run(command) == 3
    (path,) = tmp_path.glob("photos/[!.]*.h5")
    path.unlink()
    with hold(path):
        assert run([*command, "--dask", str(machines.file)]) == 4
    assert "another process is writing" in capsys.readouterr().err


def test_one_more_image_is_one_pass(machines: Machines, photos: Path, tmp_path: Path) -> None:
    import shutil

    copy, cache = tmp_path / "photos", tmp_path / "cache"
    shutil.copytree(photos, copy)
    with Cluster(str(machines.file)) as cluster:
        for expected in (69, 1):
            images = open_images(copy, cache=cache)
            done = fill_cache(images, cache=cache, embed=embed_on(cluster), **ONE)
            assert done.computed == expected
            noise(500).save(copy / "cat" / "new.png")


def test_a_killed_worker_s_rows_are_embedded_by_another(
    machines: Machines, photos: Path, alone: tuple[Path, Report], tmp_path: Path
) -> None:
    """kill -9 in the middle of it; then one worker has all the rest."""
    killed = []

    def kill(done: int, total: int) -> None:
        if not killed and 0 < done < total:
            machines.kill_worker(1)
            killed.append(done)

    with Cluster(str(machines.file)) as cluster:
        fill_cache(open_images(photos, cache=tmp_path), cache=tmp_path, progress=kill,
                   embed=embed_on(cluster, size=8), **OPTIONS)  # fmt: skip
    assert killed
    assert contents(tmp_path) == contents(alone[0])
    assert leftovers(tmp_path) == []


class Caught(Exception):
    pass


def plan_for(data: Path | Images, cache: Path, **changes: Any) -> tuple[Plan, ExtractionContext]:
    """The plan of an extraction that stops where the cluster would begin."""
    made: list[tuple[Plan, ExtractionContext]] = []

    def embed(context: ExtractionContext) -> None:
        made.append((make_plan(context, None, 1), context))
        raise Caught

    with pytest.raises(Caught):
        fill_cache(open_images(data), cache=cache, embed=embed, **{**ONE, **changes})
    return made[0]


def told(plan: Plan, **changes: Any) -> str:
    return json.dumps({**json.loads(plan.json()), **changes})


def with_weights(plan: Plan, weights: str) -> str:
    options = replace(plan.request.options, weights=weights)
    return replace(plan, request=replace(plan.request, options=options)).json()


class TestAWorkerLooksAtItself:
    def test_all_is_well(self, photos: Path, tmp_path: Path) -> None:
        plan, _ = plan_for(photos, tmp_path)
        said = worker.check(plan.json())
        assert said == {"refused": "", "device": "cpu", "cosine": 1.0, "identical": True}

    def test_it_has_another_torch(self, photos: Path, tmp_path: Path) -> None:
        plan, _ = plan_for(photos, tmp_path)
        said = worker.check(told(plan, versions={**plan.versions, "torch": "1.0"}))
        assert "torch" in said["refused"]
        assert ", not 1.0" in said["refused"]

    def test_it_has_other_weights(self, photos: Path, tmp_path: Path) -> None:
        plan, _ = plan_for(photos, tmp_path)
        said = worker.check(with_weights(plan, "random:1"))
        assert "weights_sha256 random:0 → random:1" in said["refused"]

    def test_it_has_no_weights(self, photos: Path, tmp_path: Path) -> None:
        plan, _ = plan_for(photos, tmp_path)
        said = worker.check(with_weights(plan, "/nowhere.pth"))
        assert "has no weights '/nowhere.pth'" in said["refused"]

    def test_it_gives_other_vectors(self, photos: Path, tmp_path: Path) -> None:
        plan, _ = plan_for(photos, tmp_path)
        (part,) = json.loads(plan.json())["parts"]
        other = np.random.default_rng(0).random((len(plan.ids), 512), np.float32)
        part["vectors"] = base64.b64encode(other.tobytes()).decode()
        said = worker.check(told(plan, parts=[part]))
        assert "differ: cosine" in said["refused"]

    def test_it_sees_another_folder(self, photos: Path, tmp_path: Path) -> None:
        plan, _ = plan_for(photos, tmp_path)
        said = worker.check(told(plan, cache=str(tmp_path / "elsewhere")))
        assert "the cache folder must be shared" in said["refused"]

    def test_it_sees_other_images(self, photos: Path, tmp_path: Path) -> None:
        plan, _ = plan_for(photos, tmp_path)
        others = ["0" * 64] * len(plan.ids)
        assert "it sees other images" in worker.check(told(plan, sha256=others))["refused"]
        source = {**json.loads(plan.json())["source"], "root": "/nowhere"}
        assert "it sees other images" in worker.check(told(plan, source=source))["refused"]

    def test_a_refused_one_embeds_nothing(self, photos: Path, tmp_path: Path) -> None:
        plan, _ = plan_for(photos, tmp_path)
        other = told(plan, versions={**plan.versions, "torch": "1.0"})
        assert set(worker.embed_range(other, {})) == {"refused"}

    def test_digits_that_are_others(self, tmp_path: Path) -> None:
        plan, _ = plan_for(subsample(open_images("digits", cache=None), 2), tmp_path)
        assert plan.source.spec == "digits"
        assert worker.check(plan.json())["refused"] == ""
        odd = worker.check(told(plan, ids=["9999", *plan.ids[1:]]))
        assert "it sees other images under digits: 9999" in odd["refused"]


def test_rows_of_parts_are_found_again(photos: Path, tmp_path: Path) -> None:
    """As after a crash of everything: a part is there, and whoever comes next takes it over."""
    plan, context = plan_for(photos, tmp_path)
    images, rows = context.unique.images, context.pending()[:10]
    span = {"first": rows[0], "last": rows[-1], "ids": images.ids[rows].tolist(),
            "sha256": images.sha256[rows].tolist(), "needs": [list(range(10))]}  # fmt: skip
    said = worker.embed_range(plan.json(), span)
    key = read_key(plan.parts[0].key, "")
    (part,) = find_parts(Cache(tmp_path), "photos", key)
    assert [part.name] == said["parts"]
    with h5py.File(part, "r+") as file:  # one row came out torn
        file["features"][4] = 0.0
    done = fill_cache(open_images(photos), cache=tmp_path, **ONE)
    assert done.computed == 69 - 10 + 1
    assert leftovers(tmp_path) == []
    whole = tmp_path / "whole"
    fill_cache(open_images(photos), cache=whole, **ONE)
    assert contents(tmp_path) == contents(whole)


def test_a_changed_image_is_caught_by_the_worker(photos: Path, tmp_path: Path) -> None:
    plan, context = plan_for(photos, tmp_path)
    images, rows = context.unique.images, context.pending()[:3]
    digests = images.sha256[rows].tolist()
    span = {"first": rows[0], "last": rows[-1], "ids": images.ids[rows].tolist(),
            "sha256": [digests[0], "f" * 64, digests[2]], "needs": [[0, 1, 2]]}  # fmt: skip
    said = worker.embed_range(plan.json(), span)
    assert [(place, kind) for place, kind, _ in said["problems"]] == [(1, "read")]
    (part,) = (tmp_path / "photos" / name for name in said["parts"])
    with FeatureFile(part) as file:
        assert file.done().tolist() == [True, False, True]


def test_what_can_t_be_sent_is_refused(photos: Path, tmp_path: Path) -> None:
    with Cluster("tcp://127.0.0.1:9") as nobody:
        nobody.workers = lambda: {}  # type: ignore[method-assign]
        embed = embed_on(nobody)
        with pytest.raises(RecipeError, match="backbone tiny can't be sent"):
            fill_cache(open_images(photos), cache=tmp_path, backbone=tiny_backbone(), embed=embed)
        with pytest.raises(RecipeError, match="they are in memory"):
            fill_cache(tiny_images(), cache=tmp_path, embed=embed, **ONE)


def test_a_range_that_brings_down_every_worker_is_given_up(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that vanish as soon as they have something to do."""

    class Falling:
        """A cluster in which each worker is lost with its first range."""

        where, threads, number = "here", 1, 0

        def workers(self) -> dict[str, int]:
            self.number += 1
            return {f"tcp://{self.number // 2}": 1}

        def forget(self, futures: object) -> None:
            pass

        @property
        def client(self) -> Falling:
            return self

        def submit(self, function: Any, *_: object, **__: object) -> Any:
            class Future:
                status = "finished"

                def done(self) -> bool:
                    return function is worker.check

                def result(self, timeout: float) -> dict[str, Any]:
                    return {"refused": "", "device": "cpu", "cosine": 1.0, "identical": True}

                def add_done_callback(self, _: object) -> None:
                    pass

            return Future()

    def embed(context: ExtractionContext) -> None:
        plan, files = make_plan(context, None, 1).json(), context.files
        merger = PartMerger(SharedFolder(tmp_path, "photos"), context.unique.images, files)
        RangeScheduler(Falling(), plan, context, files, 1000, merger).run()  # type: ignore[arg-type]

    monkeypatch.setattr("featcache.scaling.scheduler._LOOK", 0.01)
    with pytest.raises(ClusterError, match="5 workers were lost with the images cat"):
        fill_cache(open_images(photos), cache=tmp_path, embed=embed, **ONE)


def test_more_failures_than_allowed(machines: Machines, photos: Path, tmp_path: Path) -> None:
    with Cluster(str(machines.file)) as cluster, pytest.raises(DataError, match="2 images failed"):
        fill_cache(open_images(photos), cache=tmp_path, max_failures=1,
                   embed=embed_on(cluster), **ONE)  # fmt: skip
    assert np.count_nonzero([path.suffix == ".h5" for path in tmp_path.glob("photos/[!.]*")]) == 0
