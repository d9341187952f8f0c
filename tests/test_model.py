"""The cache against a dictionary: whatever is done to the images and the files, what comes out
is each image's own vector, and only new contents cost a forward pass."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    precondition,
    rule,
)
from PIL import Image
from tiny import SIDE, TinyNet, tiny_backbone

from featcache.errors import CacheRefused
from featcache.extraction.extract import fill_cache
from featcache.images.sources import open_images
from featcache.store.cache import Cache
from featcache.store.feature_file import FeatureFile

BATCH = 4


class Killed(BaseException):
    """Stands for a kill: nothing in the package may catch it."""


def oracle(pixels: np.ndarray) -> np.ndarray:
    """The vector of an image, computed without the package's own pipeline."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = (pixels / 255 - mean) / std  # (h, w, 3)
    net = TinyNet(5, 0, None)
    with torch.inference_mode():
        return net(torch.tensor(x.transpose(2, 0, 1)[None], dtype=torch.float32))[0].numpy()


class CacheModel(RuleBasedStateMachine):
    """Images on disk, the cache, and a dictionary that knows what should come out."""

    images = Bundle("images")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.files: dict[str, tuple[int, str]] = {}  # path -> content, label
        self.stored: set[int] = set()  # contents that have a vector
        self.count = 0
        self.passes = 0
        self.kill_after: int | None = None

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize()
    def begin(self) -> None:
        self._write("a/first.png", 0)

    def _pixels(self, content: int) -> np.ndarray:
        return np.random.default_rng(content).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)

    def _write(self, path: str, content: int) -> None:
        target = self.folder / "images" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self._pixels(content)).save(target)
        self.files[path] = (content, path.split("/")[0])

    def _move(self, old: str, new: str) -> None:
        target = self.folder / "images" / new
        target.parent.mkdir(parents=True, exist_ok=True)
        (self.folder / "images" / old).rename(target)
        self.files[new] = (self.files.pop(old)[0], new.split("/")[0])

    def _name(self, label: str) -> str:
        self.count += 1
        return f"{label}/{self.count:03d}.png"

    @rule(target=images, content=st.integers(0, 30), label=st.sampled_from("ab"))
    def add(self, content: int, label: str) -> str:
        path = self._name(label)
        self._write(path, content)
        return path

    @rule(target=images, start=st.integers(31, 1000), label=st.sampled_from("ab"))
    def add_many(self, start: int, label: str) -> object:
        paths = [self._name(label) for _ in range(9)]
        for i, path in enumerate(paths):
            self._write(path, start + i)
        return multiple(*paths)

    @rule(path=consumes(images))
    def remove(self, path: str) -> None:
        (self.folder / "images" / path).unlink()
        del self.files[path]

    @rule(target=images, path=consumes(images))
    def rename(self, path: str) -> str:
        new = self._name(self.files[path][1])
        self._move(path, new)
        return new

    @rule(target=images, path=consumes(images))
    def relabel(self, path: str) -> str:
        new = self._name("b" if self.files[path][1] == "a" else "a")
        self._move(path, new)
        return new

    @rule(path=images, content=st.integers(0, 1000))
    def edit(self, path: str, content: int) -> None:
        self._write(path, content)

    @precondition(lambda self: self._finals())
    @rule(where=st.floats(0, 0.999), bit=st.integers(0, 7))
    def corrupt(self, where: float, bit: int) -> None:
        """Flip one bit of one vector; verification finds it, repair takes the row out."""
        from featcache.store.maintenance import repair, verify

        path = self._finals()[0]
        with FeatureFile(path) as file:
            rows, offset = len(file), file._file["features"].id.get_offset()
            row_bytes = file.dim * 4
            contents = [digest.tobytes().hex() for digest in file.digests]
        at = int(where * rows * row_bytes)
        data = bytearray(path.read_bytes())
        data[offset + at] ^= 1 << bit
        path.write_bytes(data)
        findings = [finding for finding in verify(self._cache(), "images") if finding.problem]
        assert len(findings) == 1
        known = dict(zip(self._listed.sha256.tolist(), self._listed.ids.tolist(), strict=True))
        sha = contents[at // row_bytes]
        assert findings[0].damaged == (known.get(sha, sha),)
        if sha in known and set(known) <= set(contents):
            cache = self._cache()
            with pytest.raises(CacheRefused, match="fit its checksum"):
                cache.features(self._listed, cache.choose("images"))
        repair(findings[0])
        # What a kill has left may hold the row too, and unharmed.
        gone = {sha} - self._good()
        self.stored = {content for content in self.stored if self._sha(content) not in gone}

    @rule(after=st.integers(0, 3))
    def kill(self, after: int) -> None:
        """The next extraction dies at its n-th forward pass."""
        self.kill_after = after

    @rule()
    def extract(self) -> None:
        self._listed = open_images(self.folder / "images", cache=self.folder / "cache")
        new = {content for content, _ in self.files.values()} - self.stored
        self.passes = 0
        try:
            report = fill_cache(
                self._listed,
                backbone=tiny_backbone(called=self._called),
                cache=self.folder / "cache",
                batch_size=BATCH,
                workers=2,
            )
        except Killed:
            self._after_kill()
            return
        finally:
            self.kill_after = None
        assert report.outcomes[0].computed == len(new)
        self.stored |= new
        self._matches_the_dictionary()

    def _called(self, _: int) -> None:
        if self.kill_after is not None:
            if self.kill_after == 0:
                raise Killed
            self.kill_after -= 1

    def _after_kill(self) -> None:
        """What is done stays done, whether it was new or old."""
        contents = {content for content, _ in self.files.values()} | self.stored
        done = self._good()
        found = {content for content in contents if self._sha(content) in done}
        assert self.stored <= found
        self.stored = found

    def _good(self) -> set[str]:
        """The contents whose rows check, in finished and interrupted files."""
        good: set[str] = set()
        for path in [*self._finals(), *(self.folder / "cache").glob("images/.*.partial")]:
            with FeatureFile(path) as file:
                good |= {d.tobytes().hex() for d in file.digests[file.good()]}
        return good

    def _matches_the_dictionary(self) -> None:
        cache = self._cache()
        features = cache.features(self._listed, cache.choose("images"))
        assert sorted(features.ids.tolist()) == sorted(self.files)
        for id_, label, row in zip(features.ids, features.y, features.X, strict=True):
            content, wanted = self.files[str(id_)]
            assert label == wanted
            np.testing.assert_allclose(row, oracle(self._pixels(content)), atol=1e-6)

    def _cache(self) -> Cache:
        return Cache(self.folder / "cache")

    def _finals(self) -> list[Path]:
        return sorted((self.folder / "cache").glob("images/[!.]*.h5"))

    def _sha(self, content: int) -> str:
        import hashlib
        import io

        buffer = io.BytesIO()
        Image.fromarray(self._pixels(content)).save(buffer, "png")
        return hashlib.sha256(buffer.getvalue()).hexdigest()


def test_a_row_that_an_interrupted_file_holds_too_is_not_computed_again() -> None:
    model = CacheModel()
    model.begin()
    model.extract()
    model.kill(after=0)
    model.add(content=1, label="a")
    model.extract()
    model.corrupt(bit=0, where=0.0)
    model.extract()
    model.teardown()


TestCacheModel = CacheModel.TestCase
TestCacheModel.settings = settings(
    max_examples=25,
    stateful_step_count=20,
)


class LongCacheModel(CacheModel):
    """The same, for longer."""


TestLongCacheModel = pytest.mark.slow(LongCacheModel.TestCase)
TestLongCacheModel.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    phases=(Phase.explicit, Phase.generate),  # the first failure at once, be it long
)


def test_a_finished_file_of_another_key_under_the_same_name_is_refused(tmp_path: Path) -> None:
    """Eight digits of a key may collide; the whole key must agree."""
    from tiny import tiny_images

    images = tiny_images(6)
    one = fill_cache(images, backbone=tiny_backbone(), cache=tmp_path, batch_size=BATCH)
    two = tiny_backbone(seed=1)
    other = Cache(tmp_path).path("tiny", two.key())
    one.outcomes[0].path.rename(other)
    with pytest.raises(CacheRefused, match="another key"):
        fill_cache(images, backbone=two, cache=tmp_path, batch_size=BATCH)
