import csv
import shutil
from dataclasses import replace

import numpy as np
import pytest
from noise import noise
from PIL import Image
from tiny import tiny_backbone, tiny_images

from featcache.errors import CacheRefused, DataError
from featcache.extraction import batch, task
from featcache.extraction import extract as extract_module
from featcache.extraction.extract import extract, fill_cache
from featcache.extraction.loader import Loading, cosine
from featcache.extraction.network import Network
from featcache.extraction.registry import open_backbone
from featcache.images.decode import decode
from featcache.images.dhash import dhash, no_hashes
from featcache.images.manifest import read_images_csv, write_images_csv
from featcache.images.sources import open_images
from featcache.store.cache import Cache
from featcache.store.feature_file import FeatureFile

SMALL = {"weights": "random:0", "image_size": 32, "batch_size": 4, "workers": 2}


@pytest.fixture
def passes(monkeypatch):
    """How many images went through a network; those that only try it out are not counted."""
    count = [0]
    plain = Network.start

    def spy(self, pixels, *how):
        count[0] += len(pixels) if hasattr(self, "dim") else 0
        return plain(self, pixels, *how)

    monkeypatch.setattr(Network, "start", spy)
    monkeypatch.setattr(task, "refuse_inconsistency", lambda *_, **__: None)

    def since_last():
        found, count[0] = count[0], 0
        return found

    return since_last


def embedded(pictures, cache, **options):
    return extract(pictures, backbone=tiny_backbone(), cache=cache, batch_size=4, workers=2,
                   **options)  # fmt: skip


def by_id(features):
    return dict(zip(features.ids.tolist(), features.X, strict=True))


def test_vectors_are_those_of_each_images_own_network_pass(pictures, cache):
    """Against one image at a time through a plain torch loop."""
    import torch

    backbone = open_backbone("resnet18", weights="random:0", image_size=32)
    features = extract(pictures, backbone="resnet18", cache=cache, **SMALL)
    network = backbone.build().eval()
    for id_, vector in by_id(features).items():
        with Image.open(pictures / id_) as image, torch.inference_mode():
            pixels = torch.from_numpy(backbone.preprocess.cut(image.convert("RGB")).copy())
            expected = network(backbone.preprocess.normalise(pixels[None]))[0].numpy()
        np.testing.assert_allclose(vector, expected, atol=1e-5 * np.abs(expected).max())


def test_labels_ids_and_blocks(pictures, cache):
    features = extract(pictures, backbone=["resnet18", "squeezenet1_1"], cache=cache, **SMALL)
    assert features.names == ("resnet18", "squeezenet1_1")
    assert features.blocks == (512, 512)
    assert features.data == "pictures"
    assert features.y.tolist() == [id_.split("/")[0] for id_ in features.ids.tolist()]
    assert features.X.dtype == np.float32


def test_two_backbones_in_one_pass_equal_two_passes(pictures, tmp_path):
    both = extract(pictures, backbone=["resnet18", "squeezenet1_1"], cache=tmp_path / "1", **SMALL)
    for i, name in enumerate(("resnet18", "squeezenet1_1")):
        one = extract(pictures, backbone=name, cache=tmp_path / "2", **SMALL)
        assert np.array_equal(both.X[:, 512 * i : 512 * (i + 1)], one.X)


def test_each_image_is_read_once_for_two_backbones(cache):
    images, reads = tiny_images(10), []
    spied = replace(images, read=lambda row: reads.append(row) or images.read(row))
    several = [tiny_backbone("a"), tiny_backbone("b", seed=1), tiny_backbone("c", view="hflip")]
    report = fill_cache(spied, backbone=several, cache=cache, batch_size=4)
    assert sorted(reads) == list(range(10))
    assert [o.computed for o in report.outcomes] == [10, 10, 10]


