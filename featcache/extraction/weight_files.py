"""Weight files: which are at hand and where, whether they are whole, and taking in another."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from featcache.atomic import replacing
from featcache.errors import WeightsError
from featcache.extraction.backbone import PENULTIMATE
from featcache.extraction.registry import BACKBONES, family_of
from featcache.extraction.weights import PACKAGED, Packaged, Published, hub_folder, search
from featcache.hashing import sha256_file
from featcache.store.weights_folder import VARIABLE, file_stem, files_of, weights_folder


@dataclass(frozen=True)
class WeightFile:
    """What `--weights auto` would take for a backbone, without a download.

    Attributes
    ----------
    backbone : str
    wanted : Published
        The library's default.
    path : Path or None
        None where nothing is at hand.
    problem : str
        Why it can't be said which file, "" where it can.
    """

    backbone: str
    wanted: Published
    path: Path | None
    problem: str = ""

    @property
    def package(self) -> Packaged | None:
        """The package that the file came with."""
        packaged = PACKAGED.get(self.backbone)
        return packaged if packaged and self.path and packaged.is_at(self.path) else None

    @property
    def official(self) -> bool:
        """Whether it has the name of the library's own file, which begins its hash."""
        return self.path is not None and self.wanted.is_at(self.path)


def locate(backbone: str, weights_dir: str | Path | None = None) -> WeightFile:
    """Find a backbone's weight file by its name, as `find_weights` does; reads nothing.

    Raises
    ------
    UnknownName
        If there is no such backbone.
    WeightsError
        If none of its weights are published as a file that is safe to read.
    """
    packaged = PACKAGED.get(backbone)
    wanted = packaged.default if packaged and importlib.util.find_spec("timm") else None
    wanted = wanted or next(iter(family_of(backbone).published(backbone).values()), None)
    if wanted is None:
        raise WeightsError(
            f"no weights of {backbone} are published in a form that is safe to read",
            "extract --weights FILE takes a file of your own, random:0 none.",
        )
    own = weights_folder(weights_dir)
    try:
        return WeightFile(backbone, wanted, search(backbone, wanted, own))
    except WeightsError as error:
        return WeightFile(backbone, wanted, None, error.problem)


def locate_all(
    backbones: Iterable[str] = (), weights_dir: str | Path | None = None
) -> list[WeightFile]:
    """`locate` for these; else for torchvision's backbones, and those with an installed package."""
    return [locate(name, weights_dir) for name in backbones or (*BACKBONES, *packaged_at_hand())]


def packaged_at_hand() -> list[str]:
    """Backbones whose weights an installed package ships."""
    if importlib.util.find_spec("timm") is None:  # whose models they are
        return []
    return [name for name, packaged in PACKAGED.items() if packaged.kept()]


def candidates(backbone: str, weights_dir: str | Path | None = None) -> list[Path]:
    """Every file at hand that may be this backbone's, in the order in which they are searched."""
    own = weights_folder(weights_dir)
    folders = [hub_folder()] if own is None else [own, hub_folder()]
    found = [path for folder in folders for path in files_of(backbone, folder)]
    kept = (published.kept() for published in family_of(backbone).published(backbone).values())
    return list(dict.fromkeys([*found, *filter(None, kept)]))


def verify(file: WeightFile) -> str:
    """Load a file into its architecture, and hold it against the hash in a published name.

    Returns
    -------
    str
        What was checked.

    Raises
    ------
    WeightsError
        If it is damaged, is another file than its name says, or belongs to another network.
    """
    if file.path is None:
        raise WeightsError(
            file.problem or f"{file.backbone} has no weights at hand ({file.wanted.file})",
            f"featcache weights add {file.backbone} FILE, or {file.wanted.url}",
        )
    _load(file.backbone, file.path)
    checked = "loads into the network"
    published = file.package or (file.wanted if file.official else None)
    if published and published.hash_prefix:
        return f"{checked}; sha256 begins {published.hash_prefix}, as published"
    return f"{checked}; no published hash to hold it against"


def add(backbone: str, source: Path, weights_dir: str | Path | None, replace: bool) -> Path:
    """Check a weight file and copy it, all or nothing, to where `--weights auto` finds it.

    Parameters
    ----------
    backbone : str
    source : Path
        .safetensors, or .pth with tensors only.
    weights_dir : str or Path, optional
        By default the folder in FEATCACHE_WEIGHTS, else torch's hub folder, which takes
        published files only.
    replace : bool
        Overwrite another file of that name.

    Returns
    -------
    Path
        Of the copy.
    """
    wanted = locate(backbone, weights_dir).wanted
    _load(backbone, source)
    folder = weights_folder(weights_dir) or hub_folder()
    published = source.name in {p.file for p in family_of(backbone).published(backbone).values()}
    if weights_folder(weights_dir) is None and not (published and wanted.plain):
        raise WeightsError(
            f"{source.name} is not a file that the library publishes (that is {wanted.file}), "
            "or keeps under that name, and there is no folder for weights of your own",
            f"Pass --weights-dir FOLDER, or set {VARIABLE}; then use the same for extract.",
        )
    ending = ".safetensors" if source.suffix == ".safetensors" else ".pth"
    target = folder / (source.name if published else f"{file_stem(backbone)}{ending}")
    if target.exists() and not replace:
        if sha256_file(target) == sha256_file(source):
            return target
        raise WeightsError(f"{target} is there, and differs", "Pass --replace to overwrite it.")
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
    return target


def _load(backbone: str, path: Path) -> None:
    """Build the network with this file; `open` holds a published name against its hash."""
    family_of(backbone).open(backbone, str(path), None, PENULTIMATE, None).build()
