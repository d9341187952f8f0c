import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import CacheRefused
from featcache.extraction.preprocess import Preprocess
from featcache.hashing import canonical_json
from featcache.store.key import _PREPROCESS as TYPED
from featcache.store.key import FORMAT, Key, read_key

KEY = Key("resnet18", "torchvision", "IMAGENET1K_V1", "ab" * 32, "penultimate",
          Preprocess().plain())  # fmt: skip

CHANGES = {
    "backbone": "resnet34",
    "library": "timm",
    "weights": "IMAGENET1K_V2",
    "weights_sha256": "random:0",
    "layer": "layer3:mean",
    "preprocess": Preprocess(crop=200).plain(),
    "precision": "bf16",
    "dtype": "float16",
    "format": 2,
    "calibration": "cd" * 32,
    "config": "ef" * 32,
}
PREPROCESS = {
    "resize": 300,
    "crop": 200,
    "interpolation": "bicubic",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "antialias": False,
    "colour": "L",
    "alpha": "black",
    "view": "hflip",
    "decode": 99,
    "filters": ["log-1.5"],
}
LATER = {"filters"}  # fields that older keys lack: left out where they have their default


def test_no_field_is_forgotten_here():
    assert set(CHANGES) == {field.name for field in fields(Key)}
    assert set(PREPROCESS) == {field.name for field in fields(Preprocess)}
    assert set(PREPROCESS) - LATER == set(KEY.preprocess)


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_the_digest(name):
    assert replace(KEY, **{name: CHANGES[name]}).digest != KEY.digest


@pytest.mark.parametrize("name", PREPROCESS)
def test_every_field_of_the_preprocessing_changes_the_digest_and_is_named(name):
    other = replace(KEY, preprocess={**KEY.preprocess, name: PREPROCESS[name]})
    assert other.digest != KEY.digest
    assert KEY.differences(other) == [
        f"preprocess.{name} {KEY.preprocess.get(name, 'absent')} → {PREPROCESS[name]}"
    ]


@pytest.mark.parametrize("field", [f.name for f in fields(Preprocess)])
def test_preprocess_itself_puts_every_field_into_the_key(field):
    assert field in Preprocess(filters=("log-1.5",)).plain()


def test_keys_of_earlier_versions_stay_as_they_were():
    """Another digest would make every cache there is a miss."""
    assert canonical_json(Preprocess().plain()) == (
        '{"alpha":"white","antialias":true,"colour":"RGB","crop":224,"decode":2,'
        '"interpolation":"bilinear","mean":[0.485,0.456,0.406],"resize":256,'
        '"std":[0.229,0.224,0.225],"view":"none"}'
    )
    assert KEY.digest == "9804507e1c98bb7497313efee125b04c1d020d3f46a4a07cff2f9a7fae249c09"


def test_differences_read_as_in_the_manual():
    theirs = replace(KEY, preprocess={**KEY.preprocess, "resize": 224})
    assert KEY.differences(theirs) == ["preprocess.resize 256 → 224"]
    assert KEY.differences(KEY) == []
    older = {name: value for name, value in KEY.preprocess.items() if name != "view"}
    assert replace(KEY, preprocess=older).differences(KEY) == ["preprocess.view absent → none"]


def test_digest_does_not_depend_on_the_order_of_settings():
    backwards = dict(reversed(KEY.preprocess.items()))
    assert replace(KEY, preprocess=backwards).digest == KEY.digest


# Of a preprocessing any other entry may have any value; those that commands read have a type.
OTHERS = st.text(max_size=5).filter(lambda name: name not in TYPED)


@given(
    st.builds(
        Key, *[st.text(max_size=8)] * 5,
        st.dictionaries(OTHERS, st.integers() | st.text(max_size=5)
                        | st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3)),
    )
)  # fmt: skip
def test_key_reads_back_and_its_stem_is_a_file_name(key):
    back = read_key(key.json(), "here")
    assert back == key
    assert back.digest == key.digest
    assert not set(key.stem) & set('/\\\0\n:*?"<>|[]')
    assert not key.stem.startswith(".")
    assert key.stem.endswith(f".{key.digest[:8]}")


def edited(**changes):
    return json.dumps({**json.loads(KEY.json()), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (edited(format=FORMAT + 1), "a newer featcache"),
        (edited(format="2.0"), "a newer featcache"),
        (edited(format=FORMAT - 1), "an older featcache"),
        ("", "no readable key"),
        ("{", "no readable key"),
        ("[]", "no readable key"),
        ("null", "no readable key"),
        (json.dumps({"format": FORMAT, "backbone": "x"}), "no readable key"),
        (edited(preprocess=["resize"]), "no readable key"),
        ("[" * 100_000, "no readable key"),
    ],
)
def test_what_is_no_key_of_this_version(text, message):
    with pytest.raises(CacheRefused, match=f"^here .*{message}") as caught:
        read_key(text, "here")
    assert caught.value.exit_code == 4
    assert caught.value.remedy
