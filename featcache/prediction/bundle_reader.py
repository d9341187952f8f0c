"""Bundle reader: the model that a user means, its facts held together, its backbones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featcache.errors import DataError, RecipeError, WeightsError
from featcache.extraction.backbone import PENULTIMATE, Backbone
from featcache.extraction.preprocess import Preprocess, from_plain
from featcache.extraction.registry import open_backbone
from featcache.extraction.state_dict import find_tuned
from featcache.extraction.weight_files import candidates
from featcache.extraction.weights import Absent
from featcache.hashing import sha256_file
from featcache.reporting.bundle import FACTS, FOLDER, read_facts
from featcache.reporting.refit_command import refit_remedy
from featcache.reporting.run_reader import find_run
from featcache.store.key import IMPORT
from featcache.store.spec import HUB, LOCAL_DIR, read_layer
from featcache.store.weights_folder import VARIABLE

if TYPE_CHECKING:
    import torch


_OF_A_BACKBONE = ("library", "weights", "weights_sha256", "layer", "precision", "dtype")


def model_facts(folder: Path) -> dict[str, Any]:
    """Read model.json, for use.

    Raises
    ------
    DataError
        As `read_facts`; and for an entry that no model has, or a file that is to be loaded and
        whose digest isn't listed.
    """
    facts = read_facts(folder)
    wrong = next(_wrong(facts), "")
    if wrong:
        raise DataError(
            f"{folder / FACTS} is damaged, or was changed: {wrong}",
            "Copy the whole folder again, or fit it again.",
        )
    return facts


def _wrong(facts: Mapping[str, Any]) -> Iterator[str]:
    """Every fault found, in words; what comes later counts on what came before."""
    classes, backbones, trained = facts["classes"], facts["backbones"], facts["trained_on"]
    if not classes or not all(isinstance(label, str) for label in classes):
        yield "its classes are no texts"
    if classes != sorted(set(classes)):  # probabilities are placed by their order
        yield "its classes are not in order"
    if not isinstance(trained.get("rows"), int) or not isinstance(trained.get("what"), str):
        yield "it doesn't say what it was trained on"
    if not backbones or not all(map(_is_backbone, backbones)):
        yield "an entry of its backbones is not whole"
    parts, named = facts.get("parts", []), list[str]()
    for what in ("weights", "quantised"):
        names = facts.get(what, {})
        if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
            yield f"its {what} are no names of files"
        named += names.values()
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        yield "its parts are no list of entries"
    if facts["kind"] == "features" and "parts" not in facts:
        yield "its parts are missing"
    if facts["kind"] == "finetuned":
        kinds = {"fusion": str, "settings": dict, "seed": int}
        yield from (
            f"its {n} is missing" for n, k in kinds.items() if not isinstance(facts.get(n), k)
        )
    for name in _loaded(facts, named, parts):
        if name not in facts["files"]:
            yield f"{name!r} is not among its files"


def _is_backbone(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return False
    if entry.get("key") is None:  # of vectors that came from no cache: said where it is opened
        return True
    texts = all(isinstance(entry.get(name), str) for name in _OF_A_BACKBONE)
    return texts and isinstance(entry.get("preprocess"), dict) and isinstance(entry.get("dim"), int)


def _loaded(
    facts: Mapping[str, Any], named: Sequence[str], parts: list[dict[str, Any]]
) -> Iterator[str]:
    """Names of the files that are read to label images."""
    yield from named
    if facts["kind"] == "finetuned":
        yield "network.safetensors"
        yield from (find_tuned(facts["files"], entry["name"]) for entry in facts["backbones"])
        return
    yield "pipeline.skops"
    for part in parts:
        yield str(part.get("file")) if part.get("kind") == "booster" else "networks.safetensors"


def find_model(run: str | Path, reports: str | Path = "reports") -> Path:
    """The bundle's folder of a run.

    Parameters
    ----------
    run : str or Path
        A run folder, its `model/` folder or a copy of that, or the beginning of a run folder's
        name below `reports`, see `find_run`.
    reports : str or Path, default "reports"

    Returns
    -------
    Path
        A folder that holds model.json.

    Raises
    ------
    UnknownName
        If the name means no run, or several.
    DataError
        If the run has no model; it names the command that gives it one.
    """
    folder = Path(run).expanduser()
    if not folder.is_dir():
        folder = find_run(str(run), reports)
    if (folder / FACTS).is_file():
        return folder
    if (folder / FOLDER / FACTS).is_file():
        return folder / FOLDER
    if (folder / "run.json").is_file():
        raise DataError(f"{folder} has no model", refit_remedy(folder, again=False))
    raise DataError(
        f"{folder} is neither a run folder nor a model",
        "Pass a folder that holds run.json or model.json.",
    )


def open_recorded(
    recorded: Mapping[str, Any],
    bundled: Path | None = None,
    weights_dir: str | Path | None = None,
    own: Backbone | None = None,
    absent: Absent = "download",
    quantised: Path | None = None,
) -> Backbone:
    """The backbone of one entry of a bundle's `backbones`.

    Parameters
    ----------
    recorded : mapping
        See `reporting.bundle`.
    bundled : Path, optional
        A weight file that comes with the bundle, whose digest was checked.
    weights_dir : str or Path, optional
        A folder of weight files, searched first (default: FEATCACHE_WEIGHTS).
    own : Backbone, optional
        An object of the user's own under that name, in place of a registered one.
    absent : {"download", "refuse"}, default "download"
        What to do if published weights are not at hand.
    quantised : Path, optional
        For int8, the file of its network, whose digest was checked.

    Raises
    ------
    WeightsError
        If weights with the recorded sha256 can't be found.
    DataError
        If the entry can't be followed.
    """
    if recorded.get("key") is None:
        raise DataError(
            f"the model doesn't say how {recorded.get('name')} embedded its images",
            "It was fitted on features that came from no cache; it can only take such features.",
        )
    if recorded.get("library") == IMPORT:
        raise DataError(
            f"the model needs {recorded.get('name')}, whose vectors another tool has made "
            f"(origin: {recorded.get('weights')}): new images can't be embedded here",
            "Fit a model on backbones that featcache extracts, to label new images with it.",
        )
    try:
        preprocess = preprocess_of(recorded)
        name, layer = recorded["name"], read_layer(recorded["layer"] or PENULTIMATE)
        wanted, tag, library = (recorded[k] for k in ("weights_sha256", "weights", "library"))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the model's entry of a backbone is damaged: {error!r}") from None
    if name.startswith(HUB):  # no repository is asked because a file names it
        absent = "refuse"
    if name.startswith(LOCAL_DIR) and not {"/", "\\"}.isdisjoint(name):
        raise DataError(f"the model's entry of a backbone names a path: {name}", "Fit it again.")
    opened = own or open_backbone(
        name,
        weights=str(bundled or _search(name, wanted, tag, weights_dir)),
        weights_dir=weights_dir,
        image_size=preprocess.crop,
        absent=absent,
        **layer,
    )
    if bundled is None and opened.weights_sha256 != wanted:
        raise _other_weights(name, tag, wanted, [f"{opened.weights_sha256[:8]}… was found"])
    if opened.library != library:
        raise DataError(f"{name} was {library}'s, and is {opened.library}'s here")
    same = replace(
        opened,
        weights=tag,
        weights_sha256=wanted,
        preprocess=preprocess,
        calibration=str(recorded.get("calibration", "")),
        quantised=None if quantised is None else quantised.read_bytes,
    )
    if same.key(recorded["precision"], recorded["dtype"]).digest != recorded["key"]:
        raise DataError(
            f"the model's entry of {name} doesn't agree with its key",
            "It was changed by hand, or written by another version of featcache: fit it again.",
        )
    return same


def whole_network(
    recorded: Mapping[str, Any], weights_dir: str | Path | None = None
) -> torch.nn.Module:
    """The network of a recorded backbone up to its classifier, whatever layer is taken from it.

    Its weights must be at hand.
    """
    from featcache.extraction.pooling import TokenPooling

    same = open_recorded(recorded, None, weights_dir, absent="refuse")
    tag = recorded["weights"]
    network = open_backbone(
        same.name,
        weights=str(_search(same.name, same.weights_sha256, tag, weights_dir)),
        weights_dir=weights_dir,
        image_size=same.preprocess.crop,
        absent="refuse",
    ).build()
    # One that gives tokens comes with the pooling of its card.
    return network.network if isinstance(network, TokenPooling) else network


def preprocess_of(recorded: Mapping[str, Any]) -> Preprocess:
    """The preprocessing of one entry of a bundle's `backbones`.

    Raises
    ------
    DataError
        If images aren't prepared in that way any more: other pixels would be other vectors.
    """
    try:
        return from_plain(recorded["preprocess"])
    except RecipeError as error:
        raise DataError(
            f"{recorded.get('name')} saw images that this featcache doesn't prepare in the same "
            f"way: {error.problem}",
            "Extract them again and fit it again, or use the featcache that fitted it.",
        ) from None


def _search(name: str, wanted: str, tag: str, weights_dir: str | Path | None) -> str | Path:
    """What to open the backbone with: "random:SEED", a file with that sha256, or the tag."""
    if wanted.startswith("random:"):
        return wanted
    seen = []
    for path in candidates(name, weights_dir):
        digest = sha256_file(path)
        if digest == wanted:
            return path
        seen.append(f"{path} ({digest[:8]}…)")
    if tag == "local" or seen:
        raise _other_weights(name, tag, wanted, seen)
    return tag  # published: found by its own name, or downloaded


def _other_weights(name: str, tag: str, wanted: str, seen: list[str]) -> WeightsError:
    found = f"found: {', '.join(seen)}" if seen else "no file of this backbone was found"
    return WeightsError(
        f"the model was trained on {name} with weights of sha256 {wanted[:8]}… ({tag}); {found}",
        f"Other weights would give other vectors. Put that file into a folder and pass "
        f"--weights-dir FOLDER or set {VARIABLE}; or take a bundle that holds its weights: "
        f"featcache export RUN --standalone -o FOLDER",
    )
