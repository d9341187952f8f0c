"""The user's own folder of weight files, and which of them are a backbone's."""

from __future__ import annotations

import os
from pathlib import Path

from featcache.hashing import sha256_file

VARIABLE = "FEATCACHE_WEIGHTS"
SUFFIXES = (".safetensors", ".pth", ".pt")


def weights_folder(named: str | Path | None = None) -> Path | None:
    """The user's folder: the one named, else that in FEATCACHE_WEIGHTS; None without either."""
    value = named or os.environ.get(VARIABLE)
    return Path(value).expanduser() if value else None


def file_stem(backbone: str) -> str:
    """A backbone's name as part of a file's: "timm.resnet18" for "timm:resnet18"."""
    return backbone.replace(":", ".").replace("/", "_")


def files_of(backbone: str, folder: Path) -> list[Path]:
    """Weight files in a folder that may be this backbone's, sorted."""
    stem = file_stem(backbone)
    return [
        path
        for path in (sorted(folder.glob(f"{stem}*")) if folder.is_dir() else [])
        # not resnet18's file for resnet1
        if path.suffix in SUFFIXES and path.is_file() and path.name[len(stem)] in ".-"
    ]


def find_file(backbone: str, sha256: str) -> Path | None:
    """The file of this content in the user's folder, among those that may be the backbone's."""
    folder = weights_folder()
    found = [] if folder is None else files_of(backbone, folder)
    return next((path for path in found if sha256_file(path) == sha256), None)
