"""timm models outside its registry: on the Hugging Face hub, or in a folder of one's own.

`timm:hf-hub:ORGANISATION/MODEL[@REVISION]` and `timm:local-dir:FOLDER`: a config.json says which
architecture a weight file belongs to, with which arguments, and how images are prepared. `CARDS` at
the foot has what a model's card asks for beside that; a folder has the card of the model whose name
it bears.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featcache.errors import UnknownName, WeightsError, first_line
from featcache.extraction.weights import Absent, OnHub, Published
from featcache.hashing import canonical_json, sha256_bytes
from featcache.store.spec import HUB, LOCAL_DIR, known_as
from featcache.store.weights_folder import file_stem, weights_folder

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,99}")
_CONFIG = "config.json"
_MEMBERS = ("model.safetensors", "pytorch_model.bin")
_MLP_LAYERS = ("Mlp", "GluMlp", "SwiGLU", "SwiGLUPacked")
# What a configuration may not ask of timm's factory: other files, other outputs.
_REFUSED = {
    "cache_dir", "checkpoint_path", "device", "dtype", "exportable", "features_only", "model_name",
    "no_jit", "out_indices", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "scriptable",
}  # fmt: skip
_READ = {
    "classifier", "crop_mode", "crop_pct", "first_conv", "fixed_input_size", "input_size",
    "interpolation", "license", "mean", "num_classes", "pool_size", "std",
}  # fmt: skip


@dataclass(frozen=True)
class Card:
    """What a model's card on the hub says.

    Attributes
    ----------
    dim : int
        Width of the vector, as the card takes it.
    millions : float
        Parameters, in millions.
    licence : str
        "" if it is not known here.
    gated : bool
        Whether access must be asked for.
    arguments : mapping
        What the network is made with, beside its config.json; layers by name.
    data : mapping
        How images are prepared, in place of what config.json says.
    pool : str
        How the card makes a vector of networks that give tokens; see `extraction.pooling`.
    pixels : int
        Side of the image that it sees.
    """

    dim: int
    millions: float
    licence: str
    gated: bool = True
    arguments: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    pool: str = ""
    pixels: int = 224


@dataclass(frozen=True)
class Described:
    """What a network of timm is made by.

    Attributes
    ----------
    config : timm.models.PretrainedCfg
    arguments : mapping or None
        Those of `create_model`, as plain data; None for a model of timm's registry.
    pool : str
        The pooling that stands for its own, "" for its own.
    """

    config: Any
    arguments: Mapping[str, Any] | None = None
    pool: str = ""

    @property
    def digest(self) -> str:
        """What a key says of it; "" for a model of the registry, whose name says all."""
        if self.arguments is None:
            return ""
        made = {"architecture": self.config.architecture, "arguments": dict(self.arguments)}
        return sha256_bytes(canonical_json(made).encode())

    def options(self) -> dict[str, Any]:
        """The arguments of `create_model`."""
        import timm.layers

        if self.arguments is None:
            return {}
        made = dict(self.arguments)
        if "mlp_layer" in made:
            made["mlp_layer"] = getattr(timm.layers, made["mlp_layer"])
        return made | {"pretrained_cfg": self.config}


def is_elsewhere(name: str) -> bool:
    """Whether a backbone's name is one of these."""
    return name.startswith((HUB, LOCAL_DIR))


def card_of(name: str) -> Card | None:
    """The model card that is known here, by the repository's or folder's name."""
    if name.startswith(HUB):
        return next((card for one, card in CARDS.items() if _same(one, _address(name)[0])), None)
    last = known_as(name).removeprefix(LOCAL_DIR)
    return next((c for one, c in CARDS.items() if _same(one.partition("/")[2], last)), None)


def published_elsewhere(name: str, folder: Path | None = None) -> dict[str, Published]:
    """The one weight file of a model, by its tag: the revision, or "folder"."""
    if name.startswith(HUB):
        repository, revision = _address(name)
        tag = revision or "main"
        url = f"https://huggingface.co/{repository}/resolve/{tag}/{_MEMBERS[0]}"
        stem = file_stem(name)
        return {tag: _OfRepository(tag, url, stem, repository, revision, _MEMBERS[0])}
    found = _find_folder(name, folder)
    return {} if found is None else {"folder": _OfFolder("folder", str(found / _MEMBERS[0]), found)}


