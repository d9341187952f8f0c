"""Vectors that other tools wrote: read, aligned by id, checked, and then like any other block."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from tiny import tiny_backbone, tiny_images

import featcache as fc
from featcache.cli.main import run
from featcache.errors import CacheMissing, DataError, FeatcacheError, RecipeError, UnknownName
from featcache.extraction.registry import open_backbone
from featcache.images.manifest import Images, from_arrays, make_images
from featcache.store.cache import Cache
from featcache.store.importing import align, import_features
from featcache.store.spec import extract_commands
from featcache.store.vector_files import read_vectors

WIDTH = 6


@pytest.fixture
def images() -> Images:
    return tiny_images()


@pytest.fixture
def X(images: Images) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((len(images), WIDTH)).astype(np.float32)


@pytest.fixture
def npz(tmp_path: Path, images: Images, X: np.ndarray) -> Path:
    path = tmp_path / "vectors.npz"
    np.savez(path, features=X, ids=images.ids)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def manifest(*ids: str, root: str = "") -> Images:
    sha256 = [f"{row:064x}" for row in range(len(ids))]
    return make_images("some", list(ids), sha256, labels=["a"] * len(ids), root=root)


class TestBlock:
    def test_is_what_numpy_wrote_in_the_order_of_the_images(
        self, images: Images, X: np.ndarray, cache: Path, tmp_path: Path
    ) -> None:
        order = np.random.default_rng(1).permutation(len(images))
        np.savez(tmp_path / "mixed.npz", features=X[order], ids=images.ids[order])
        found = import_features(tmp_path / "mixed.npz", images, name="own", cache=cache)
        assert found.names == ("import:own",)
        assert (found.X == X).all()
        assert found.y.tolist() == images.labels.tolist()

    def test_joins_and_fits_beside_an_extracted_one(
        self, images: Images, npz: Path, cache: Path
    ) -> None:
        fc.extract(images, backbone=tiny_backbone(), cache=cache)
        import_features(npz, images, name="own", origin="net 1", cache=cache)
        store = Cache(cache)
        both = store.features(images, store.choose(images.name))
        assert both.names == ("import:own", "tiny")
        assert both.blocks == (WIDTH, 5)
        assert fc.evaluate(fc.make_classifier("concat", "logreg"), both, folds=2).folds

    def test_key_is_of_the_content_and_the_origin(
        self, images: Images, npz: Path, cache: Path, X: np.ndarray, tmp_path: Path
    ) -> None:
        def digest(path: Path, origin: str = "net 1") -> str:
            return import_features(path, images, name="own", origin=origin, cache=cache).keys[0]

        moved = npz.rename(tmp_path / "renamed.npz")
        first = digest(moved)
        assert digest(moved) == first
        assert digest(moved, "net 2") != first
        np.savez(moved, features=X + 1, ids=images.ids)
        assert digest(moved) != first
        assert len(Cache(cache).entries(images.name)) == 3

    def test_several_files_together_are_one_block(
        self, images: Images, X: np.ndarray, cache: Path, tmp_path: Path
    ) -> None:
        half = len(images) // 2
        for name, part in (("a", np.s_[:half]), ("b", np.s_[half:])):
            np.savez(tmp_path / f"{name}.npz", X=X[part], paths=images.ids[part])
        files = [tmp_path / "b.npz", tmp_path / "a.npz"]
        assert (import_features(files, images, name="own", cache=cache).X == X).all()

    @pytest.mark.parametrize("name", ["", "a b", "a=b", "a,b", "a@b", "../a", "a:b", "a" * 65])
    def test_odd_names_are_refused(self, images: Images, npz: Path, cache: Path, name: str) -> None:
        with pytest.raises(RecipeError, match="block's name"):
            import_features(npz, images, name=name, cache=cache)

    @pytest.mark.parametrize("origin", ["", "two\nlines", "é" * 61, "half \ud800"])
    def test_odd_origins_are_refused(
        self, images: Images, npz: Path, cache: Path, origin: str
    ) -> None:
        with pytest.raises(RecipeError, match="origin"):
            import_features(npz, images, name="own", origin=origin, cache=cache)

    def test_no_extraction_is_offered_for_it(self, images: Images, npz: Path, cache: Path) -> None:
        import_features(npz, images, name="own", origin="net 1", cache=cache)
        store = Cache(cache)
        (entry,) = store.entries(images.name)
        said = extract_commands([entry], "photos")
        assert "featcache import VECTORS --data photos" in said
        assert "--as own --origin 'net 1'" in said
        assert entry.key.weights_sha256[:12] in said
        assert "featcache extract" not in said
        with pytest.raises(CacheMissing, match=r"featcache import VECTORS .*--as other"):
            store.choose(images.name, ["import:other"])
        with pytest.raises(UnknownName, match="can't be extracted"):
            open_backbone("import:own")

    def test_new_images_need_new_vectors(self, images: Images, npz: Path, cache: Path) -> None:
        import_features(npz, images, name="own", cache=cache)
        more = [images.read(row) for row in range(len(images))] + [np.full((8, 8, 3), 9, np.uint8)]
        grown = from_arrays(images.name, more, ids=[*images.ids, "new"], labels=["a"] * len(more))
        store = Cache(cache)
        with pytest.raises(FeatcacheError, match="featcache import VECTORS"):
            store.features(grown, store.choose(grown))


class TestFiles:
    def test_npy_and_its_table(self, tmp_path: Path, images: Images, X: np.ndarray) -> None:
        np.save(tmp_path / "v.npy", X.astype(np.float64))
        rows = "\n".join(f"{row},{id_}" for row, id_ in enumerate(images.ids))
        (tmp_path / "ids.csv").write_text(f"row,path\n{rows}\n")
        found = read_vectors([tmp_path / "v.npy", tmp_path / "ids.csv"])
        assert found.ids == images.ids.tolist()
        assert (found.X == X).all()
        assert found.X.dtype == np.float32
        with pytest.raises(DataError, match=r"without a \.csv"):
            read_vectors([tmp_path / "v.npy"])

    @pytest.mark.parametrize("fixed", [False, True])
    def test_parquet(self, tmp_path: Path, images: Images, X: np.ndarray, fixed: bool) -> None:
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        kind = pa.list_(pa.float32(), WIDTH) if fixed else pa.list_(pa.float64())
        table = pa.table({"image": images.ids.tolist(), "v": pa.array(X.tolist(), kind)})
        pq.write_table(table, tmp_path / "v.parquet")
        found = read_vectors([tmp_path / "v.parquet"])
        assert found.ids == images.ids.tolist()
        assert (found.X == X).all()
        ragged = pa.table({"id": ["a", "b"], "features": [[1.0, 2.0], [1.0]]})
        pq.write_table(ragged, tmp_path / "ragged.parquet")
        with pytest.raises(DataError, match="several lengths: 2, 1"):
            read_vectors([tmp_path / "ragged.parquet"])

    @pytest.mark.parametrize("name", ["features", "feats"])
    @pytest.mark.parametrize("batched", [False, True])
    def test_patches_are_averaged(self, tmp_path: Path, name: str, batched: bool) -> None:
        """As TRIDENT, CLAM and STAMP write them: a file for each slide."""
        rng = np.random.default_rng(0)
        expected = []
        for slide in ("s.1", "s.2"):
            patches = rng.standard_normal((9_000, 3)).astype(np.float32)
            expected.append(patches.mean(axis=0, dtype=np.float64))
            with h5py.File(tmp_path / f"{slide}.h5", "w") as file:
                file[name] = patches[None] if batched else patches
                file["coords"] = np.zeros((9_000, 2), np.int64)
        found = read_vectors([tmp_path])
        assert found.ids == ["s.1", "s.2"]
        assert found.pooled
        assert np.abs(found.X - expected).max() < 1e-6
        images = manifest("slides/s.1.svs", "slides/s.2.svs")
        assert align(images, found.ids, np.ones(2, bool)).tolist() == [0, 1]

    def test_h5_with_ids_has_a_vector_for_each(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "all.h5", "w") as file:
            file["embeddings"] = np.eye(3)
            file["filenames"] = ["a.png", "b.png", "c.png"]
        found = read_vectors([tmp_path / "all.h5"])
        assert found.ids == ["a.png", "b.png", "c.png"]
        assert not found.pooled

    def test_nothing_is_unpickled(self, tmp_path: Path) -> None:
        class Bomb:
            def __reduce__(self):
                return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

        odd = np.array([Bomb(), Bomb()], dtype=object)
        np.savez(tmp_path / "v.npz", features=np.eye(2), ids=odd)
        np.save(tmp_path / "v.npy", odd)
        (tmp_path / "v.csv").write_text("id\na\nb\n")
        with pytest.raises(DataError, match="Python objects"):
            read_vectors([tmp_path / "v.npz"])
        with pytest.raises(DataError, match="Python objects"):
            read_vectors([tmp_path / "v.npy", tmp_path / "v.csv"])
        np.savez(tmp_path / "more.npz", features=np.eye(2), ids=["a", "b"], about=odd)
        assert read_vectors([tmp_path / "more.npz"]).ids == ["a", "b"]
        assert not (tmp_path / "ran").exists()

    def test_links_in_an_h5_file_are_not_followed(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "other.h5", "w") as file:
            file["features"] = np.eye(2)
        (tmp_path / "in").mkdir()
        with h5py.File(tmp_path / "in" / "a.h5", "w") as file:
            file["features"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "features")
            layout = h5py.VirtualLayout((2, 2), float)
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "features", (2, 2))
            file.create_virtual_dataset("feats", layout)
        with pytest.raises(DataError, match="which is its dataset of vectors"):
            read_vectors([tmp_path / "in"])

    def test_a_feature_file_of_our_own_is_refused(self, images: Images, cache: Path) -> None:
        fc.extract(images, backbone=tiny_backbone(), cache=cache)
        (path,) = cache.glob("*/*.h5")
        with pytest.raises(DataError, match="featcache's own"):
            read_vectors([path])

    @pytest.mark.parametrize(
        ("arrays", "said"),
        [
            ({"features": np.eye(3), "ids": ["a", "b"]}, "3 vectors and 2 ids"),
            ({"features": np.eye(2), "ids": ["a", "a"]}, "a vector of a twice"),
            ({"features": np.array([[1, np.nan], [1, 2]]), "ids": ["a", "b"]}, "1 of 2 .*: a"),
            ({"features": np.array([[1e39, 1], [1, 2]]), "ids": ["a", "b"]}, "infinite"),
            ({"features": np.eye(2, dtype=complex), "ids": ["a", "b"]}, "complex128"),
            ({"features": np.array([["x"], ["y"]]), "ids": ["a", "b"]}, "<U1"),
            ({"features": np.zeros(2), "ids": ["a", "b"]}, "shape"),
            ({"features": np.zeros((0, 4)), "ids": np.array([], str)}, "no vectors"),
            ({"one": np.eye(2), "two": np.eye(2), "ids": ["a", "b"]}, "which is its array of v"),
            ({"features": np.eye(2)}, "which is its array of ids"),
            ({"features": np.eye(2), "ids": np.eye(2)}, "no list of ids"),
        ],
    )
    def test_what_can_t_be_used_is_refused(self, tmp_path: Path, arrays: dict, said: str) -> None:
        np.savez(tmp_path / "v.npz", **arrays)
        with pytest.raises(DataError, match=said):
            read_vectors([tmp_path / "v.npz"])

    def test_files_must_fit_each_other(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", features=np.eye(2), ids=["a", "b"])
        np.savez(tmp_path / "b.npz", features=np.eye(2), ids=["c", "b"])
        np.savez(tmp_path / "c.npz", features=np.eye(3), ids=["d", "e", "f"])
        with h5py.File(tmp_path / "g.h5", "w") as file:
            file["features"] = np.eye(2)
        for other, said in (("b.npz", "of b as"), ("c.npz", "a vector"), ("g.h5", "two kinds")):
            with pytest.raises(DataError, match=said):
                read_vectors([tmp_path / "a.npz", tmp_path / other])

    def test_what_is_no_such_file_is_refused(self, tmp_path: Path) -> None:
        for name in ("v.npz", "v.h5", "v.parquet", "v.npy", "v.txt"):
            (tmp_path / name).write_bytes(b"no such file")
        (tmp_path / "v.csv").write_text("id\na\n")
        for name in ("v.npz", "v.h5", "v.parquet", "v.txt"):
            with pytest.raises(DataError, match=f"{name}"):
                read_vectors([tmp_path / name])
        with pytest.raises(DataError, match=r"v\.npy can't be read"):
            read_vectors([tmp_path / "v.npy", tmp_path / "v.csv"])
        with pytest.raises(DataError, match="no file"):
            read_vectors([tmp_path / "absent.npz"])
        with h5py.File(tmp_path / "w.h5", "w") as file:
            file["features"], file["coords"] = np.eye(3), np.zeros((2, 2))
        with pytest.raises(DataError, match="3 patches in 'features', and 2 in 'coords'"):
            read_vectors([tmp_path / "w.h5"])


class TestAlign:
    def where(self, images: Images, *ids: str) -> list[int]:
        return align(images, list(ids), np.ones(len(images), bool)).tolist()

    def test_by_path_content_or_name(self) -> None:
        images = manifest("x/a.png", "y/b.png", root="/data")
        assert self.where(images, "y/b.png", "x/a.png") == [1, 0]
        assert self.where(images, ".\\y\\b.png", "/data/x/a.png") == [1, 0]
        assert self.where(images, *images.sha256[::-1].tolist()) == [1, 0]
        assert self.where(images, "/elsewhere/b.tif", "a", "more") == [1, 0]

    def test_what_can_t_be_told_is_refused(self) -> None:
        images = manifest("x/a.png", "y/a.png", "y/b.png")
        with pytest.raises(DataError, match="2 images of some are called 'a'"):
            self.where(images, "a", "b")
        with pytest.raises(DataError, match="2 vectors of some are called 'b'"):
            self.where(manifest("y/b.png"), "1/b", "2/b")
        with pytest.raises(DataError, match="not one of 1 vector"):
            self.where(images, "z")
        with pytest.raises(DataError, match=r"1 of 2 images of some have no vector: y/a"):
            self.where(manifest("x/a.png", "y/a.png"), "x/a.png")
        with pytest.raises(DataError, match=r"1 of 3 images of some have no vector: y/b\.png"):
            self.where(images, "x/a.png", "y/a.png")
        with pytest.raises(DataError, match=r"two vectors of x/a\.png"):
            self.where(images, "x/a.png", "./x/a.png")

    def test_images_that_failed_need_none(self) -> None:
        found = align(manifest("a.png", "b.png"), ["b.png"], np.array([False, True]))
        assert found.tolist() == [-1, 0]

    def test_equal_images_with_different_vectors_are_a_mix_up(
        self, tmp_path: Path, cache: Path
    ) -> None:
        pixels = [np.full((8, 8, 3), value, np.uint8) for value in (1, 2, 1)]
        images = from_arrays("twice", pixels, ids=["a", "b", "c"], labels=["x", "y", "x"])
        np.savez(tmp_path / "v.npz", features=np.eye(3), ids=images.ids)
        with pytest.raises(DataError, match="a and c are the same image"):
            import_features(tmp_path / "v.npz", images, name="own", cache=cache)
        X = np.eye(3)
        X[2] = X[0] + 1e-4
        np.savez(tmp_path / "v.npz", features=X, ids=images.ids)
        found = import_features(tmp_path / "v.npz", images, name="own", cache=cache)
        assert (np.eye(3)[[0, 1, 0]] == found.X).all()


class TestCommand:
    @pytest.fixture
    def here(self, tmp_path: Path, images: Images, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        fc.extract(images, backbone=tiny_backbone())
        return tmp_path

    def test_then_the_cache_knows_it(
        self, here: Path, npz: Path, images: Images, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["import", "vectors.npz", "--data", images.name, "--as", "own", "--origin", "net 1"]
        assert run(words) == 0
        assert f"{len(images)} vectors, imported" in capsys.readouterr().out
        assert run(words) == 0
        assert "nothing to import" in capsys.readouterr().out
        assert run(["cache", "ls"]) == 0
        line = next(x for x in capsys.readouterr().out.splitlines() if "import:own@" in x)
        assert "net 1" in line
        for more in ([], ["--backbone", "import:own"]):
            assert run(["cache", "status", "--data", images.name, *more]) == 0
            assert f"import:own: HIT, {len(images)} images" in capsys.readouterr().out
        assert run(["cache", "verify"]) == 0
        assert run(["compare", "--fusion", "concat", "--head", "logreg", "--folds", "2"]) == 0
        assert "import:own + tiny" in capsys.readouterr().out

    def test_a_damaged_row_is_imported_again(
        self, here: Path, npz: Path, images: Images, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["import", "vectors.npz", "--data", images.name, "--as", "own"]
        run(words)
        (path,) = here.glob("cache/*/import-own.*.h5")
        good = path.read_bytes()
        with h5py.File(path) as file:
            at = file["features"].id.get_offset()
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        capsys.readouterr()
        assert run(["fit", "--backbone", "import:own", "--head", "logreg", "--folds", "2"]) == 4
        assert "featcache import VECTORS" in capsys.readouterr().err
        assert run(["cache", "verify", "--repair"]) == 4
        assert "1 row of" in (out := capsys.readouterr().out)
        assert "must be imported again" in out
        assert run(words) == 0
        assert run(["cache", "verify"]) == 0

    def test_broken_vectors_are_told_at_once(
        self, here: Path, images: Images, X: np.ndarray, capsys: pytest.CaptureFixture[str]
    ) -> None:
        X[1] = 0
        np.savez("zero.npz", features=X, ids=images.ids)
        assert run(["import", "zero.npz", "--data", images.name, "--as", "own"]) == 0
        assert "all zero" in capsys.readouterr().err

    def test_new_images_can_t_be_labelled(
        self, here: Path, npz: Path, images: Images, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run(["import", "vectors.npz", "--data", images.name, "--as", "own", "--origin", "net 1"])
        assert run(["fit", "--backbone", "import:own", "--head", "logreg", "--folds", "2"]) == 0
        (here / "new.png").write_bytes(b"x")
        (model,) = here.glob("reports/*/*/model")
        capsys.readouterr()
        assert run(["predict", str(model), "new.png"]) == 1
        err = capsys.readouterr().err
        assert "import:own, whose vectors another tool has made (origin: net 1)" in err
        assert "Traceback" not in err

    def test_bad_input_gets_one_clear_error(
        self, here: Path, images: Images, capsys: pytest.CaptureFixture[str]
    ) -> None:
        np.savez("v.npz", features=np.eye(2), ids=["a", "b"])
        assert run(["import", "v.npz", "--data", images.name, "--as", "own"]) == 1
        assert "not one of 2 vectors" in capsys.readouterr().err
        assert run(["import", "v.npz", "--data", images.name]) == 2
        assert run(["import", "none.npz", "--data", images.name, "--as", "own"]) == 2
        assert not list(here.glob("cache/*/import-own*"))
