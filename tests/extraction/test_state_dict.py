from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from featcache.errors import WeightsError
from featcache.extraction.backbone import Backbone
from featcache.extraction.extract import fill_cache
from featcache.extraction.preprocess import Preprocess, from_plain
from featcache.extraction.state_dict import in_run, read_tuned, write_tuned
from featcache.images.manifest import from_arrays
from featcache.store.feature_file import read_trained_on

SEEN = [f"{i:064x}" for i in (3, 1, 255)]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    state = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor(2)}
    preprocess = Preprocess(resize=40, crop=32)
    write_tuned(path, state, SEEN, preprocess.plain())
    tuned = read_tuned(path)
    assert tuned is not None
    assert tuned.trained_on == set(SEEN)
    assert from_plain(tuned.preprocess) == preprocess
    write_tuned(tmp_path / "again.safetensors", state, SEEN, preprocess.plain())
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert all(torch.equal(value, state[name]) for name, value in load_file(path).items())


def test_any_other_file_was_not_tuned(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "plain.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"{")
    for path in (None, tmp_path / "net.pth", tmp_path / "plain.safetensors",
                 tmp_path / "cut.safetensors"):  # fmt: skip
        assert read_tuned(path) is None
    assert in_run(tmp_path, "resnet18") is None


@pytest.mark.parametrize(
    "text",
    [
        "no JSON", "[]", "{}", '{"trained_on": "AAAA", "preprocess": {}}',
        '{"trained_on": "no base64!", "preprocess": {}}', '{"trained_on": "", "preprocess": 1}',
    ],
)  # fmt: skip
def test_a_file_that_does_not_say_what_trained_it_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "net.safetensors"
    save_file({"a": torch.zeros(2)}, path, {"featcache.tuned": text})
    with pytest.raises(WeightsError, match="does not say what trained it"):
        read_tuned(path)


def test_the_list_stays_with_a_file_whose_broken_images_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    arrays = [np.full((4, 4, 3), i, np.uint8) for i in range(3)] + [np.zeros((2, 2, 5), np.uint8)]
    images = from_arrays("x", arrays, ids=list("abcd"), labels=list("xyxy"))
    backbone = Backbone(
        "net", "tests", "tuned", "0" * 64, Preprocess(resize=4, crop=4),
        lambda: torch.nn.Flatten(), trained_on=frozenset(SEEN),
    )  # fmt: skip
    report = fill_cache(images, backbone=backbone, cache=tmp_path, device="cpu")
    assert list(report.failed) == ["d"]
    assert read_trained_on(report.outcomes[0].path) == set(SEEN)
