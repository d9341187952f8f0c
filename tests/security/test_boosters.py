"""XGBoost's files are checked before XGBoost, which follows their numbers unseen, gets them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featcache.errors import DataError, FeatcacheError
from featcache.fitting.heads.booster_file import check_booster
from featcache.fitting.persist import load_pipeline, save_pipeline
from featcache.fitting.pipeline import make_classifier

xgboost = pytest.importorskip("xgboost")

WIDTH = 6
ONE = b"\0\0\0\0\0\0\0\1"  # the length of a text

# In a child, of which a crash can be seen: bytes are changed at random, and what is loaded is used.
_FLIPS = """
import random, sys
from pathlib import Path
import numpy as np
from featcache.fitting.heads.xgboost import read_booster

path, mutant = Path(sys.argv[1]), Path(sys.argv[2])
good = path.read_bytes()
X = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
draw = random.Random(0)
for _ in range(int(sys.argv[3])):
    changed = bytearray(good)
    for _ in range(draw.randint(1, 3)):
        changed[draw.randrange(len(good))] = draw.randrange(256)
    mutant.write_bytes(changed)
    try:
        booster = read_booster(mutant, 6)
    except Exception:  # load_pipeline makes each a DataError
        continue
    booster.predict_proba(X)
"""


def _data(classes: int) -> tuple[np.ndarray, np.ndarray]:
    X = np.random.default_rng(0).normal(size=(90, WIDTH)).astype(np.float32)
    return X, np.arange(90) % classes


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Path, list[dict[str, object]], object]:
    """A pipeline's folder, its parts, and the pipeline."""
    X, y = _data(3)
    made = make_classifier(head="xgboost", settings={"xgboost.n_estimators": 4})
    return tmp_path, save_pipeline(tmp_path, made.fit(X, y)), made


def test_a_sound_one_says_the_same(kept) -> None:
    folder, parts, made = kept
    X, _ = _data(3)
    np.testing.assert_array_equal(
        load_pipeline(folder, parts).predict_proba(X), made.predict_proba(X)
    )


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    "settings",
    [{}, {"gamma": 3.0, "tree_method": "exact"}, {"grow_policy": "lossguide"},
     {"early_stopping_rounds": 2}],
)  # fmt: skip
def test_whatever_xgboost_grows_passes(classes: int, settings: dict[str, object]) -> None:
    X, y = _data(classes)
    fitted = xgboost.XGBClassifier(n_estimators=5, n_jobs=1, **settings)
    fitted.fit(X, y, eval_set=[(X, y)], verbose=False)
    check_booster(bytes(fitted.get_booster().save_raw("ubj")), WIDTH)


def _array(name: str, at: int, to: int) -> Callable[[bytes], bytes]:
    """Change one number of the first tree's array."""

    def change(data: bytes) -> bytes:
        start = data.index(b"[$l#L", data.index(name.encode())) + 13 + 4 * at
        return data[:start] + to.to_bytes(4, "big", signed=True) + data[start + 4 :]

    return change


def _swap(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(old, new)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_array("left_children", 0, 10**6), "tree 0: a child"),
        (_array("left_children", 0, -7), "tree 0: a child"),
        (_array("left_children", 1, 0), "tree 0: a child"),
        (_array("left_children", 1, 1), "the parent of a child"),
        (_array("right_children", 0, -1), "a node of one child"),
        (_array("split_indices", 0, 6), "the column of a split"),
        (_array("split_indices", 0, -1), "the column of a split"),
        (_array("parents", 2, 2**30), "a parent"),
        (_array("parents", 0, 1), "the parent of its root"),
        (_swap(b"num_featureSL" + ONE + b"6", b"num_featureSL" + ONE + b"9"), "9 columns"),
        (_swap(b"num_classSL" + ONE + b"3", b"num_classSL" + ONE + b"4"), "scores|classes"),
        (_swap(b"gbtree}", b"gbdart}"), "its booster"),
        (_swap(b"tree_info[#L\0\0\0\0\0\0\0\x0ci\0i\1", b"tree_info[#L\0\0\0\0\0\0\0\x0ci\0i\x63"),
         "its trees' classes"),
        (lambda data: data[:-9], "cut short"),
        (lambda data: data + b"}", "after its end"),
        (lambda data: b'{"learner": {}}', "a length"),
        (lambda data: b"[#L\0\0\0\0\0\0\0\1" * 10**4, "its depth"),
        (lambda data: b"[$d#L\x7f\xff\xff\xff\xff\xff\xff\xff", "cut short"),
        (lambda data: b"", "cut short|index"),
    ],
)  # fmt: skip
def test_what_leads_out_of_itself_is_refused(kept, change, why: str) -> None:
    folder, parts, _ = kept
    path = folder / str(parts[0]["file"])
    changed = change(path.read_bytes())
    assert changed != path.read_bytes()
    path.write_bytes(changed)
    with pytest.raises(DataError, match=why) as caught:
        load_pipeline(folder, parts)
    assert caught.value.remedy


def test_another_kind_of_booster_is_not_kept(tmp_path: Path) -> None:
    X, y = _data(2)
    fitted = xgboost.XGBClassifier(n_estimators=2, booster="dart", n_jobs=1).fit(X, y)
    made = make_classifier(head="xgboost", settings={"xgboost.n_estimators": 2}).fit(X, y)
    made[-1].booster_ = fitted
    with pytest.raises(FeatcacheError, match="can't be kept: its booster"):
        save_pipeline(tmp_path, made)


@pytest.mark.parametrize("count", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_changed_byte_crashes(kept, count: int) -> None:
    folder, parts, _ = kept
    done = subprocess.run(
        [sys.executable, "-c", _FLIPS, folder / str(parts[0]["file"]), folder / "mutant.ubj",
         str(count)],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
