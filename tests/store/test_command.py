"""The commands that remedies name bring back the very key that is asked for."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from tiny import tiny_backbone

from featcache.cli.extract import extract
from featcache.extraction.registry import open_backbone
from featcache.store.key import Entry, Key
from featcache.store.spec import commands_for_absent, extract_commands


def entry(key: Key, data: str = "photos") -> Entry:
    return Entry(data, Path("elsewhere") / data / "x.h5", key, 3, 5, 60, 0.0)


def test_the_command_gives_the_key_back() -> None:
    wanted = open_backbone(
        "squeezenet1_1", weights="random:7", layer="features.3", image_size=96, colour="hsv",
        filter="equalise+log-1.5", scale="0-1",
    ).key("bf16")  # fmt: skip
    words = shlex.split(extract_commands([entry(wanted)], "my photos"))
    assert words[:2] == ["featcache", "extract"]
    read = extract.make_context("extract", words[2:]).params
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
