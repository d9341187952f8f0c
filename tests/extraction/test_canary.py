"""The precision of a backbone is the same on every data set, and is asked for once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import SIDE, TinyNet, tiny_backbone, tiny_images

from featcache.cli.main import run
from featcache.extraction import consistency, engine
from featcache.extraction.backbone import Backbone
from featcache.extraction.canary import VERDICTS, Question, Verdict, canary_images, canary_pixels
from featcache.extraction.engine import Engine, fast_precisions, likely_precision
from featcache.extraction.extract import fill_cache
from featcache.extraction.network import Network
from featcache.extraction.preprocess import Preprocess
from featcache.extraction.report import Outcome
from featcache.extraction.unique_images import UniqueImages
from featcache.hashing import sha256_json
from featcache.images.manifest import Images, from_arrays
from featcache.store.cache import Cache
from featcache.store.feature_file import FeatureFile


@pytest.fixture(autouse=True)
def candidates(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what the device is fast in: bf16, if nothing else is said."""

    def fast(*precisions: str) -> None:
        monkeypatch.setattr(engine, "fast_precisions", lambda device: precisions)

    fast("bf16")
    return fast


class Rough(TinyNet):
    """Far off in some precisions, for all images or only for those that are nearly black."""

    def __init__(self, precisions: Sequence[torch.dtype], dark: bool) -> None:
        super().__init__(5, 0, None)
        self.precisions = precisions
        self.dark = dark

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        vectors = super().forward(x)
        if x.dtype not in self.precisions:
            return vectors
        bad = (x.flatten(1).amax(dim=1, keepdim=True) < -1.5) if self.dark else 1  # (n, 1)
        return vectors + 3 * bad * x[:, 0, 0, :5].sign()


def rough(*precisions: torch.dtype, dark: bool = False) -> Backbone:
    return replace(tiny_backbone(), build=lambda: Rough(precisions, dark))


def dark_images(name: str = "dark") -> Images:
    rng = np.random.default_rng(1)
    arrays = list(rng.integers(0, 12, (20, SIDE, SIDE, 3), dtype=np.uint8))
    return from_arrays(name, arrays, ids=[f"{i}.png" for i in range(20)], labels=["a", "b"] * 10)


def counted(backbone: Backbone) -> tuple[Backbone, list[Network]]:
    """The backbone, and a list that grows with each network that is built."""
    built: list[Any] = []

    def build() -> torch.nn.Module:
        network = backbone.build()
        built.append(network)
        return network

    return replace(backbone, build=build), built


def fill(cache: Path, backbone: Backbone | None = None, images: Images | None = None,
         **options: Any) -> Outcome:  # fmt: skip
    asked = {"backbone": backbone or tiny_backbone(), "cache": cache, "batch_size": 8, **options}
    return fill_cache(images or tiny_images(), **asked).outcomes[0]


def attributes(outcome: Outcome) -> dict[str, Any]:
    with FeatureFile(outcome.path) as file:
        return file.attributes


def test_the_images_are_the_same_everywhere() -> None:
    images = canary_images()
    assert images.shape == (16, 256, 256, 3)
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    assert digest == "15c19f7eb41117f759d810033fe3a7c10152ab6f89a7d407fd7a40a07f199180"
    assert (images.std(axis=(1, 2, 3)) > 20).all(), "some have nothing in them"
    assert canary_pixels(Preprocess(resize=40, crop=32, colour="grey")).shape == (16, 3, 32, 32)