class TestDHash:
    def test_each_decoded_image_has_one(self, pictures, cache):
        shutil.copy(pictures / "cat" / "00.png", pictures / "dog" / "copy.png")
        features = embedded(pictures, cache)
        images = open_images(pictures, cache=None)
        wanted = np.stack([dhash(decode(images.read(row))) for row in range(len(images))])
        assert np.array_equal(features.dhash, wanted)
        assert np.array_equal(Cache(cache).images("pictures").dhash, wanted)
        assert len(images.dhash) == 0  # a source knows none

    def test_in_memory_and_views(self, cache):
        images = tiny_images(6)
        fill_cache(images, backbone=tiny_backbone(), view="hflip", cache=cache)
        store = Cache(cache)
        features = store.features(images, store.choose("tiny"), view=["hflip"])
        assert features.dhash.shape == (12, 32)
        assert features.dhash.any(axis=1).all()
        assert np.array_equal(features.dhash[:6], features.dhash[6:])

    def test_an_unchanged_run_decodes_nothing_and_keeps_them(self, pictures, cache, monkeypatch):
        before = embedded(pictures, cache).dhash
        monkeypatch.setattr(batch, "decode", lambda *_: pytest.fail("decoded"))
        assert np.array_equal(embedded(pictures, cache).dhash, before)
        (pictures / "cat").rename(pictures / "zebra")
        after = embedded(pictures, cache)
        assert sorted(after.dhash.tolist()) == sorted(before.tolist())

    def test_a_cache_without_is_read_and_filled_up_if_asked(self, pictures, cache, passes):
        wanted = embedded(pictures, cache).dhash
        forget_hashes(cache / "pictures" / "images.csv")
        assert embedded(pictures, cache).dhash.shape == (0, 32)
        passes()
        assert np.array_equal(embedded(pictures, cache, dhash=True).dhash, wanted)
        assert passes() == 0

    def test_only_those_that_have_none_are_decoded(self, pictures, cache, monkeypatch):
        embedded(pictures, cache)
        path, decoded = cache / "pictures" / "images.csv", []
        known = read_images_csv(path, "pictures")
        known.dhash[3] = 0
        write_images_csv(path, known)
        monkeypatch.setattr(
            extract_module,
            "decode",
            lambda *args, **more: decoded.append(1) or decode(*args, **more),
        )
        assert embedded(pictures, cache, dhash=True).dhash.any(axis=1).all()
        assert len(decoded) == 1

    def test_what_was_decoded_before_an_interrupt_is_kept(self, pictures, cache):
        def stop(done, _):
            if done == 8:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            embedded(pictures, cache, progress=stop)
        assert Cache(cache).images("pictures").dhash.any(axis=1).sum() == 8
        assert embedded(pictures, cache).dhash.any(axis=1).all()

    def test_a_broken_image_has_none(self, pictures, cache):
        (pictures / "cat" / "00.png").write_bytes(b"no image")
        features = embedded(pictures, cache)
        assert len(features) == 11
        assert features.dhash.any(axis=1).all()
        embedded(pictures, cache, dhash=True)
        assert (~Cache(cache).images("pictures").dhash.any(axis=1)).sum() == 1


def forget_hashes(path):
    """The list as earlier versions wrote it."""
    write_images_csv(path, replace(read_images_csv(path, "pictures"), dhash=no_hashes()))


