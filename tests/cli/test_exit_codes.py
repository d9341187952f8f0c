"""Exit codes: 0 done, 1 failed, 2 usage, 3 some images failed, 4 cache refused.

A name of which there is nothing is a mistake in the command, whatever it names: 2. What was not
made yet, or can't be used as it is, is a failure: 1. That of an interruption is in test_interrupt.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
from noise import noise
from stored import blobs, store

from featcache.cli.main import run

EXTRACT = "extract --backbone squeezenet1_1 --image-size 32"
CODES = {
    # done
    "fit --data toy --head dummy": 0,
    "cache status --data toy": 0,
    "backbones squeezenet": 0,
    # not made yet, or not to be used
    "fit --data toy --backbone resnet50": 1,
    "fit --data toy --view hflip": 1,
    "rank --cache empty": 1,
    f"{EXTRACT} --data photos --weights none.pth": 1,
    f"{EXTRACT} --data text.csv": 1,
    # no such data
    f"{EXTRACT} --data nosuch": 2,
    f"{EXTRACT} --data nosuch.csv": 2,
    f"{EXTRACT} --data folder:nosuch": 2,
    f"{EXTRACT} --data csv:nosuch": 2,
    f"{EXTRACT} --data cnmc:nosuch": 2,
    f"{EXTRACT} --data series:nosuch": 2,
    f"{EXTRACT} --data nosuch:x": 2,
    f"{EXTRACT} --data torchvision:NoSuch": 2,
    f"{EXTRACT} --data photos --group nosuch": 2,
    f"{EXTRACT} --data list.csv --group nosuch": 2,
    "fit --data nosuch": 2,
    "fit --name nosuch": 2,
    "compare --data nosuch": 2,
    "rank --data nosuch": 2,
    "report --data nosuch": 2,
    "report nosuch": 2,
    "cache status --data nosuch": 2,
    "cache verify --data nosuch": 2,
    "cache prune --data nosuch": 2,
    "cache export x.npz --data nosuch": 2,
    "finetune --data nosuch --backbone squeezenet1_1": 2,
    "run nosuch.yaml": 2,
    # no such thing of another kind
    "extract --data photos --backbone nosuch": 2,
    "cache status --data toy --backbone nosuch": 2,
    "finetune --data photos --backbone nosuch": 2,
    "fit --data toy --backbone nosuch": 2,
    "compare --data toy --backbone net0,nosuch:size=3": 2,
    "rank --data toy --backbone nosuch@12345678": 2,
    f"{EXTRACT} --data photos --weights nosuch": 2,
    f"{EXTRACT} --data photos --weights-dir nosuch": 2,
    f"{EXTRACT} --data photos --weights random:0 --layer nosuch": 2,
    f"{EXTRACT} --data photos --weights random:0 --device nosuch": 2,
    f"{EXTRACT} --data photos --weights random:0 --view nosuch": 2,
    f"{EXTRACT} --data photos --weights random:0 --colour nosuch": 2,
    "fit --data toy --head nosuch": 2,
    "fit --data toy --fusion nosuch": 2,
    "fit --data toy --view nosuch": 2,
    "fit --data toy --select nosuch:3": 2,
    "fit --data toy --set nosuch=3": 2,
    "predict nosuch photos": 2,
    "export nosuch -o x": 2,
    "cache export x.nosuch --data toy": 2,
    "weights path nosuch": 2,
    "weights verify nosuch": 2,
    "weights add nosuch none.pth": 2,
    "backbones nosuch": 2,
    "nosuch": 2,
    "cache nosuch": 2,
    "fit --nosuch": 2,
    # some images failed
    f"{EXTRACT} --data photos --weights random:0 --cache photos-cache": 3,
    # cache refused
    "fit --data bad --head dummy": 4,
    "rank --data bad": 4,
    "cache verify --data bad": 4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets with features, one of them damaged; and photos, of which one is broken."""
    root = tmp_path_factory.mktemp("codes")
    X, y = blobs(60)
    for name in ("toy", "bad"):
        cache, _ = store(root / "cache", X, y, (6, 4), name=name)
    with h5py.File(cache.choose("bad")[0].path, "r+") as file:
        file["features"][3, 2] += 1
    for i in range(4):
        path = root / "photos" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(i).save(path)
    (root / "photos" / "cat" / "broken.png").write_text("no image")
    (root / "none.pth").write_text("no weights")
    (root / "text.csv").write_text("no,table\n1,2\n")
    (root / "list.csv").write_text("path,label\nphotos/cat/0.png,cat\n")
    return root


@pytest.mark.parametrize("words", CODES)
def test_exit_code(
    folder: Path, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *_, **__: pytest.fail("network"))
    code = CODES[words]
    assert run(words.split()) == code, capsys.readouterr().err
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    if code in (1, 2):
        assert "rror: " in said.err