def describe(name: str, folder: Path | None, absent: Absent) -> Described:
    """Read a model's configuration, and add what its card asks for.

    Parameters
    ----------
    name : str
    folder : Path, optional
        Where a folder is looked for that is not there by its path; by default FEATCACHE_WEIGHTS.
    absent : {"download", "refuse", "name"}
        Only "download" uses the network.

    Raises
    ------
    WeightsError
        If it is not at hand, or can't be used.
    UnknownName
        If the name is none.
    """
    path = _config_of_repository(name, absent) if name.startswith(HUB) else _config_in(name, folder)
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} can't be read: {first_line(error)}", "Fetch it anew.") from None
    return _described(name, path, plain, card_of(name))


def _described(name: str, path: Path, plain: Any, card: Card | None) -> Described:
    import timm

    if not isinstance(plain, dict) or not isinstance(plain.get("architecture"), str):
        of_others = isinstance(plain, dict) and ("model_type" in plain or "architectures" in plain)
        raise WeightsError(
            f"{path} is no configuration of timm: it names no architecture"
            f"{'; it is of the library transformers' if of_others else ''}",
            "Only timm's models can be opened by such a name.",
        )
    architecture = plain["architecture"]
    if not timm.is_model(architecture):
        raise WeightsError(
            f"{name}: timm {timm.__version__} has no architecture {architecture!r}",
            "Update it: pip install -U timm",
        )
    arguments = {**_mapping(plain, "model_args", path), **(card.arguments if card else {})}
    arguments.pop("num_classes", None)
    refused = sorted(_REFUSED & set(arguments))
    layer = arguments.get("mlp_layer", _MLP_LAYERS[0])
    if refused or layer not in _MLP_LAYERS:
        odd = f"mlp_layer {layer!r}" if layer not in _MLP_LAYERS else refused[0]
        raise WeightsError(
            f"{path}: model_args with {odd} can't be followed",
            f"Take it out; of mlp_layer these are known: {', '.join(_MLP_LAYERS)}.",
        )
    said = _mapping(plain, "pretrained_cfg", path) if "pretrained_cfg" in plain else plain
    data = {one: value for one, value in said.items() if one in _READ and value is not None}
    data |= dict(card.data) if card else {}
    if arguments.get("dynamic_img_size"):
        data["fixed_input_size"] = False
    side = arguments.get("img_size")
    if isinstance(side, int) and data.get("fixed_input_size"):
        data["input_size"] = (3, side, side)
    _check_data(path, data)
    plain_data: Any = {one: tuple(v) if isinstance(v, list) else v for one, v in data.items()}
    config = timm.models.PretrainedCfg(architecture=architecture, **plain_data)
    return Described(config, arguments, card.pool if card else "")