class TestNothingIsComputedTwice:
    def test_the_same_again(self, pictures, cache, passes):
        first = embedded(pictures, cache)
        assert passes() == 12
        again = embedded(pictures, cache)
        assert passes() == 0
        assert np.array_equal(first.X, again.X)

    def test_no_network_is_even_built(self, pictures, cache):
        embedded(pictures, cache)
        backbone = replace(tiny_backbone(), build=lambda: pytest.fail("built"))
        extract(pictures, backbone=backbone, cache=cache)

    def test_renamed_moved_relabelled_resplit_reordered(self, pictures, cache, passes):
        before = {image.read_bytes(): image.name for image in pictures.rglob("*.png")}
        vectors = {before[(pictures / i).read_bytes()]: v
                   for i, v in by_id(embedded(pictures, cache)).items()}  # fmt: skip
        passes()
        (pictures / "cat").rename(pictures / "zebra")  # other labels, another order
        shutil.move(pictures / "dog" / "01.png", pictures / "owl" / "first.png")
        for part in ("train", "test"):
            (pictures / part).mkdir()
        for i, name in enumerate(("zebra", "dog", "owl")):
            shutil.move(pictures / name, pictures / ("train" if i else "test") / name)
        features = embedded(pictures, cache)
        assert passes() == 0
        assert set(features.split.tolist()) == {"train", "test"}
        for id_, vector in by_id(features).items():
            assert np.array_equal(vector, vectors[before[(pictures / id_).read_bytes()]])

    def test_as_a_table(self, pictures, cache, passes):
        embedded(pictures, cache)
        passes()
        rows = [f"{p.relative_to(pictures)},x" for p in pictures.rglob("*.png")]
        (pictures / "pictures.csv").write_text("\n".join(["path,label", *rows]))
        assert len(embedded(pictures / "pictures.csv", cache)) == 12
        assert passes() == 0

    def test_under_another_name(self, pictures, cache, passes):
        embedded(pictures, cache)
        passes()
        shutil.copytree(pictures, pictures.parent / "copy")
        assert len(embedded(pictures.parent / "copy", cache)) == 12
        assert passes() == 0
        assert len(Cache(cache).entries("copy")) == 1

    @pytest.mark.parametrize("k", [1, 5])
    def test_k_more_images_are_k_passes(self, pictures, cache, passes, k):
        first = by_id(embedded(pictures, cache))
        passes()
        for i in range(k):
            noise(100 + i).save(pictures / "cat" / f"0{i}new.png")
        more = by_id(embedded(pictures, cache))
        assert passes() == k
        assert len(more) == 12 + k
        assert all(np.array_equal(more[id_], vector) for id_, vector in first.items())

    def test_one_edited_file_is_one_pass(self, pictures, cache, passes):
        first = by_id(embedded(pictures, cache))
        passes()
        noise(77).save(pictures / "dog" / "01.png")
        after = by_id(embedded(pictures, cache))
        assert passes() == 1
        assert [i for i in first if not np.array_equal(first[i], after[i])] == ["dog/01.png"]

    def test_the_same_bytes_twice_are_one_pass(self, pictures, cache, passes):
        for i in range(3):
            shutil.copy(pictures / "cat" / "00.png", pictures / "owl" / f"copy{i}.png")
        vectors = by_id(embedded(pictures, cache))
        assert passes() == 12
        assert len(vectors) == 15
        assert np.array_equal(vectors["owl/copy2.png"], vectors["cat/00.png"])

    def test_fewer_images_and_then_all_again(self, pictures, cache, passes):
        embedded(pictures, cache)
        passes()
        hidden = pictures.parent / "hidden"
        shutil.move(pictures / "cat", hidden)
        assert len(embedded(pictures, cache)) == 8
        shutil.move(hidden, pictures / "cat")
        assert len(embedded(pictures, cache)) == 12
        assert passes() == 0

    def test_another_weight_file_of_the_same_name_is_a_miss(self, pictures, cache, passes):
        embedded(pictures, cache)
        passes()
        extract(pictures, backbone=tiny_backbone(seed=1), cache=cache)
        assert passes() == 12

    def test_only_the_backbone_that_lacks_something_runs(self, pictures, cache, passes):
        embedded(pictures, cache)
        passes()
        both = [tiny_backbone(), tiny_backbone("other", seed=1)]
        report = fill_cache(open_images(pictures, cache=cache), backbone=both, cache=cache)
        assert [o.computed for o in report.outcomes] == [0, 12]
        assert passes() == 12


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, at a moment of the test's choosing."""


@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_run_goes_on_where_it_stopped(pictures, tmp_path, monkeypatch, after):
    whole = extract(pictures, backbone="mobilenet_v2", cache=tmp_path / "whole", **SMALL)
    plain, count = Network.start, [0]

    def stop(self, pixels, *how):
        count[0] += hasattr(self, "dim")
        if count[0] > after:
            raise Interrupted
        return plain(self, pixels, *how)

    monkeypatch.setattr(Network, "start", stop)
    with pytest.raises(KeyboardInterrupt):
        extract(pictures, backbone="mobilenet_v2", cache=tmp_path / "cut", **SMALL)
    monkeypatch.setattr(Network, "start", plain)
    assert Cache(tmp_path / "cut").entries("pictures") == []
    images = open_images(pictures, cache=None)
    report = fill_cache(images, backbone="mobilenet_v2", cache=tmp_path / "cut", **SMALL)
    assert report.outcomes[0].computed == 12 - 4 * after
    again = extract(pictures, backbone="mobilenet_v2", cache=tmp_path / "cut", **SMALL)
    assert again.X.tobytes() == whole.X.tobytes()
    assert again.ids.tolist() == whole.ids.tolist()
    left = {p.name for p in (tmp_path / "cut" / "pictures").iterdir() if ".lock" not in p.name}
    assert left == {report.outcomes[0].path.name, "images.csv", "origin.json"}


