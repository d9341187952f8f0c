"""Key: what makes two embeddings of one image the same; and the finished file that holds them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from featcache.errors import CacheRefused
from featcache.hashing import canonical_json, sha256_bytes

FORMAT = 1
IMPORT = "import"  # the library of vectors that other tools wrote
_DTYPES = ("float32", "float16")
_PREPROCESS = {  # what is read of it here
    "crop": int, "view": str, "colour": str, "mean": int | float, "std": int | float,
    "filters": str,
}  # fmt: skip
_OFTEN_EMPTY = ("calibration", "config")
_LONGEST = 200  # of a file's name: with what is put behind it, file systems take 255 bytes
_LISTS = ("mean", "std", "filters")


@dataclass(frozen=True)
class Key:
    """Everything that a vector depends on besides the image, and nothing else.

    Labels, splits, groups, paths, batch size, device, workers, engine and library versions are
    not in it: they don't change what the vector means.

    Attributes
    ----------
    backbone : str
        The architecture's name.
    library : str
        Where the architecture comes from, for instance "torchvision": the same short name
        means another network elsewhere.
    weights : str
        Their tag, for instance "IMAGENET1K_V1".
    weights_sha256 : str
        Hex digest of the weight file, or "random:SEED".
    layer : str
        Whose output the vector is, and how it was pooled.
    preprocess : mapping
        All of `Preprocess`, as plain data.
    precision : str
        What the network computed in: "fp32", "bf16", "fp16" or "int8".
    dtype : str
        What the vector is stored in: "float32" or "float16".
    format : int
        The version of the file format.
    calibration : str
        For int8, the digest of the images that the network was quantised on, and how; else "".
    config : str
        The digest of what the network is made by, where its name doesn't say that; else "".
    """

    backbone: str
    library: str
    weights: str
    weights_sha256: str
    layer: str
    preprocess: Mapping[str, Any]
    precision: str = "fp32"
    dtype: str = "float32"
    format: int = FORMAT
    calibration: str = ""
    config: str = ""

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it; what is "" has no word in it, as in older keys."""
        values = asdict(self)
        for name in _OFTEN_EMPTY:
            if not values[name]:
                del values[name]
        return values

    def json(self) -> str:
        """Canonical JSON: equal keys give equal text."""
        return canonical_json(self.plain())

    @property
    def digest(self) -> str:
        """64 hex digits."""
        return sha256_bytes(self.json().encode())

    @property
    def key8(self) -> str:
        """The first eight digits, which stand in file names."""
        return self.digest[:8]

    @property
    def imported(self) -> bool:
        """Whether another tool has made the vectors: no extraction can."""
        return self.library == IMPORT

    @property
    def stem(self) -> str:
        """The file's name without its ending: `backbone.weights.key8`."""
        name = f"{_plain(self.backbone)}.{_plain(self.weights)}"
        return f"{name[:_LONGEST]}.{self.key8}"

    def differences(self, other: Key) -> list[str]:
        """The fields in which `other` differs, as `preprocess.resize 256 → 224`."""
        mine, theirs = dict(_flat(self.plain())), dict(_flat(other.plain()))
        names = [*mine, *(name for name in theirs if name not in mine)]
        return [
            f"{name} {mine.get(name, 'absent')} → {theirs.get(name, 'absent')}"
            for name in names
            if mine.get(name) != theirs.get(name)
        ]


def read_key(text: str, where: str) -> Key:
    """The key whose canonical JSON is `text`; `where` names the file it stands in.

    Raises
    ------
    CacheRefused
        If it is no key, or one of another version of the format.
    """
    try:
        plain = json.loads(text)
        version = plain["format"]
        if version == FORMAT:
            plain = dict.fromkeys(_OFTEN_EMPTY, "") | plain
            key = Key(**{field.name: plain[field.name] for field in fields(Key)})
            _check_types(key)
            key.json().encode()  # NaN and halves of characters have no digest
            return key
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CacheRefused(
            f"{where} holds no readable key", "Delete it and run the extract command again."
        ) from None
    age = "an older" if isinstance(version, int) and version < FORMAT else "a newer"
    remedy = (
        "Run the extract command again, then delete it."
        if age == "an older"
        else "Update featcache: pip install -U featcache"
    )
    raise CacheRefused(
        f"{where} was written by {age} featcache (format {version}, this one reads {FORMAT})",
        remedy,
    )


def _check_types(key: Key) -> None:
    """Refuse what no key holds: commands read names, options and sizes from it."""
    texts = [getattr(key, one.name) for one in fields(Key) if one.type == "str"]
    if not all(isinstance(text, str) for text in texts) or key.dtype not in _DTYPES:
        raise TypeError("a field is of another type")
    if not isinstance(key.preprocess, dict):
        raise TypeError("preprocess is no mapping")
    for name, value in key.preprocess.items():
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, _PREPROCESS.get(name, str | int | float)) for item in items):
            raise TypeError(f"preprocess.{name} is of another type")
        if name in _PREPROCESS and isinstance(value, list) != (name in _LISTS):
            raise TypeError(f"preprocess.{name} is of another type")


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item


def _plain(text: str) -> str:
    """`text` as part of a file name."""
    return "".join(c if c.isalnum() or c in "_-@+" else "-" for c in text) or "x"


@dataclass(frozen=True)
class Entry:
    """One finished feature file of the cache."""

    data: str
    path: Path
    key: Key
    rows: int
    dim: int
    bytes: int
    mtime: float
    called: str = ""  # the name that a user gave it, where that is not the usual one

    @property
    def selector(self) -> str:
        """What names this file and no other on the command line."""
        return f"{self.key.backbone}@{self.key.key8}"