def _mapping(plain: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    found = plain.get(name) or {}
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: {name} is no mapping", "Fetch it anew.")
    return found


def _check_data(path: Path, data: Mapping[str, Any]) -> None:
    for name, kind in (("mean", int | float), ("std", int | float), ("input_size", int)):
        value = data.get(name, (1, 1, 1))
        three = isinstance(value, list | tuple) and len(value) == 3
        if not three or not all(isinstance(v, kind) for v in value) or min(value) < 0:
            raise WeightsError(f"{path}: {name} is {value!r}, not three numbers", "Fetch it anew.")
    share = data.get("crop_pct", 1.0)
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise WeightsError(f"{path}: crop_pct is {share!r}, not above 0 to 1", "Fetch it anew.")


def _address(name: str) -> tuple[str, str | None]:
    """Repository and revision, neither of which leads out of the hub's cache folder."""
    repository, at, revision = name.removeprefix(HUB).partition("@")
    odd = ".." in name or "--" in repository or repository.endswith(".git")
    if odd or not _REPOSITORY.fullmatch(repository):
        raise UnknownName(
            f"{name!r} names no repository of the hub", f"For instance {HUB}MahmoodLab/UNI2-h"
        )
    if at and not _REVISION.fullmatch(revision):
        raise UnknownName(
            f"{name!r}: {revision!r} is no branch, tag or commit", f"{HUB}{repository}@main"
        )
    return repository, revision or None


def _find_folder(name: str, folder: Path | None) -> Path | None:
    last = known_as(name).removeprefix(LOCAL_DIR)
    own = folder or weights_folder()
    places = [Path(name.removeprefix(LOCAL_DIR)).expanduser(), *([own / last] if own else [])]
    return next((place for place in places if place.is_dir()), None)


def _config_in(name: str, folder: Path | None) -> Path:
    found = _find_folder(name, folder)
    if found is None:
        own = folder or weights_folder()
        raise WeightsError(
            f"{name}: no such folder{f', nor in {own}' if own else ''}",
            "Give its path, or pass with --weights-dir the folder that it is in.",
        )
    if not (found / _CONFIG).is_file():
        raise WeightsError(
            f"{found} has no {_CONFIG}",
            "It comes with the weights on the hub; it names timm's architecture.",
        )
    return found / _CONFIG


def _config_of_repository(name: str, absent: Absent) -> Path:
    repository, revision = _address(name)
    kept = _kept(repository, revision, (_CONFIG,))
    if kept is not None:
        return kept
    why = "it is not at hand (extract downloads it)"
    if absent == "download":
        try:
            return _download(repository, revision, (_CONFIG,))
        except OSError as error:
            why = f"it can't be downloaded: {first_line(error)}"
    raise WeightsError(f"{name} needs its {_CONFIG}, and {why}", _advice(repository, revision))


def _kept(repository: str, revision: str | None, members: Sequence[str]) -> Path | None:
    """The first of these files that is in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repository, one, revision=revision) for one in members)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def _download(repository: str, revision: str | None, members: Sequence[str]) -> Path:
    """The first of these files that the repository has, in the hub's cache.

    Raises
    ------
    OSError
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        for member in members[:-1]:
            try:
                return Path(hf_hub_download(repository, member, revision=revision))
            except LocalEntryNotFoundError:  # no way to the hub
                raise
            except EntryNotFoundError:
                continue
        return Path(hf_hub_download(repository, members[-1], revision=revision))
    except Exception as error:  # what its ways of transport raise has no common base
        raise OSError(first_line(error)) from None


def _advice(repository: str, revision: str | None) -> str:
    """How to come by the files of a repository."""
    card = next((card for one, card in CARDS.items() if _same(one, repository)), None)
    gated = "the model is gated" if card and card.gated else "if the model is gated"
    return (
        f"- {gated}: sign in at https://huggingface.co/{repository}, accept its terms, then: "
        "hf auth login (or set HF_TOKEN)\n"
        f"- or fetch {_CONFIG} and {' or '.join(_MEMBERS)} elsewhere and put both into\n"
        f"  {_by_hand(repository, revision)}\n"
        f"- or into any folder called {repository.partition('/')[2]}, and name that: "
        f"{LOCAL_DIR}FOLDER\n"
        "Offline all works once they are there."
    )


def _by_hand(repository: str, revision: str | None) -> Path:
    """The folder in the hub's cache that files of this revision are looked for in."""
    from huggingface_hub.constants import HF_HUB_CACHE

    kept = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    commit = kept / "refs" / (revision or "main")
    name = commit.read_text().strip() if commit.is_file() else revision or "main"
    return kept / "snapshots" / name


def _same(one: str, other: str) -> bool:
    return one.lower() == other.lower()


@dataclass(frozen=True)
class _OfRepository(OnHub):
    """The weight file of a repository: safetensors, or else tensors as torch.save packs them."""

    @property
    def fetched_by(self) -> str:
        return "extract downloads them"

    def kept(self) -> Path | None:
        return _kept(self.repository, self.revision, _MEMBERS)

    def fetch(self) -> Path:
        return _download(self.repository, self.revision, _MEMBERS)

    def advice(self, architecture: str, own: Path | None) -> str:
        return _advice(self.repository, self.revision)


@dataclass(frozen=True)
class _OfFolder(Published):
    """The weight file in a folder with a config.json."""

    folder: Path

    @property
    def file(self) -> str:
        return f"{file_stem(known_as(f'{LOCAL_DIR}{self.folder}'))}.safetensors"

    @property
    def place(self) -> Path:
        return self.folder

    def kept(self) -> Path | None:
        return next(_weight_files(self.folder), None)

    def fetch(self) -> Path:
        raise OSError(f"{self.folder} has no {' or '.join(_MEMBERS)}")

    def advice(self, architecture: str, own: Path | None) -> str:
        return f"Put {' or '.join(_MEMBERS)} into {self.folder}, or pass --weights FILE."


def _weight_files(folder: Path) -> Iterator[Path]:
    """Those that are meant: of the usual names, else the only one."""
    yield from (folder / member for member in _MEMBERS if (folder / member).is_file())
    others = [path for end in ("safetensors", "bin", "pth") for path in folder.glob(f"*.{end}")]
    if len(others) == 1:
        yield others[0]


# By repository. Where nothing is said, config.json alone makes the network.
_UNI = {"init_values": 1e-5, "dynamic_img_size": True}
_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
_H_OPTIMUS = {"init_values": 1e-5, "dynamic_img_size": False}
_STAINS = {"mean": (0.707223, 0.578729, 0.703617), "std": (0.211883, 0.230117, 0.177517)}
_KAIKO = "kaiko_ai_towards_large_pathology_fms"
_ND = "cc-by-nc-nd-4.0"
CARDS: dict[str, Card] = {
    # https://huggingface.co/MahmoodLab/UNI2-h
    "MahmoodLab/UNI2-h": Card(1536, 681, _ND, arguments=_UNI | _SWIGLU | {
        "img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536,
        "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8,
    }),
    # https://huggingface.co/MahmoodLab/UNI
    "MahmoodLab/UNI": Card(1024, 303, _ND, arguments=_UNI),
    # https://huggingface.co/paige-ai/Virchow2 and …/Virchow: class token and mean of the patches
    "paige-ai/Virchow2": Card(2560, 631, _ND, arguments=_SWIGLU, pool="cls+mean"),
    "paige-ai/Virchow": Card(2560, 631, "apache-2.0", arguments=_SWIGLU, pool="cls+mean"),
    # https://huggingface.co/bioptimus/H-optimus-1, …/H-optimus-0 and …/H0-mini
    "bioptimus/H-optimus-1": Card(1536, 1135, _ND, True, _H_OPTIMUS, _STAINS),
    "bioptimus/H-optimus-0": Card(1536, 1135, "apache-2.0", True, _H_OPTIMUS, _STAINS),
    "bioptimus/H0-mini": Card(1536, 86, _ND, arguments=_SWIGLU, pool="cls+mean"),
    # https://huggingface.co/prov-gigapath/prov-gigapath: 256 pixels, of which the middle 224
    "prov-gigapath/prov-gigapath": Card(1536, 1135, "apache-2.0", data={
        "crop_pct": 0.875, "interpolation": "bicubic",
    }),
    # https://huggingface.co/1aurent: Kaiko's and Lunit's, which need no arguments; other sizes than
    # those that they were trained on are dynamic in Kaiko's own evaluations
    f"1aurent/vit_large_patch14_reg4_dinov2.{_KAIKO}": Card(
        1024, 304, "", False, {"dynamic_img_size": True}, pixels=518
    ),
    f"1aurent/vit_base_patch8_224.{_KAIKO}": Card(768, 86, "", False, {"dynamic_img_size": True}),
    f"1aurent/vit_base_patch16_224.{_KAIKO}": Card(768, 86, "", False, {"dynamic_img_size": True}),
    f"1aurent/vit_small_patch8_224.{_KAIKO}": Card(384, 22, "", False, {"dynamic_img_size": True}),
    f"1aurent/vit_small_patch16_224.{_KAIKO}": Card(384, 22, "", False, {"dynamic_img_size": True}),
    "1aurent/vit_small_patch8_224.lunit_dino": Card(384, 22, "", False),
    "1aurent/vit_small_patch16_224.lunit_dino": Card(384, 22, "", False),
}  # fmt: skip
