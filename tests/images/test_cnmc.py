"""C-NMC 2019 from files under its official names."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_backbone

from featcache.errors import DataError
from featcache.extraction.extract import extract
from featcache.fitting.splits import make_folds
from featcache.images.cnmc import LABELS_CSV
from featcache.images.sources import open_images

TRAINING = [
    "fold_0/all/UID_1_1_1_all.bmp",
    "fold_0/all/UID_1_2_1_all.bmp",
    "fold_0/hem/UID_H1_1_1_hem.bmp",
    "fold_1/all/UID_2_1_1_all.bmp",
    "fold_1/hem/UID_H10_1_12_hem.bmp",
    "fold_2/all/UID_33_1_1_all.bmp",
    "fold_2/hem/UID_H10_14_1_hem.bmp",
]
PRELIMINARY = [("UID_57_29_1_all.bmp", "1.bmp", "1"), ("UID_H49_35_1_hem.bmp", "2.bmp", "0")]


def write(root, names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(pixels).save(path, format="BMP")
    return root


def training(root, extra=(), without=()):
    names = [f"C-NMC_training_data/{name}" for name in TRAINING if not name.startswith(without)]
    return write(root, [*names, *extra])


def labels(path, rows, header="Patient_ID,new_names,labels"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")


def opened(root, **options):
    return open_images(f"cnmc:{root}", cache=None, **options)


@pytest.mark.parametrize("inside", [False, True])
def test_the_training_folds(tmp_path, inside):
    """Whether the package or the training folder is named."""
    root = training(tmp_path)
    images = opened(root / "C-NMC_training_data" if inside else root)
    assert images.name == "cnmc"
    found = {
        id_.rpartition("/")[2]: (label, group)
        for id_, label, group in zip(images.ids, images.labels, images.groups, strict=True)
    }
    assert found == {
        "UID_1_1_1_all.bmp": ("all", "1"),
        "UID_1_2_1_all.bmp": ("all", "1"),
        "UID_H1_1_1_hem.bmp": ("hem", "H1"),
        "UID_2_1_1_all.bmp": ("all", "2"),
        "UID_H10_1_12_hem.bmp": ("hem", "H10"),
        "UID_33_1_1_all.bmp": ("all", "33"),
        "UID_H10_14_1_hem.bmp": ("hem", "H10"),
    }
    assert set(images.split.tolist()) == {""}
    assert "5 groups" in images.describe()
    assert images.read(0)[:2] == b"BM"


def test_a_subject_and_a_healthy_one_of_the_same_number_are_two(tmp_path):
    images = opened(training(tmp_path))
    ones = {g for g, id_ in zip(images.groups, images.ids, strict=True) if "1_1_1" in id_}
    assert {"1", "H1"} <= ones


def test_one_fold_can_be_named(tmp_path):
    images = opened(training(tmp_path) / "C-NMC_training_data" / "fold_0")
    assert sorted(images.ids.tolist()) == [name.removeprefix("fold_0/") for name in TRAINING[:3]]


def test_the_folder_that_one_stands_in(tmp_path, monkeypatch):
    monkeypatch.chdir(training(tmp_path) / "C-NMC_training_data" / "fold_0")
    assert len(opened(".")) == 3


@pytest.mark.parametrize(
    ("table", "pictures"),
    [
        (f"C-NMC_test_prelim_phase_data/{LABELS_CSV}", "C-NMC_test_prelim_phase_data"),
        (
            f"C-NMC_test_prelim_phase_data/{LABELS_CSV}",
            "C-NMC_test_prelim_phase_data/C-NMC_test_prelim_phase_data",
        ),
        (LABELS_CSV, "C-NMC_test_prelim_phase_data"),
        (f"validation_data/{LABELS_CSV}", "validation_data/C-NMC_test_prelim_phase_data"),
    ],
)
def test_the_preliminary_test_is_the_test_split(tmp_path, table, pictures):
    """In the layouts of the archive and of its copy on Kaggle."""
    root = training(tmp_path, [f"{pictures}/1.bmp", f"{pictures}/2.bmp"])
    write(root, ["C-NMC_test_final_phase_data/1.bmp", "C-NMC_test_final_phase_data/3.bmp"])
    labels(root / table, PRELIMINARY)
    images = opened(root)
    assert "7 train, 2 test" in images.describe()
    test = images.split == "test"
    assert images.ids[test].tolist() == [f"{pictures}/1.bmp", f"{pictures}/2.bmp"]
    assert images.labels[test].tolist() == ["all", "hem"]
    assert images.groups[test].tolist() == ["57", "H49"]
    assert len(opened(root / "C-NMC_training_data")) == 7


def test_a_test_without_labels_is_left_out_and_said(tmp_path, caplog):
    root = training(tmp_path, ["C-NMC_test_prelim_phase_data/1.bmp"])
    assert set(opened(root).split.tolist()) == {""}
    assert f"no {LABELS_CSV}" in caplog.text


def test_a_test_image_that_is_not_listed_is_left_out_and_said(tmp_path, caplog):
    folder = "C-NMC_test_prelim_phase_data"
    root = training(tmp_path, [f"{folder}/{i}.bmp" for i in (1, 2, 3)])
    labels(root / folder / LABELS_CSV, PRELIMINARY)
    assert (opened(root).split == "test").sum() == 2
    assert "3.bmp) of the preliminary test are left out" in caplog.text


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([("UID_57_29_1_all.bmp", "1.bmp", "0")], None, r"line 2: .*_all\.bmp' and label '0'"),
        ([("57", "1.bmp", "1")], None, "line 2: '57' and label '1'"),
        ([*PRELIMINARY, ("UID_58_1_1_all.bmp", "9.bmp", "1")], None, r"lists 1 image \(9\.bmp\)"),
        (PRELIMINARY, "id,name,label", "no column Patient_ID, new_names, labels"),
        ([("UID_57_29_1_all.bmp", "1.bmp")], None, "label ''"),
    ],
)  # fmt: skip
def test_lists_of_labels_that_make_no_sense(tmp_path, rows, header, message):
    folder = "C-NMC_test_prelim_phase_data"
    root = training(tmp_path, [f"{folder}/1.bmp", f"{folder}/2.bmp"])
    labels(root / folder / LABELS_CSV, rows, header or "Patient_ID,new_names,labels")
    with pytest.raises(DataError, match=message) as caught:
        opened(root)
    assert caught.value.remedy


def test_endings_and_classes_in_capitals(tmp_path):
    root = write(tmp_path, ["Fold_0/ALL/UID_7_1_1_ALL.BMP", "Fold_0/HEM/uid_h7_1_1_hem.BMP"])
    images = opened(root)
    assert images.labels.tolist() == ["all", "hem"]
    assert images.groups.tolist() == ["7", "H7"]


def test_missing_folds_are_said(tmp_path, caplog):
    images = opened(training(tmp_path, without=("fold_1", "fold_2/hem")))
    assert len(images) == 4
    assert "lacks fold_1/all, fold_1/hem, fold_2/hem" in caplog.text


def test_a_whole_set_is_not_warned_of(tmp_path, caplog):
    opened(training(tmp_path))
    assert not caplog.text


def test_files_that_are_no_images_and_hidden_ones_do_not_matter(tmp_path):
    root = training(tmp_path)
    for name in ("readme.txt", "fold_0/Thumbs.db", "fold_0/all/._UID_1_1_1_all.bmp"):
        (root / "C-NMC_training_data" / name).write_bytes(b"x")
    assert len(opened(root)) == len(TRAINING)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["fold_0/all/copy.bmp"], r"1 image \(.*copy\.bmp\) below .* have no name of C-NMC 2019"),
        (["fold_0/all/UID_5_1_1.bmp"], "have no name"),
        (["fold_0/all/UID_5_1_1_all_rot90.bmp"], "have no name"),
        (["fold_0/hem/UID_5_1_1_hem.bmp"], "have no name"),  # healthy ones have an H
        (["fold_0/all/UID_H5_1_1_all.bmp"], "have no name"),
        (["fold_0/hem/UID_5_1_1_all.bmp"], "another class's folder"),
        (["fold_0/all/UID_H5_1_1_hem.bmp"], "another class's folder"),
        (["fold_0/blast/UID_5_1_1_all.bmp"], "another class's folder"),
        (["fold_0/UID_5_1_1_all.bmp"], "stand in no class folder of a fold"),
        (["fold_0/all/new/UID_5_1_1_all.bmp"], "stand in no class folder of a fold"),
        (["fold_1/all/UID_1_1_1_all.bmp"], "are one cell by their name"),
    ],
)
def test_names_and_places_that_make_no_sense(tmp_path, names, message):
    root = training(tmp_path, [f"C-NMC_training_data/{name}" for name in names])
    with pytest.raises(DataError, match=message) as caught:
        opened(root)
    assert names[0] in caught.value.problem
    assert caught.value.remedy


def test_many_bad_names_are_shortened(tmp_path):
    root = training(tmp_path, [f"C-NMC_training_data/fold_0/all/{i}.bmp" for i in range(9)])
    with pytest.raises(DataError, match="9 images") as caught:
        opened(root)
    assert caught.value.problem.count(".bmp") == 3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no training folds"),
        (["all/UID_1_1_1_all.bmp", "hem/UID_H1_1_1_hem.bmp"], "no training folds"),
    ],
)
def test_folders_that_are_something_else(tmp_path, names, message):
    with pytest.raises(DataError, match=message) as caught:
        opened(write(tmp_path, names))
    assert "fold_0/all/UID_11_1_1_all.bmp" in caught.value.remedy


@pytest.mark.parametrize("path", ["", "no/such"])
def test_no_folder(path):
    with pytest.raises(DataError, match="no folder"):
        opened(path)


def test_options(tmp_path):
    root = training(tmp_path)
    assert opened(root, name="mine").name == "mine"
    assert opened(root, group="subject").groups.tolist() == opened(root).groups.tolist()
    with pytest.raises(DataError, match="no column 'patient'"):
        opened(root, group="patient")


def test_subjects_never_straddle_folds(tmp_path, cache):
    names = [
        f"fold_{s % 3}/{y}/UID_{'H' * (y == 'hem')}{s}_{i}_1_{y}.bmp"
        for s in range(6) for y in ("all", "hem") for i in range(3)
    ]  # fmt: skip
    images = opened(write(tmp_path / "data", names))
    features = extract(images, backbone=tiny_backbone(), cache=cache)
    assert len(set(features.groups.tolist())) == 12
    for fold in make_folds(features, folds=3):
        assert not set(features.groups[fold.train]) & set(features.groups[fold.test])
        assert set(features.y[fold.test]) == {"all", "hem"}
