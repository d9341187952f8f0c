"""Command: what to type so that the cache gets what it lacks, in the way it got the rest."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace

from featcache.store.entry import Entry
from featcache.store.key import Key
from featcache.store.spec import DEFAULTS, FROM_A_FILE, means, options_of, parse_spec, split_key
from featcache.store.weights_folder import find_file


def extract_commands(
    entries: Sequence[Entry], source: str, view: Sequence[str] = (), options: Sequence[str] = ()
) -> str:
    """The commands that extract again with the options that these files were made with.

    Parameters
    ----------
    entries : sequence of Entry
        Of one data set.
    source : str
        Where its images are, as for `extract --data`; "" where only its name is known.
    view : sequence of str, default ()
        Views to extract besides those that the files hold.
    options : sequence of str, default ()
        What else opens the images, see `Images.options`.

    Returns
    -------
    str
        One line for each set of options, with all backbones that share it. A last line says
        which file FILE stands for, where weights were given as a file that isn't found.
    """
    alike: dict[tuple[str, ...], list[str]] = {}
    unknown = []
    for entry in entries:
        weights = _weights(entry.key)
        unknown += [entry.key.weights_sha256[:12]] * ("FILE" in weights)
        rest = (*_start(source, entry.data, options)[4:], *weights, *_options(entry, view))
        alike.setdefault(rest, []).append(entry.key.backbone)
    lines = [
        shlex.join(
            ("featcache", "extract", "--data", source or entries[0].data,
             "--backbone", ",".join(dict.fromkeys(names)), *rest)
        )
        for rest, names in alike.items()
    ]  # fmt: skip
    if unknown:
        lines.append(f"where FILE is the weight file whose sha256 begins {', '.join(unknown)}")
    return "\n".join(lines)


def commands_for_absent(
    entries: Sequence[Entry],
    data: str,
    source: str,
    wanted: str | Sequence[str],
    cache: str = "cache",
    view: Sequence[str] = (),
    options: Sequence[str] = (),
) -> str:
    """What to do where some backbones, or `name@key`, are not among a data set's files.

    Parameters
    ----------
    entries : sequence of Entry
        All files of the data set.
    data : str
        Its name.
    source : str
        Where its images are; "" where only its name is known.
    wanted : str, or several
    cache : str, default "cache"
        The cache folder.
    view : sequence of str, default ()
        Views that are asked for too.
    options : sequence of str, default ()
        What else opens the images, see `Images.options`.
    """
    lines, names, plain = [], [], []
    for text in [wanted] if isinstance(wanted, str) else wanted:
        named, prefix = split_key(text)
        name = parse_spec(named).name
        same = [entry for entry in entries if means(name, entry.key)]
        if same and prefix:
            selectors = " or ".join(entry.selector for entry in same)
            lines.append(f"Choose one that is there: {selectors}.")
        elif same and named == name:  # only views of it are there
            newest = same[-1]
            key = replace(newest.key, preprocess={**newest.key.preprocess, "view": "none"})
            plain.append(replace(newest, key=key))
        else:
            names.append(named)
    if plain:
        lines.append(extract_commands(plain, source, view, options))
    if names:
        start = _start(source, data, options)
        words = [*start[:4], "--backbone", ",".join(dict.fromkeys(names)), *start[4:]]
        lines.append(shlex.join([*words, *_views(view), *_cache(cache)]))
    return "\n".join(lines)


def in_cache(words: Sequence[str], entry: Entry) -> str:
    """A command as one line, for the cache folder that a file stands in."""
    return shlex.join([*words, *_cache(str(entry.path.parent.parent))])


def _start(source: str, data: str, options: Sequence[str]) -> list[str]:
    words = ["featcache", "extract", "--data", source or data]
    return words + (["--name", data] if source and source != data else []) + list(options)


def _weights(key: Key) -> list[str]:
    if key.weights_sha256.startswith("random:"):
        return ["--weights", key.weights_sha256]
    if key.weights not in ("auto", *FROM_A_FILE):
        return ["--weights", key.weights]
    if key.weights == "auto":
        return []
    found = find_file(key.backbone, key.weights_sha256)
    return ["--weights", "FILE" if found is None else str(found)]


def _options(entry: Entry, view: Sequence[str]) -> list[str]:
    key, made = entry.key, options_of(entry.key)
    words = ["--layer", made["layer"]] if made["layer"] != DEFAULTS["layer"] else []
    words += ["--image-size", made["size"]] if "size" in made else []
    for name in ("colour", "filter", "scale"):
        words += [f"--{name}", made[name]] if made[name] != DEFAULTS[name] else []
    words += ["--precision", key.precision]
    own = str(key.preprocess.get("view", "none"))
    words += _views([own] * (own != "none") + list(view))
    return words + _cache(str(entry.path.parent.parent))


def _views(names: Sequence[str]) -> list[str]:
    return [word for name in dict.fromkeys(names) for word in ("--view", name)]


def _cache(folder: str) -> list[str]:
    return ["--cache", folder] if folder != "cache" else []
