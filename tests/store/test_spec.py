"""Specs: one text for a backbone and its options, read alike wherever it is written."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from tiny import tiny_backbone

from featcache.cli.extract import extract
from featcache.cli.main import cli
from featcache.errors import RecipeError, UnknownName
from featcache.extraction.preprocess import Preprocess
from featcache.extraction.registry import open_backbone
from featcache.store.key import Entry, Key
from featcache.store.spec import (
    OPTIONS,
    commands_for_absent,
    extract_commands,
    means,
    names_of,
    options_of,
    parse_filter,
    parse_spec,
    read_layer,
    split_key,
    written_layer,
)

KEY = Key("vgg16", "torchvision", "IMAGENET1K_V1", "ab" * 32, "penultimate",
          Preprocess().plain())  # fmt: skip

ALL = (
    "vgg16:size=64:layer=features.3:weights=random:7:colour=hsv:filter=equalise+log-2:scale=0-1"
    ":pool=cls+mean:layers=-4..-1"
)

PARENT = click.Context(cli, **cli.context_settings)  # a command keeps its first context's -h


def made(**changes: Any) -> Key:
    """The key under other preprocessing."""
    return replace(KEY, preprocess=replace(Preprocess(), **changes).plain())


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("resnet18", "resnet18", {}),
        (" resnet18:size=64 ", "resnet18", {"size": "64"}),
        ("timm:resnet50", "timm:resnet50", {}),
        ("timm:resnet50.a1_in1k:layer=layer3", "timm:resnet50.a1_in1k", {"layer": "layer3"}),
        ("vgg16:weights=random:7:size=96", "vgg16", {"weights": "random:7", "size": "96"}),
        ("vgg16:weights=C:/w/a=b.pth", "vgg16", {"weights": "C:/w/a=b.pth"}),
        ("vgg16:filter=equalise+log-1.5", "vgg16", {"filter": "equalise+log-1.5"}),
    ],
)
def test_a_spec_is_a_name_and_options(text: str, name: str, options: dict[str, str]) -> None:
    spec = parse_spec(text)
    assert (spec.name, spec.options) == (name, options)


def test_every_option_reaches_the_command_and_yaml_as_it_is_written() -> None:
    assert set(parse_spec(ALL).options) == set(OPTIONS)
    words = ["--backbone", f"{ALL},resnet18", "--backbone", "timm:resnet50:size=96"]
    read = extract.make_context("extract", list(words), PARENT).params["backbone"]
    assert read == [ALL, "resnet18", "timm:resnet50:size=96"]
    assert yaml.safe_load(f"backbone: [{ALL}, resnet18]") == {"backbone": [ALL, "resnet18"]}


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("resnet18:siz=64", UnknownName, "Did you mean size"),
        ("resnet18:color=hsv", UnknownName, "Did you mean colour"),
        ("resnet18:size=64:size=96", RecipeError, "size is said twice"),
        ("resnet18:layer=", RecipeError, "layer has no value"),
        ("resnet18:size=big", RecipeError, "no number of pixels"),
        ("resnet18:size=0", RecipeError, "no number of pixels"),
        ("resnet18:size=-3", RecipeError, "no number of pixels"),
        ("size=64", RecipeError, "names no backbone"),
        (":size=64", RecipeError, "names no backbone"),
        ("", RecipeError, "names no backbone"),
    ],
)
def test_what_is_no_spec_is_refused(text: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        parse_spec(text)


def test_a_comma_in_place_of_the_colon_is_understood_as_the_mistake_it_is() -> None:
    done = CliRunner().invoke(extract, ["--backbone", "vit_b_16,size=384"])
    assert isinstance(done.exception, RecipeError)
    assert "after a colon" in str(done.exception)


def test_one_filter_is_written_in_one_way() -> None:
    assert parse_filter("gaussian-1.50+log-2.0") == ("gaussian-1.5", "log-2")
    assert parse_filter("none") == ()


def test_a_key_says_the_options_that_it_was_made_with() -> None:
    assert options_of(KEY) == {
        "size": "224", "layer": "penultimate", "weights": "IMAGENET1K_V1", "colour": "rgb",
        "filter": "none", "scale": "own", "pool": "own", "layers": "last",
    }  # fmt: skip
    odd = replace(
        made(colour="grey", filters=("log-2",), mean=(0.0,) * 3, std=(1.0,) * 3),
        layer="features.3:mean", weights="random", weights_sha256="random:7",
    )  # fmt: skip
    spec = "vgg16:size=224:layer=features.3:weights=random:7:colour=grey:filter=log-2:scale=0-1"
    assert means(spec, odd)
    assert not means(spec, KEY)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({}, "penultimate"),
        ({"layer": "features.3"}, "features.3:mean"),
        ({"layer": "mean"}, "mean:mean"),
        ({"pool": "cls+mean"}, "penultimate:cls+mean"),
        ({"pool": "mean"}, "penultimate:mean"),
        ({"layers": "-4..-1"}, "blocks-4..-1:cls"),
        ({"layers": "-12..-2", "pool": "cls+mean"}, "blocks-12..-2:cls+mean"),
    ],
)
def test_a_layer_and_its_pooling_are_one_text_in_a_key(said: dict[str, str], text: str) -> None:
    usual = {"layer": "penultimate", "pool": "own", "layers": "last"}
    assert written_layer(**(usual | said)) == text
    assert read_layer(text) == usual | said
    key = replace(KEY, layer=text)
    assert means(":".join(["vgg16", *(f"{name}={value}" for name, value in said.items())]), key)
    (name,) = names_of([key])
    assert means(name, key)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"pool": "average"}, "unknown pooling 'average'"),
        ({"layer": "features", "pool": "max"}, "takes no pool or layers"),
        ({"layer": "features", "layers": "-2..-1"}, "takes no pool or layers"),
        ({"layers": "-1..-4"}, "names no blocks"),
        ({"layers": "-2..0"}, "names no blocks"),
        ({"layers": "4"}, "names no blocks"),
        ({"layers": "-4..-1", "pool": "max"}, "takes no pool=max"),
    ],
)
def test_poolings_that_cant_be_are_refused(said: dict[str, str], message: str) -> None:
    usual = {"layer": "penultimate", "pool": "own", "layers": "last"}
    with pytest.raises((RecipeError, UnknownName), match=re.escape(message)):
        written_layer(**(usual | said))


def test_the_class_tokens_of_several_blocks_are_those_of_pool_cls() -> None:
    key = replace(KEY, layer="blocks-4..-1:cls")
    assert means("vgg16:layers=-4..-1:pool=cls", key)
    assert not means("vgg16:layers=-4..-1:pool=cls+mean", key)
    entry = Entry("d", Path("cache/d/x.h5"), key, 1, 1, 1, 1.0)
    assert " --layers -4..-1" in extract_commands([entry], "")


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("vgg16", True),
        ("vgg16:size=0224", True),
        ("vgg16:size=225", False),
        ("vgg16:colour=HSV:filter=log-1.50", True),
        ("vgg16:colour=rgb", False),
        ("vgg16:filter=none", False),
        ("vgg16:layer=penultimate:scale=own", True),
        ("vgg16:weights=auto", True),
        ("vgg16:weights=IMAGENET1K_V1", True),
        ("vgg16:weights=IMAGENET1K_V2", False),
        ("vgg16:weights=random", False),
        ("vgg16:weights=some/file.pth", False),
        ("vgg19:size=224", False),
        ("vgg1", False),
        ("vgg16-hsv", True),
        ("vgg16-224px-hsv-log-1.5", True),
        ("vgg16-log-1.5-hsv", False),
        ("vgg16-hsvlog-1.5", False),
        ("vgg16-log-1", False),
    ],
)
def test_what_means_a_file(text: str, yes: bool) -> None:
    assert means(text, made(colour="HSV", filters=("log-1.5",))) is yes


def test_weights_in_a_file_are_meant_by_any_file_and_by_auto() -> None:
    local = replace(KEY, weights="local")
    assert means("vgg16:weights=w/vgg16.pth", local)
    assert means("vgg16:weights=auto", local)
    seeded = replace(KEY, weights="random", weights_sha256="random:0")
    assert means("vgg16:weights=random", seeded)
    assert not means("vgg16:weights=random:1", seeded)


def test_names_say_what_differs_and_no_more() -> None:
    other = replace(KEY, backbone="resnet18")
    assert names_of([KEY, other]) == ("vgg16", "resnet18")
    large, log = made(crop=250), made(filters=("equalise", "log-1.5"))
    assert names_of([KEY, large, other]) == ("vgg16-224px", "vgg16-250px", "resnet18")
    assert names_of([KEY, log]) == ("vgg16", "vgg16-equalise-log-1.5")
    assert names_of([log]) == ("vgg16-equalise-log-1.5",)
    assert names_of([large]) == ("vgg16",)
    layer = replace(KEY, layer="features:mean")
    assert names_of([layer, KEY]) == ("vgg16-features", "vgg16")
    assert names_of([KEY, replace(KEY, precision="bf16")]) == ("vgg16-fp32", "vgg16-bf16")


def test_names_that_would_be_equal_hold_their_key() -> None:
    one, two = (replace(KEY, weights="local", weights_sha256=c * 64) for c in "ab")
    assert names_of([one, two]) == (f"vgg16@{one.key8}", f"vgg16@{two.key8}")


def test_what_a_name_adds_is_fit_for_a_file() -> None:
    for name in names_of([KEY, replace(KEY, layer="a:b/c*", weights="x y")]):
        assert not set(name) & set('/\\\0\n:*?"<>|[]')


def test_each_name_leads_back_to_its_file() -> None:
    keys = [
        KEY, made(crop=250), made(colour="HSV"), made(filters=("equalise", "gaussian-1")),
        replace(KEY, layer="features.3:mean"), replace(KEY, weights="IMAGENET1K_V2"),
        replace(KEY, backbone="timm:resnet50"),
        replace(KEY, backbone="timm:resnet50", precision="bf16"),
        made(mean=(0.0,) * 3, std=(1.0,) * 3),
    ]  # fmt: skip
    names = names_of(keys)
    assert len(set(names)) == len(keys)
    for name, key in zip(names, keys, strict=True):
        assert means(name, key)


def test_the_digits_of_a_key_follow_an_at_sign_but_not_inside_options() -> None:
    assert split_key("resnet18@7be2") == ("resnet18", "7be2")
    assert split_key("resnet18") == ("resnet18", "")
    assert split_key("resnet18:weights=me@home/w.pth")[1] == ""
    assert split_key("resnet18@zebra") == ("resnet18", "zebra")
    assert split_key("a=b@7be2") == ("a=b", "7be2")


def test_a_backbone_of_ones_own_may_be_called_anything() -> None:
    for name in ("net=1", "a:size=3", "my net", "ünet@home"):
        assert means(name, replace(KEY, backbone=name))


# The commands that remedies name bring back the very key that is asked for.


def entry(key: Key, data: str = "photos") -> Entry:
    return Entry(data, Path("elsewhere") / data / "x.h5", key, 3, 5, 60, 0.0)


def test_the_command_gives_the_key_back() -> None:
    wanted = open_backbone(
        "squeezenet1_1", weights="random:7", layer="features.3", image_size=96, colour="hsv",
        filter="equalise+log-1.5", scale="0-1",
    ).key("bf16")  # fmt: skip
    words = shlex.split(extract_commands([entry(wanted)], "my photos"))
    assert words[:2] == ["featcache", "extract"]
    read = extract.make_context("extract", words[2:], PARENT).params
    which = ("weights", "layer", "image_size", "colour", "filter", "scale")
    again = open_backbone(read["backbone"][0], **{name: read[name] for name in which})
    assert again.key(read["precision"]) == wanted
    assert (read["data"], read["name"], read["cache"]) == ("my photos", "photos", "elsewhere")
    assert read["view"] == []


def test_backbones_share_a_command_where_they_share_the_options() -> None:
    key = tiny_backbone("a").key()
    small = replace(key, preprocess={**key.preprocess, "crop": 4})
    entries = [entry(key), entry(replace(key, backbone="b")), entry(small)]
    first, second = extract_commands(entries, "photos", ["hflip"]).splitlines()
    assert "--backbone a,b --weights fixed --image-size 8" in first
    assert "--backbone a --weights fixed --image-size 4" in second
    assert first.count("--view hflip") == second.count("--view hflip") == 1
    assert "--name" not in first


def test_weights_that_were_a_file_are_named_by_their_digest() -> None:
    key = replace(tiny_backbone().key(), weights="local", weights_sha256="ab" * 32)
    command, where = extract_commands([entry(key)], "photos").splitlines()
    assert "--weights FILE" in command
    assert where.endswith("begins abababababab")


def test_a_backbone_of_which_only_views_are_there_gets_the_plain_command() -> None:
    flipped = entry(tiny_backbone(view="hflip").key())
    assert "--view" not in commands_for_absent([flipped], "photos", "photos", "tiny")
    assert "--view hflip" in extract_commands([flipped], "photos")


def test_an_empty_cache_folder_gets_the_shortest_command() -> None:
    said = commands_for_absent([], "photos", "", "resnet18")
    assert said == "featcache extract --data photos --backbone resnet18"