BAD = {"cat/00a.png", "dog/zz.jpg", "owl/03cut.png"}


@pytest.fixture
def spoilt(pictures):
    """The pictures and, in between, three that can't be decoded (two of them equal)."""
    (pictures / "cat" / "00a.png").write_bytes(b"no image")
    (pictures / "dog" / "zz.jpg").write_bytes(b"no image")
    whole = (pictures / "owl" / "02.png").read_bytes()
    (pictures / "owl" / "03cut.png").write_bytes(whole[: len(whole) // 2])
    return pictures


@pytest.fixture(params=["threads", "processes"])
def each_loading(request, monkeypatch):
    """As on a processor, and as on a GPU."""
    if request.param == "processes":
        loading = Loading(2, processes=True, on_device=True)
        monkeypatch.setattr(extract_module, "choose_loading", lambda *_: loading)


@pytest.mark.usefixtures("each_loading")
class TestBrokenImages:
    def test_cost_themselves_only(self, spoilt, tmp_path):
        """Bit for bit, though the others stand elsewhere in their batches then."""
        found = by_id(extract(spoilt, backbone="squeezenet1_1", cache=tmp_path / "1", **SMALL))
        for bad in BAD:
            (spoilt / bad).unlink()
        clean = by_id(extract(spoilt, backbone="squeezenet1_1", cache=tmp_path / "2", **SMALL))
        assert found.keys() == clean.keys()
        assert all(np.array_equal(found[id_], clean[id_]) for id_ in clean)

    def test_are_listed(self, spoilt, cache):
        images = open_images(spoilt, cache=cache)
        report = fill_cache(images, backbone=tiny_backbone(), cache=cache, batch_size=4)
        assert report.failed.keys() == BAD
        assert report.outcomes[0].rows == 12
        with (cache / "pictures" / "failed.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["id"] for row in rows} == BAD
        assert {row["kind"] for row in rows} == {"decode"}
        assert all(row["problem"] for row in rows)

    def test_are_not_tried_again_and_stay_listed(self, spoilt, cache, passes):
        embedded(spoilt, cache)
        passes()
        images = open_images(spoilt, cache=cache)
        report = fill_cache(images, backbone=tiny_backbone(), cache=cache)
        assert (passes(), report.failed.keys()) == (0, BAD)

    def test_mended_they_are_embedded(self, spoilt, cache, passes):
        embedded(spoilt, cache)
        passes()
        for i, bad in enumerate(sorted(BAD)):
            noise(50 + i).save(spoilt / bad)
        assert len(embedded(spoilt, cache)) == 15
        assert passes() == 3
        assert not (cache / "pictures" / "failed.csv").exists()

    def test_none_left_is_an_error_each_time(self, tmp_path, cache):
        for i in range(3):
            (tmp_path / "bad" / "a").mkdir(parents=True, exist_ok=True)
            (tmp_path / "bad" / "a" / f"{i}.png").write_bytes(bytes([i]))
        for _ in range(2):
            with pytest.raises(DataError, match="not one of 3 images could be embedded"):
                embedded(tmp_path / "bad", cache)
            assert (cache / "bad" / "failed.csv").is_file()
        noise(1).save(tmp_path / "bad" / "a" / "good.png")
        assert len(embedded(tmp_path / "bad", cache)) == 1


class TestBatches:
    def test_are_no_larger_than_the_data_set(self, cache):
        seen = []
        images = tiny_images(20)
        fill_cache(images, backbone=tiny_backbone(called=seen.append), cache=cache, batch_size=512)
        assert set(seen) == {20}

    def test_stay_as_large_when_known_failures_or_few_rows_are_left(self, spoilt, cache):
        """A run that goes on has forward passes of the size that it began with."""
        images, seen = open_images(spoilt, cache=cache), []
        options = {"cache": cache, "batch_size": 512, "max_failures": None}

        def stop(size):
            seen.append(size)
            if len(seen) > 1:  # the first pass is the network's trial
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fill_cache(images, backbone=tiny_backbone(called=stop), **options)
        fill_cache(images, backbone=tiny_backbone(called=seen.append), **options)
        fill_cache(images, backbone=tiny_backbone("other", called=seen.append), **options)
        assert set(seen) == {14}, "12 good images and 2 distinct broken ones"


@pytest.mark.usefixtures("each_loading")
class TestFilesThatChangeMeanwhile:
    def test_are_not_stored_under_the_old_digest(self, pictures, cache):
        images = open_images(pictures, cache=cache)
        noise(66).save(pictures / "cat" / "00.png")
        report = fill_cache(images, backbone=tiny_backbone(), cache=cache, batch_size=4)
        assert "has changed since it was listed" in report.failed["cat/00.png"]
        assert report.outcomes[0].rows == 11
        with FeatureFile(report.outcomes[0].path) as file:
            row = images.ids.tolist().index("cat/00.png")
            assert images.sha256[row] not in {d.tobytes().hex() for d in file.digests}

    def test_are_embedded_by_the_next_run(self, pictures, cache, passes):
        images = open_images(pictures, cache=cache)
        noise(66).save(pictures / "cat" / "00.png")
        fill_cache(images, backbone=tiny_backbone(), cache=cache, batch_size=4)
        passes()
        assert len(embedded(pictures, cache)) == 12
        assert passes() == 1

    def test_a_file_that_vanished_is_no_reason_to_leave_it_out_silently(self, pictures, cache):
        images = open_images(pictures, cache=cache)
        (pictures / "cat" / "00.png").unlink()
        with pytest.raises(CacheRefused, match="1 of 12 images"):
            extract(images, backbone=tiny_backbone(), cache=cache, batch_size=4)
        assert len(embedded(pictures, cache)) == 11


def test_a_view_is_another_file_and_can_be_loaded(pictures, cache):
    plain = embedded(pictures, cache)
    flipped = extract(pictures, backbone=tiny_backbone(view="hflip"), cache=cache)
    assert not np.array_equal(plain.X, flipped.X)
    assert len(Cache(cache).entries("pictures")) == 2
    assert np.array_equal(embedded(pictures, cache).X, plain.X)


def test_the_file_says_what_made_it(pictures, cache):
    embedded(pictures, cache)
    (entry,) = Cache(cache).entries("pictures")
    with FeatureFile(entry.path) as file:
        facts = file.attributes
    assert {"created", "device", "engine", "torch", "torchvision", "seconds"} <= facts.keys()
    assert facts["seconds"] > 0


def test_progress_counts_every_image_to_its_end(pictures, cache):
    (pictures / "cat" / "bad.png").write_bytes(b"x")
    seen = []
    embedded(pictures, cache, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 13), (8, 13), (12, 13), (13, 13)]
    seen.clear()
    embedded(pictures, cache, progress=lambda *numbers: seen.append(numbers))
    assert not seen


def test_seconds_add_up(pictures, cache):
    report = fill_cache(open_images(pictures, cache=cache), backbone=tiny_backbone(), cache=cache)
    spent = report.seconds
    assert 0 < spent["wait"] + spent["compute"] + spent["write"] <= spent["total"]


@pytest.mark.parametrize(
    ("limit", "failures", "stops"),
    [(None, 3, False), (3, 3, False), (2, 3, True), ("20%", 3, False), ("19%", 3, True)],
)
def test_max_failures(pictures, cache, limit, failures, stops):
    for i in range(failures):
        (pictures / "cat" / f"bad{i}.png").write_bytes(bytes([i]))
    if stops:
        with pytest.raises(DataError, match="--max-failures"):
            embedded(pictures, cache, max_failures=limit)
    else:
        assert len(embedded(pictures, cache, max_failures=limit)) == 12


def test_digits_are_embedded(cache):
    images = open_images("digits", cache=cache)
    few = np.arange(0, 1797, 60)
    some = replace(
        images,
        **{n: getattr(images, n)[few] for n in ("ids", "sha256", "labels", "groups", "split")},
        read=lambda row: images.read(int(few[row])),
    )
    features = extract(some, backbone="squeezenet1_1", cache=cache, **SMALL)
    assert features.X.shape == (30, 512)
    assert len(np.unique(features.X, axis=0)) == 30


def test_known_rows_need_no_pass_and_no_pixels(cache, passes):
    images = tiny_images(300)
    extract(images, backbone=tiny_backbone(), cache=cache, batch_size=64)
    passes()
    read = []
    spied = replace(images, read=lambda row: read.append(row) or images.read(row))
    extract(spied, backbone=tiny_backbone(), cache=cache)
    assert passes() == 0
    assert not read


def test_another_process_reads_the_same(pictures, cache):
    import multiprocessing

    whole = embedded(pictures, cache)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        found = pool.apply(_reload, (str(cache),))
    assert np.array_equal(found, whole.X)


def _reload(cache):
    store = Cache(cache)
    return store.features(store.images(), store.choose("pictures")).X


def test_views_are_embedded_beside_the_plain_images_in_one_pass(cache, monkeypatch):
    from featcache.extraction import batch

    decoded = [0]
    plain = batch.decode

    def counted(*args):
        decoded[0] += 1
        return plain(*args)

    monkeypatch.setattr(batch, "decode", counted)
    images = tiny_images(12)
    options = {"backbone": tiny_backbone(), "cache": cache, "batch_size": 4}
    report = fill_cache(images, view=["hflip", "rot90", "none"], **options)
    views = [done.key.preprocess["view"] for done in report.outcomes]
    assert views == ["none", "hflip", "rot90"]
    assert decoded[0] == 12
    assert report.selectors == [f"tiny@{report.outcomes[0].key.digest}"]
    features = extract(images, view="hflip", **options)
    assert features.X.shape == (12, 5), "the view is no block of its own"
    assert decoded[0] == 12, "all of it was there"


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Worker processes decode, and the device cuts."""
    loading = Loading(2, processes=True, on_device=True)
    monkeypatch.setattr(extract_module, "choose_loading", lambda *_: loading)


def test_what_the_device_cuts_gives_the_vectors_of_what_pillow_cuts(
    pictures, tmp_path, as_on_a_gpu, monkeypatch
):
    for i, size in enumerate([(90, 61), (333, 250), (40, 700)]):
        noise(100 + i, *size).save(pictures / "cat" / f"large{i}.png")
    options = {**SMALL, "backbone": ["resnet18", "squeezenet1_1:colour=hsv:filter=equalise"],
               "view": "rot90", "precision": "fp32"}  # fmt: skip
    found = extract(pictures, cache=tmp_path / "device", **options)
    monkeypatch.undo()
    plain = extract(pictures, cache=tmp_path / "pillow", **options)
    assert found.keys == plain.keys
    assert cosine(found.X, plain.X).min() > 0.9999
    facts = []
    for cache in ("device", "pillow"):
        with FeatureFile(Cache(tmp_path / cache).entries("pictures")[0].path) as file:
            facts.append((file.attributes["loader"], file.attributes["resized"]))
    assert facts == [("processes", "device"), ("threads", "Pillow")]


def images_of(images, rows):
    """These rows alone."""
    columns = ("ids", "sha256", "labels", "groups", "split", "size", "mtime_ns")
    alone = {name: getattr(images, name)[rows] for name in columns}
    return replace(images, **alone, read=images.read.part(rows))


@pytest.mark.parametrize("lost", [1, 5, 9])
def test_rows_do_not_depend_on_the_batch_they_come_in(pictures, tmp_path, as_on_a_gpu, lost):
    """The rest of an interrupted run comes in other batches, and in other arrays."""
    for i in range(4):
        noise(200 + i, 50 + 9 * i, 71 - 8 * i).save(pictures / "dog" / f"odd{i}.png")
    whole = extract(pictures, backbone="resnet18", cache=tmp_path / "whole", **SMALL)
    images = open_images(pictures, cache=None)
    some = images_of(images, np.random.default_rng(lost).permutation(16)[lost:])
    report = fill_cache(some, backbone="resnet18", cache=tmp_path / "cut", **SMALL)
    assert report.outcomes[0].computed == 16 - lost
    again = extract(pictures, backbone="resnet18", cache=tmp_path / "cut", **SMALL)
    assert again.X.tobytes() == whole.X.tobytes()


def test_two_backbones_share_images_that_only_one_of_them_needs(pictures, tmp_path, as_on_a_gpu):
    images = open_images(pictures, cache=None)
    some = images_of(images, np.arange(5))
    fill_cache(some, backbone="resnet18", cache=tmp_path / "cut", **SMALL)
    both = {"backbone": ["resnet18", "squeezenet1_1"], **SMALL}
    report = fill_cache(images, cache=tmp_path / "cut", **both)
    assert [outcome.computed for outcome in report.outcomes] == [7, 12]
    again = extract(pictures, cache=tmp_path / "cut", **both)
    whole = extract(pictures, cache=tmp_path / "whole", **both)
    assert again.X.tobytes() == whole.X.tobytes()
