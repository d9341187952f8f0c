"""Spec: a backbone and its options as one text, for instance `vit_b_16:size=384:filter=log-1.5`.

The text is cut at every colon that a word and "=" follow, so that `timm:resnet50` is a name and
`weights=random:7` keeps its colon. A comma, which separates backbones on the command line, is no
part of it. The same text asks for features to be made and finds them again in the cache.

| option | value | where it is not said |
|---|---|---|
| size | pixels | the backbone's own |
| layer | a module of the network | penultimate |
| pool | own, cls, mean, cls+mean, max, gem, mean+max: of the last map or tokens | own |
| layers | -N..-M: the class tokens of these blocks, joined; -1 is the last | last |
| weights | auto, a tag, a file, random[:SEED], a run folder | auto |
| colour | rgb, hsv, lab, ycbcr, grey | rgb |
| filter | equalise, gaussian-SIGMA, log-SIGMA; several joined by +, the first one first | none |
| scale | own, 0-1 | own: what the weights were trained with |
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from featcache.errors import RecipeError, UnknownName, unknown
from featcache.store.key import Entry, Key
from featcache.store.weights_folder import find_file

IMPORTED = "import:"  # begins the name of what another tool has made
OPTIONS = ("size", "layer", "pool", "layers", "weights", "colour", "filter", "scale")
DEFAULTS = {
    "layer": "penultimate", "colour": "rgb", "filter": "none", "scale": "own", "pool": "own",
    "layers": "last",
}  # fmt: skip
POOLS = ("own", "cls", "mean", "cls+mean", "max", "gem", "mean+max")
HUB, LOCAL_DIR = "timm:hf-hub:", "timm:local-dir:"  # names of models outside timm's registry
_OPTION = re.compile(r":(?=[A-Za-z_]+=)")
_KEYED = re.compile("(.*)@([0-9a-f]+)")
_POOLED = re.compile(r"penultimate:(.+)")
_BLOCKS = re.compile(r"blocks(-[1-9]\d*\.\.-[1-9]\d*):(.+)")
_COMMON = 3  # of `_words`: size, weights and precision have no usual value
FROM_A_FILE = ("local", "tuned")  # tags of weights that no library published


@dataclass(frozen=True)
class Spec:
    """A backbone and its options.

    Attributes
    ----------
    name : str
        For instance "vit_b_16", or "timm:resnet50".
    options : mapping of str to str
        Those of `OPTIONS` that were said.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What `parse_spec` reads as this."""
        return ":".join([self.name, *(f"{name}={value}" for name, value in self.options.items())])


def parse_spec(text: str) -> Spec:
    """Read a spec; whether there is such a backbone is not looked at.

    Raises
    ------
    UnknownName
        For an option that there is not.
    RecipeError
        For a text without a name, an option said twice or without a value, a size that is none.
    """
    name, *parts = _OPTION.split(text.strip())
    if not name or "=" in name:
        raise RecipeError(
            f"{text!r} names no backbone",
            "The name comes first, then each option after a colon: vit_b_16:size=384:layer=encoder",
        )
    options: dict[str, str] = {}
    for part in parts:
        option, _, value = part.partition("=")
        if option not in OPTIONS:
            raise unknown(f"option of {name}", option, OPTIONS)
        if option in options or not value.strip():
            what = "is said twice" if option in options else "has no value"
            raise RecipeError(f"{text!r}: {option} {what}", f"For instance {name}:{option}=…")
        options[option] = value.strip()
    size = options.get("size", "1")
    if not size.isdecimal() or int(size) < 1:
        raise RecipeError(f"{text!r}: size {size!r} is no number of pixels", f"{name}:size=224")
    return Spec(name, options)


def split_key(text: str) -> tuple[str, str]:
    """`resnet18@7be2` as ("resnet18", "7be2"); "" for the key where none is named."""
    found = _KEYED.fullmatch(text)
    if HUB in text:  # what follows @ may be a revision: a branch, a tag, a commit's 40 digits
        found = None if found and len(found[2]) == 40 else found
    elif found is None and "=" not in text:  # what follows is no key, but is meant as one
        found = re.fullmatch("([^@]*)@(.*)", text)
    return (text, "") if found is None else (found[1], found[2])


def known_as(name: str) -> str:
    """A backbone's name in keys and reports: a folder's own, without the path to it."""
    if not name.startswith(LOCAL_DIR):
        return name
    last = Path(name.removeprefix(LOCAL_DIR)).expanduser().resolve().name
    if not last:
        raise UnknownName(f"{name!r} names no folder", f"For instance {LOCAL_DIR}models/UNI2-h")
    return f"{LOCAL_DIR}{last}"


def prepared(preprocess: Mapping[str, Any]) -> str:
    """How images are prepared, in words; of a plain `Preprocess`."""
    mean, std = (" ".join(f"{v:g}" for v in preprocess[name]) for name in ("mean", "std"))
    resized = f"{preprocess['resize']} px ({preprocess['interpolation']})"
    return f"{preprocess['crop']} px, cut from {resized}, mean {mean}, std {std}"


def parse_filter(text: str) -> tuple[str, ...]:
    """`equalise+gaussian-1.50` as ("equalise", "gaussian-1.5"); "none" as ()."""
    parts = [part.strip() for part in text.split("+")]
    return () if parts == ["none"] else tuple(_plain_number(part) for part in parts)


def options_of(key: Key) -> dict[str, str]:
    """What features were made with, in the words of a spec; all options but an unknown size."""
    if key.imported:
        return {**DEFAULTS, "weights": key.weights}
    plain = key.preprocess
    size = {"size": str(plain["crop"])} if "crop" in plain else {}
    zero_one = [*plain.get("mean", ()), *plain.get("std", ())] == [0.0] * 3 + [1.0] * 3
    return (
        size
        | read_layer(key.layer)
        | {
            "weights": key.weights_sha256 if key.weights == "random" else key.weights,
            "colour": str(plain.get("colour", "RGB")).lower(),
            "filter": "+".join(plain.get("filters", ())) or "none",
            "scale": "0-1" if zero_one else "own",
        }
    )


def written_layer(layer: str, pool: str = "own", layers: str = "last") -> str:
    """Whose output a vector is and how it is pooled, as a key says it; `read_layer` reads it.

    Raises
    ------
    UnknownName
        For a pooling that there is not.
    RecipeError
        For blocks that can't be read, or options that exclude each other.
    """
    if pool not in POOLS:
        raise unknown("pooling", pool, POOLS)
    if layer != DEFAULTS["layer"]:
        if (pool, layers) != ("own", "last"):
            raise RecipeError(
                f"layer={layer} is averaged over its positions, and takes no pool or layers",
                "Leave layer out, or the others.",
            )
        return f"{layer}:mean"
    if layers == "last":
        return layer if pool == "own" else f"{layer}:{pool}"
    found = _BLOCKS.fullmatch(f"blocks{layers}:cls")
    first, last = (int(number) for number in layers.split("..")) if found else (0, 0)
    if not first <= last < 0:
        raise RecipeError(
            f"layers {layers!r} names no blocks of a network, from the first to the last",
            "layers=-4..-1 are the last four.",
        )
    if pool not in ("own", "cls", "cls+mean"):
        raise RecipeError(
            f"layers={layers} joins class tokens, and takes no pool={pool}",
            "Leave pool out, or pool=cls+mean for the last block's mean patch token too.",
        )
    return f"blocks{layers}:{'cls' if pool == 'own' else pool}"


def read_layer(text: str) -> dict[str, str]:
    """The options layer, pool and layers that `written_layer` makes this text of."""
    said = {"layer": DEFAULTS["layer"], "pool": "own", "layers": "last"}
    if found := _POOLED.fullmatch(text):
        return said | {"pool": found[1]}
    if found := _BLOCKS.fullmatch(text):
        return said | {"pool": "own" if found[2] == "cls" else found[2], "layers": found[1]}
    return said | {"layer": text.removesuffix(":mean")}


def means(text: str, key: Key) -> bool:
    """Whether a spec, or a name that `names_of` gives, means the features under a key.

    An option that isn't said may have any value.
    """
    if text == key.backbone:  # whatever signs are in it
        return True
    spec = parse_spec(text)
    name = known_as(spec.name)
    if not spec.options:
        return _is_named(name, key)
    return name == key.backbone and all(
        _agrees(option, value, key) for option, value in spec.options.items()
    )


def names_of(keys: Sequence[Key]) -> tuple[str, ...]:
    """A name for each of several features, different from the others.

    The backbone's, with the options that are unusual, as `resnet18-log-1.5`. If one is there
    several times, also with a size, weights or precision in which they differ, as
    `vit_b_16-384px`; where that doesn't tell them apart, `resnet18@7be2d41c`.
    """
    names = []
    for key in keys:
        others = [_words(other) for other in keys if other.backbone == key.backbone]
        unusual = [
            word
            for i, word in enumerate(_words(key))
            if word and (i >= _COMMON or len({other[i] for other in others}) > 1)
        ]
        names.append("-".join([key.backbone, *unusual]))
    return tuple(
        name if names.count(name) == 1 else f"{key.backbone}@{key.key8}"
        for name, key in zip(names, keys, strict=True)
    )


def _words(key: Key) -> list[str]:
    """What a name may say of features, always in this order; "" for what is usual."""
    options = options_of(key)
    view = str(key.preprocess.get("view", "none"))
    size = f"{options['size']}px" if "size" in options else ""
    rest = [options[name] if options[name] != usual else "" for name, usual in DEFAULTS.items()]
    rest[-1] = f"layers{rest[-1]}" if rest[-1] else ""
    words = [size, options["weights"], key.precision, *rest, "" if view == "none" else view]
    return [_plain(word) for word in words]


def _is_named(name: str, key: Key) -> bool:
    """Whether this is the backbone's name, with some of its `_words` or none."""
    if not name.startswith(key.backbone):
        return False
    rest = name.removeprefix(key.backbone)
    for word in _words(key):
        if word and (rest == f"-{word}" or rest.startswith(f"-{word}-")):
            rest = rest.removeprefix(f"-{word}")
    return not rest


