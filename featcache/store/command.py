"""Command: what to type so that the cache gets what it lacks, in the way it got the rest."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace

from featcache.store.entry import Entry
from featcache.store.spec import DEFAULTS, means, options_of, parse_spec, split_key


def extract_commands(entries: Sequence[Entry], source: str, view: Sequence[str] = ()) -> str:
    """The commands that extract again with the options that these files were made with.

    Parameters
    ----------
    entries : sequence of Entry
        Of one data set.
    source : str
        Where its images are, as for `extract --data`; "" where only its name is known.
    view : sequence of str, default ()
        Views to extract besides those that the files hold.

    Returns
    -------
    str
        One line for each set of options, with all backbones that share it. A last line says
        which file FILE stands for, where weights were given as a file.
    """
    alike: dict[tuple[str, ...], list[str]] = {}
    for entry in entries:
        alike.setdefault(_options(entry, source, view), []).append(entry.key.backbone)
    lines = [
        shlex.join(
            (*_start(source, entries[0].data), "--backbone", ",".join(dict.fromkeys(names)), *rest)
        )
        for rest, names in alike.items()
    ]
    files = [entry.key.weights_sha256[:12] for entry in entries if _is_file(entry)]
    if files:
        lines.append(f"where FILE is the weight file whose sha256 begins {', '.join(files)}")
    return "\n".join(lines)


def commands_for_absent(entries: Sequence[Entry], data: str, source: str, wanted: str) -> str:
    """What to do where `wanted`, a backbone or `name@key`, is not among a data set's files."""
    named, prefix = split_key(wanted)
    name = parse_spec(named).name
    same = [entry for entry in entries if means(name, entry.key)]
    if same and prefix:
        return f"Choose one that is there: {' or '.join(entry.selector for entry in same)}."
    if same and named == name:  # only views of it are there
        newest = same[-1]
        plain = replace(newest.key, preprocess={**newest.key.preprocess, "view": "none"})
        return extract_commands([replace(newest, key=plain)], source)
    words = [*_start(source, data), "--backbone", named]
    words += ["--name", data] if source and source != data else []
    return shlex.join(words + (_cache(entries[0]) if entries else []))


def in_cache(words: Sequence[str], entry: Entry) -> str:
    """A command as one line, for the cache folder that a file stands in."""
    return shlex.join([*words, *_cache(entry)])


def _start(source: str, data: str) -> list[str]:
    return ["featcache", "extract", "--data", source or data]


def _options(entry: Entry, source: str, view: Sequence[str]) -> tuple[str, ...]:
    key, made = entry.key, options_of(entry.key)
    words = ["--name", entry.data] if source and source != entry.data else []
    if key.weights_sha256.startswith("random:"):
        words += ["--weights", key.weights_sha256]
    elif key.weights != "auto":
        words += ["--weights", "FILE" if _is_file(entry) else key.weights]
    if made["layer"] != DEFAULTS["layer"]:
        words += ["--layer", made["layer"]]
    words += ["--image-size", made["size"]] if "size" in made else []
    for name in ("colour", "filter", "scale"):
        words += [f"--{name}", made[name]] if made[name] != DEFAULTS[name] else []
    words += ["--precision", key.precision]
    own = str(key.preprocess.get("view", "none"))
    for name in dict.fromkeys([own] * (own != "none") + list(view)):
        words += ["--view", name]
    return (*words, *_cache(entry))


def _is_file(entry: Entry) -> bool:
    """Whether its weights were named as a file: of any other, the tag finds them again."""
    return entry.key.weights in ("local", "tuned")


def _cache(entry: Entry) -> list[str]:
    folder = str(entry.path.parent.parent)
    return ["--cache", folder] if folder != "cache" else []
