"""Places: absolute paths, which say who worked where, are kept out of what is made to be sent.

A run folder has them in its origin.json only; pages, and run.json, have their last part.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from featcache.images.manifest import ORIGIN_JSON
from featcache.images.remote import is_url

_FACTS = ("opened", "cache", "command")  # of run.json, that may hold some
_ABSOLUTE = re.compile(
    r"(?P<before>--[\w-]+=|\w{2,}:)?(?:/|[A-Za-z]:[\\/]|\\\\)(?P<rest>.*)", re.DOTALL
)
_IN_TEXT = re.compile(r"(?<![^\s(=\"',])(?:/|[A-Za-z]:[\\/])[^\s\"',)]*")
_QUOTED = re.compile(r"'([^'\n]*)'")


def without_place(word: str) -> str:
    """A word of a command, or an id; of an absolute path the last part, whatever is before it."""
    elsewhere = is_url(word) and not word.lower().startswith("file:")
    found = None if elsewhere else _ABSOLUTE.fullmatch(word)
    if found is None:
        return word
    last = re.split(r"[\\/]", found["rest"].rstrip("\\/"))[-1]
    return (found["before"] or "") + (last or ".")


def without_places(text: str) -> str:
    """A sentence, each absolute path in it shortened to its last part."""
    return _IN_TEXT.sub(lambda found: without_place(found[0]), text)


def split_places(facts: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What run.json is to hold, and what of it origin.json: what names absolute paths."""
    shown = dict(facts)
    for name in _FACTS:
        value = facts.get(name)
        if isinstance(value, str):
            shown[name] = _command(value) if name == "command" else without_place(value)
        elif isinstance(value, list | tuple):  # in a run.json of somebody else it may be anything
            shown[name] = [without_place(w) if isinstance(w, str) else w for w in value]
    return shown, {name: facts[name] for name in _FACTS if shown.get(name) != facts.get(name)}


def write_origin(folder: Path, origin: Mapping[str, Any]) -> None:
    """Write a run folder's origin.json, if there is anything for it."""
    if origin:
        text = json.dumps(origin, indent=1) + "\n"
        (folder / ORIGIN_JSON).write_text(text, encoding="utf-8")


def known_places(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Those facts of an origin.json that run.json has shortened."""
    return {name: origin[name] for name in _FACTS if name in origin}


def _command(text: str) -> str:
    """A command line word by word; of Python each text in quotes."""
    with suppress(ValueError):
        if "\n" not in text:
            return shlex.join(map(without_place, shlex.split(text)))
    return _QUOTED.sub(lambda found: repr(without_place(found[1])), text)