def _plain(text: str) -> str:
    """`text` as part of a file's name."""
    return "".join(c if c.isalnum() or c in "_-." else "-" for c in text)


def _agrees(option: str, value: str, key: Key) -> bool:
    options = options_of(key)
    made = options.get(option)
    if option == "pool" and value == "cls" and options["layers"] != DEFAULTS["layers"]:
        value = "own"  # of several blocks it is the class tokens
    if option == "size":
        return made == str(int(value))
    if option == "filter":
        return made == ("+".join(parse_filter(value)) or "none")
    if option != "weights":
        return made == (value.lower() if option == "colour" else value)
    if value.split(":")[0] == "random":
        return made == f"random:{value.partition(':')[2] or 0}"
    # A file's name isn't kept with its features, and "auto" may have been one.
    is_tag = value != "auto" and not ("/" in value or "." in value)
    return made == value if is_tag else value == "auto" or made in FROM_A_FILE


def _plain_number(part: str) -> str:
    name, dash, number = part.partition("-")
    try:
        return f"{name}{dash}{float(number):g}" if dash else part
    except ValueError:
        return part


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
        One line for each set of options, with all backbones that share it, and for each block
        that was imported. A last line says which file FILE stands for, where weights were given
        as a file that isn't found.
    """
    imported = [entry for entry in entries if entry.key.imported]
    entries = [entry for entry in entries if not entry.key.imported]
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
    lines += [_import(entry, source, options) for entry in imported]
    if unknown:
        lines.append(f"where FILE is the weight file whose sha256 begins {', '.join(unknown)}")
    if imported:
        begins = ", ".join(entry.key.weights_sha256[:12] for entry in imported)
        lines.append(f"where VECTORS is what another tool wrote, with the sha256 {begins}…")
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
        elif name.startswith(IMPORTED):
            words = [*_start(source, data, options, ("import", "VECTORS")), "--as"]
            lines.append(shlex.join([*words, name.removeprefix(IMPORTED), *_cache(cache)]))
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


def _import(entry: Entry, source: str, options: Sequence[str]) -> str:
    key = entry.key
    words = _start(source, entry.data, options, ("import", "VECTORS"))
    words += ["--as", key.backbone.removeprefix(IMPORTED), "--origin", key.weights]
    return shlex.join([*words, *_cache(str(entry.path.parent.parent))])


def _start(
    source: str, data: str, options: Sequence[str], command: Sequence[str] = ("extract",)
) -> list[str]:
    words = ["featcache", *command, "--data", source or data]
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
    for name in ("pool", "layers", "colour", "filter", "scale"):
        words += [f"--{name}", made[name]] if made[name] != DEFAULTS[name] else []
    words += ["--precision", key.precision]
    own = str(key.preprocess.get("view", "none"))
    words += _views([own] * (own != "none") + list(view))
    return words + _cache(str(entry.path.parent.parent))


def _views(names: Sequence[str]) -> list[str]:
    return [word for name in dict.fromkeys(names) for word in ("--view", name)]


def _cache(folder: str) -> list[str]:
    return ["--cache", folder] if folder != "cache" else []