def test_a_backbone_has_one_precision_on_every_data_set(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also on images that it is far off for in this precision; then it says so."""
    backbone = rough(torch.bfloat16, dark=True)
    plain = fill(cache, backbone)
    assert "differs from fp32" not in caplog.text
    dark = fill(cache, backbone, dark_images())
    assert "in bf16 differs from fp32 on these images" in caplog.text
    assert "--precision fp32" in caplog.text
    assert plain.key == dark.key
    assert plain.key.precision == "bf16"
    assert attributes(plain)["canary"] == attributes(dark)["canary"] >= engine.CANARY
    assert attributes(plain)["fidelity"] >= engine.CANARY > attributes(dark)["fidelity"]


def test_on_a_gpu_fp16_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "native_bf16", lambda device: True)
    assert fast_precisions("cuda:0") == ("fp16", "bf16")
    assert fast_precisions("cpu") == ("bf16",)
    monkeypatch.setattr(engine, "native_bf16", lambda device: False)
    assert fast_precisions("cuda:0") == ("fp16",)
    assert fast_precisions("cpu") == ()


HALF, BRAIN = torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    ("off", "taken", "builds"),
    [((), "fp16", 3), ((HALF,), "bf16", 4), ((BRAIN,), "fp16", 3), ((HALF, BRAIN), "fp32", 4)],
)
def test_the_first_that_the_network_bears_is_taken(
    off: tuple[torch.dtype, ...], taken: str, builds: int,
    candidates: Callable[..., None], cache: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    candidates("fp16", "bf16")
    backbone, built = counted(rough(*off))
    assert fill(cache, backbone).key.precision == taken
    assert len(built) == builds, "fp32, those that are tried, and fp32 again: for a sample, or all"
    assert ("in fp16 and bf16 differs from fp32" in caplog.text) == (taken == "fp32")


def test_a_precision_that_lacks_an_operation_is_not_borne(
    candidates: Callable[..., None], cache: Path
) -> None:
    class Lacking(TinyNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.dtype is HALF:
                raise RuntimeError("grid is not implemented for Half")
            return super().forward(x)

    candidates("fp16", "bf16")
    backbone = replace(tiny_backbone(), build=lambda: Lacking(5, 0, None))
    assert fill(cache, backbone).key.precision == "bf16"
    with pytest.raises(engine.FeatcacheError, match=r"(?s)can't run .* in fp16.*--precision fp32"):
        fill(cache, backbone, precision="fp16")


def test_vectors_beyond_the_range_of_a_precision_are_not_borne(
    candidates: Callable[..., None], cache: Path
) -> None:
    class Large(TinyNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 60_000 * 2

    candidates("fp16", "bf16")
    backbone = replace(tiny_backbone(), build=lambda: Large(5, 0, None))
    assert fill(cache, backbone).key.precision == "bf16"


def test_images_that_lead_beyond_it_are_said_and_refused(
    candidates: Callable[..., None], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Large(TinyNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            beyond = x.flatten(1).amax(dim=1, keepdim=True) < -1.5  # (n, 1)
            return super().forward(x) * torch.where(beyond, 60_000 * 60_000, 1)

    candidates("fp16")
    backbone = replace(tiny_backbone(), build=lambda: Large(5, 0, None))
    with pytest.raises(engine.FeatcacheError, match=r"(?s)infinite values.*--precision fp32"):
        fill(cache, backbone, dark_images())
    assert "in fp16 differs from fp32 on these images: cosine nan" in caplog.text
    assert fill(cache, backbone, dark_images(), precision="fp32").rows == 20
    assert fill(cache, backbone, dark_images()).key.precision == "fp32"


def test_a_verdict_is_asked_for_once(cache: Path) -> None:
    backbone, built = counted(tiny_backbone())
    fill(cache, backbone)
    built.clear()
    other = fill(cache, backbone, tiny_images(seed=1, name="other"))
    assert other.key.precision == "bf16"
    assert len(built) == 2, "one that does the work, and after it one in fp32 for a sample"
    assert attributes(other)["canary"] >= engine.CANARY


def test_so_is_one_against_every_fast_precision(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone, built = counted(rough(BRAIN))
    first = fill(cache, backbone)
    built.clear()
    caplog.clear()
    other = fill(cache, backbone, tiny_images(seed=1, name="other"))
    assert first.key == other.key
    assert other.key.precision == "fp32"
    assert len(built) == 1
    assert "computing in fp32" in caplog.text
    assert attributes(first)["canary"] == attributes(other)["canary"] < engine.CANARY
    assert "fidelity" not in attributes(other)


@pytest.mark.parametrize("changed", ["device", "torch", "engine", "precisions", "weights"])
def test_another_machine_version_or_backbone_is_asked_anew(
    changed: str, cache: Path, candidates: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(cache)
    asked: list[int] = []
    answer = Verdict("bf16", "eager", 1.0), None
    monkeypatch.setattr(engine, "_ask", lambda *_: asked.append(1) or answer)
    images, options = tiny_images(seed=1, name="other"), {}
    fill(cache, images=images)
    assert not asked
    backbone = tiny_backbone()
    if changed in ("device", "torch"):
        facts = Engine().describe()
        monkeypatch.setattr(Engine, "describe", lambda self: {**facts, changed: "another"})
    elif changed == "engine":
        options = {"engine": "compile"}
    elif changed == "precisions":
        candidates("fp16", "bf16")
    else:
        backbone = tiny_backbone(seed=1)
    fill(cache, backbone, tiny_images(seed=2, name="third"), **options)
    assert asked


QUESTION = Question("0123", "cpu", "2.12", "0.1", "compile", ("fp16", "bf16"))


def test_verdicts_stand_beside_one_another(tmp_path: Path) -> None:
    verdicts = {
        QUESTION: Verdict("fp16", "compile", 0.9999),
        replace(QUESTION, backbone="4567"): Verdict("bf16", "eager", 0.9995),
        replace(QUESTION, device="NVIDIA H200"): Verdict("fp32", "compile", 0.9),
    }
    for question, verdict in verdicts.items():
        assert question.recall(tmp_path / "new") is None
        question.remember(tmp_path / "new", verdict)
    for question, verdict in verdicts.items():
        assert question.recall(tmp_path / "new") == verdict
    assert [path.name for path in (tmp_path / "new").iterdir()] == [VERDICTS]


def signed(found: Any) -> Any:
    """With the digest of what it says, if that can have one."""
    with suppress(ValueError, TypeError):
        return found | {"sha256": sha256_json([str(QUESTION), found])}
    return found


@pytest.mark.parametrize(
    "content",
    [
        b"", b"nonsense", b"\xff\xfe\x00", b"null", b"[1, 2]", b"[[1, 2]]", b'{"a": 1}', b"7",
        b"[" * 100_000, b'{"a": ' * 100_000,
        *(json.dumps({str(QUESTION): signed(found)}).encode() for found in (
            None, [], "fp16", {}, {"precision": "fp16", "engine": "eager"},
            {"precision": "fp64", "engine": "eager", "cosine": 1.0},
            {"precision": "fp16", "engine": "openvino", "cosine": 1.0},
            {"precision": "fp16", "engine": "eager", "cosine": 0.5},
            {"precision": "fp16", "engine": "eager", "cosine": float("nan")},
            {"precision": "fp16", "engine": "eager", "cosine": "high"},
            {"precision": "fp16", "engine": "eager", "cosine": 10**400},
            {"precision": ["fp16"], "engine": "eager", "cosine": 1.0},
        )),
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_memory_is_no_memory(content: bytes, tmp_path: Path) -> None:
    (tmp_path / VERDICTS).write_bytes(content)
    assert QUESTION.recall(tmp_path) is None
    QUESTION.remember(tmp_path, verdict := Verdict("fp16", "eager", 1.0))
    assert QUESTION.recall(tmp_path) == verdict


@pytest.mark.parametrize(
    "changed", [(b'"fp16"', b'"bf16"'), (b"0.9999", b"0.9998"), (b"0.1", b"0.3")]
)
def test_a_flipped_bit_is_no_verdict(changed: tuple[bytes, bytes], tmp_path: Path) -> None:
    QUESTION.remember(tmp_path, Verdict("fp16", "compile", 0.9999))
    path = tmp_path / VERDICTS
    path.write_bytes(path.read_bytes().replace(*changed))
    assert QUESTION.recall(tmp_path) is None


def test_a_memory_that_can_not_be_written_is_no_error(cache: Path) -> None:
    (cache / VERDICTS).mkdir(parents=True)
    backbone, built = counted(tiny_backbone())
    assert fill(cache, backbone).key.precision == "bf16"
    assert fill(cache, backbone, tiny_images(seed=1, name="other")).key.precision == "bf16"
    assert len(built) == 6
    assert {path.name for path in cache.iterdir()} == {"tiny", "other", VERDICTS}


def test_what_it_will_come_to_is_known_without_a_network(cache: Path) -> None:
    unique = UniqueImages(tiny_images(), Cache(cache))

    def likely(precision: str = "auto") -> str:
        machine = Engine(precision=precision, kind="auto")
        return likely_precision(machine, tiny_backbone(), Cache(cache), unique)

    assert likely() == "bf16"
    fill(cache, rough(BRAIN), tiny_images(seed=1, name="other"))
    assert likely() == "fp32"
    assert likely("bf16") == "bf16"
    fill(cache, precision="fp16")
    assert likely() == "fp16", "its features are there"


def test_the_commands_of_the_cache_do_not_see_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["--backbone", "squeezenet1_1", "--weights", "random:0", "--image-size", "32"]
    assert run(["extract", "-q", *names]) == 0
    kept = (cache / VERDICTS).read_bytes()
    assert len(json.loads(kept)) == 1
    for words in (["ls"], ["status", *names], ["verify"], ["prune"], ["prune", "--superseded"],
                  ["export", "digits.npz"]):  # fmt: skip
        assert run(["cache", *words]) == 0, words
        assert "canary" not in capsys.readouterr().out
    assert Cache(cache).data_sets() == ["digits"]
    assert run(["cache", "prune", "--max-size", "0"]) == 0
    assert (cache / VERDICTS).read_bytes() == kept


# The sample of the user's images.


def test_it_is_taken_of_a_file_once(cache: Path) -> None:
    first = fill(cache)
    backbone, built = counted(tiny_backbone())
    more = fill(cache, backbone, tiny_images(50))
    assert (more.key, more.computed) == (first.key, 10)
    assert len(built) == 1, "only what computes the ten"
    assert attributes(more)["fidelity"] == attributes(first)["fidelity"]


def test_nothing_computed_is_nothing_compared(cache: Path) -> None:
    fill(cache)
    backbone, built = counted(tiny_backbone())
    renamed = fill(cache, backbone, tiny_images(20, name="renamed"))
    assert (renamed.key.precision, renamed.computed, renamed.rows) == ("bf16", 0, 20)
    assert not [network for network in built if network.matrix.dtype is torch.float32][1:]


def test_a_resumed_file_is_compared_too_and_equal_to_the_bit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = [0]

    class Cut(Rough):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls[0] += 1
            if calls[0] == 7:
                raise KeyboardInterrupt
            return super().forward(x)

    backbone = rough(BRAIN, dark=True)
    whole = fill(tmp_path / "whole", backbone, dark_images())
    cut = replace(backbone, build=lambda: Cut((BRAIN,), dark=True))
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "cut", cut, dark_images())
    (partial,) = (tmp_path / "cut").glob("*/.*.partial")
    with FeatureFile(partial) as file:
        assert 0 < file.done().sum() < 20
    caplog.clear()
    resumed = fill(tmp_path / "cut", backbone, dark_images())
    assert "differs from fp32 on these images" in caplog.text
    assert attributes(resumed)["fidelity"] == attributes(whole)["fidelity"]
    images, rows = dark_images(), []
    for folder in ("whole", "cut"):
        store = Cache(tmp_path / folder)
        rows.append(store.features(images, store.choose("dark")).X.tobytes())
    assert rows[0] == rows[1]


def test_interrupted_in_the_comparison_all_rows_are_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(consistency, "cosines", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fill(cache)
    done = fill(cache)
    assert (done.computed, done.rows) == (0, 40)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_without_memory_for_it_the_file_is_finished(
    error: Exception, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def short(*_: object) -> None:
        raise error

    monkeypatch.setattr(consistency, "cosines", short)
    caplog.set_level("INFO", "featcache")
    done = fill(cache)
    assert done.rows == 40
    assert "fidelity" not in attributes(done)
    assert "no memory for a comparison with fp32" in caplog.text


def test_images_that_are_gone_by_then_are_left_out(
    cache: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featcache.images.sources import open_images

    compare = consistency.cosines

    def gone(*words: Any) -> Any:
        for path in pictures.rglob("*.png"):
            path.unlink()
        return compare(*words)

    monkeypatch.setattr(consistency, "cosines", gone)
    done = fill(cache, images=open_images(pictures, cache=None))
    assert done.rows == 12
    assert "fidelity" not in attributes(done)


def test_broken_images_are_none_of_the_sample(cache: Path, pictures: Path) -> None:
    from featcache.images.sources import open_images

    for path in sorted(pictures.rglob("*.png"))[::3]:
        path.write_bytes(b"nonsense " + path.name.encode())
    done = fill(cache, images=open_images(pictures, cache=None))
    assert done.rows == 8
    assert attributes(done)["fidelity"] >= engine.CANARY
