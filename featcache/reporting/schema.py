"""Schema: what run.json and metrics.json hold, read and checked in one place; a run's names."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from featcache.atomic import regular
from featcache.errors import DataError, RecipeError, UnknownData
from featcache.fitting.grid import Candidate
from featcache.fitting.metrics import ACCURACY, Metric, positive_label
from featcache.fitting.significance import ALPHA, Winner
from featcache.fitting.splits import Fold, folds_to_json, is_leaky
from featcache.hashing import canonical_json, sha256_json, sha256_pieces
from featcache.images.manifest import ORIGIN_JSON, check_name
from featcache.reporting.places import known_places
from featcache.store.features import Features
from featcache.store.weights_folder import file_stem

Names = tuple[str, ...]  # at least one
Name = str  # of a data set: a folder is called so

FORMAT = 1
_LONGEST = 180  # bytes of a candidate's name; file systems take 255 for a folder's
_AT_ONCE = 2**14  # rows
# field -> in metrics.json
_SCORES = {"metrics": "mean", "sd": "sd", "seed_sd": "seed_sd", "interval": "interval"}


@dataclass(frozen=True)
class Family:
    """What the tests among runs on the same rows come to.

    Attributes
    ----------
    size : int
        Runs that were tested against one another.
    detectable : float
        The smallest difference from the best that the test could have shown, see
        `Differences.detectable`.
    winner : Winner
        What the best is worth without the luck of having been chosen.
    """

    size: int
    detectable: float
    winner: Winner


@dataclass(frozen=True)
class Score:
    """What a run is ranked by, if not by its accuracy: the value, and its 95 % interval.

    NaN if the run has none, as an AUC without probabilities.
    """

    metric: Metric
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Run:
    """What run.json and metrics.json say of a run: the fields are their entries, by the same name.

    run.json may hold more; it is left alone.

    Attributes
    ----------
    folder : Path
    data, fusion, head : str
    backbones : tuple of str
    split : str
        How it was tested: "test split", "5 folds" or "3 x 5 folds".
    rows : str
        Digest of the rows and folds: runs with equal ones were tested on the same.
    tested : int
        Test rows of all folds together, each counted once.
    metrics, sd : dict of str to float
        Mean over the folds, and its standard deviation; None where undefined.
    interval : (low, high)
        95 % interval of the accuracy.
    fit_seconds, predict_seconds : float
        One fit and its predictions, as the mean over the folds.
    created : str
    p : float or None
        How likely chance alone makes it differ this much from the best of the runs it was
        compared with, adjusted for all their pairs; None for the best and where not tested. Not
        kept in the folder: it depends on what else is there.
    family : Family or None
        Of the best: what the tests come to. Not kept either.
    ranked : Score or None
        What it is ranked by; None for the accuracy. Not kept either.
    leaky : bool
        Whether rows of one image, or group, were let to both sides of the split on purpose.
    select : str
        The selection of columns before the head; "" for none.
    tune : int
        Settings tried in the inner loop; 0 where nothing was tuned.
    view : tuple of str
        The views that trained beside their images, sorted.
    balance : bool
        Whether of the views only those trained that bring each class to the most frequent one's
        count.
    seed : int
    settings : dict
        What was set besides the defaults, and how columns were selected and settings tried.
    keys : dict of str to str
        Backbone -> digest of its cache key.
    classes : tuple of str
        In the order of the probabilities; () if they are not known.
    positive : str
        The positive one of two classes; "" if they are not two.
    seeds : int
        How many it was fitted with; 0 if it takes none, or that is not on record.
    seed_sd : dict of str to float
        Each metric's standard deviation over the seeds; empty for fewer than two.
    versions, machine : dict
        What it was fitted with, and on.
    group, gate, protocol : str
        As `compare` was called; "" if it was not, or with the default.
    strict, near_duplicates : bool
    opened : tuple of str
        With which options the command line opened the images.
    cache : str
        The cache folder; "" for the usual one.
    extraction_seconds : dict of str to float
        By backbone; empty if that isn't known of all.
    command : str
        What makes the run again, if that is not a plain `featcache fit`.
    stage : str
        "finetuned" for a fine-tuning.
    rivals : tuple of str
        Of a fine-tuning: keys of the features that its weights gave before.
    cost : dict
        Of a fine-tuning: seconds and energy.
    """

    folder: Path
    data: Name
    backbones: Names
    fusion: str
    head: str
    split: str
    rows: str
    tested: int
    metrics: dict[str, float | None]
    sd: dict[str, float | None]
    interval: tuple[float, float]
    fit_seconds: float
    created: str
    p: float | None = None
    family: Family | None = field(default=None, repr=False, compare=False)
    ranked: Score | None = field(default=None, repr=False, compare=False)
    leaky: bool = False
    select: str = ""
    tune: int = 0
    view: tuple[str, ...] = ()
    balance: bool = False
    # What redoes a run, and what its page tells; equal runs may differ in it.
    predict_seconds: float = field(default=0.0, repr=False, compare=False)
    seed: int = field(default=0, repr=False, compare=False)
    settings: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    keys: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    classes: tuple[str, ...] = field(default=(), repr=False, compare=False)
    positive: str = field(default="", repr=False, compare=False)
    seeds: int = field(default=0, repr=False, compare=False)
    seed_sd: dict[str, float | None] = field(default_factory=dict, repr=False, compare=False)
    versions: dict[str, str | None] = field(default_factory=dict, repr=False, compare=False)
    machine: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    group: str = field(default="", repr=False, compare=False)
    gate: str = field(default="", repr=False, compare=False)
    protocol: str = field(default="", repr=False, compare=False)
    strict: bool = field(default=False, repr=False, compare=False)
    near_duplicates: bool = field(default=True, repr=False, compare=False)
    opened: tuple[str, ...] = field(default=(), repr=False, compare=False)
    cache: str = field(default="", repr=False, compare=False)
    extraction_seconds: dict[str, float] = field(default_factory=dict, repr=False, compare=False)
    command: str = field(default="", repr=False, compare=False)
    stage: str = field(default="", repr=False, compare=False)
    rivals: tuple[str, ...] = field(default=(), repr=False, compare=False)
    cost: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def tie(self) -> bool:
        """Whether the difference to the best may well be chance."""
        return self.p is not None and self.p >= ALPHA

    @property
    def candidate(self) -> str:
        """What was fitted, whatever rows it was given: "resnet18+mobilenet_v2.concat.mlp"."""
        named = (self.backbones, self.fusion, self.head, self.select, self.tune)
        return Candidate(*named).name

    @property
    def name(self) -> str:
        """The candidate and the views that it was trained with, see `run_name`."""
        return run_name(self.candidate, self.view, self.balance)

    @property
    def by(self) -> Metric:
        """What it is ranked by."""
        return ACCURACY if self.ranked is None else self.ranked.metric

    @property
    def score(self) -> float:
        """The value of what it is ranked by; NaN if it has none."""
        return self.metric("accuracy") if self.ranked is None else self.ranked.value

    @property
    def score_interval(self) -> tuple[float, float]:
        """95 % interval of `score`."""
        return self.interval if self.ranked is None else (self.ranked.low, self.ranked.high)

    @property
    def decimals(self) -> int:
        """How many its score's interval supports, for a reader."""
        return decimals(*self.score_interval)

    def metric(self, name: str) -> float:
        """A metric's mean, NaN where it has none."""
        value = self.metrics.get(name)
        return float("nan") if value is None else value


def decimals(low: float, high: float) -> int:
    """How many decimals a score with this 95 % interval supports.

    Those up to the first digit of the interval's half width, so that 0.9412 in 0.92 … 0.96 is 0.94;
    from 2 to 4, and 4 if there is no interval.
    """
    half = (high - low) / 2
    if not 0 < half < math.inf:
        return 4
    return min(max(-math.floor(math.log10(half)), 2), 4)


def read_run(folder: Path) -> Run:
    """Read run.json and metrics.json of a run folder.

    Raises
    ------
    DataError
        If it is no run folder; UnknownData if it is not there.
    """
    if not folder.is_dir():
        raise UnknownData(f"no run folder {folder}", "Name one below reports/.")
    try:
        facts, scores = (_load(folder / name) for name in ("run.json", "metrics.json"))
        if isinstance(facts, dict):
            facts |= known_places(read_json(folder / ORIGIN_JSON))
        return run_of(folder, facts, scores)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{folder} is no run folder: {type(error).__name__} {error}",
            "A run folder holds run.json and metrics.json; delete it if it is of no use.",
        ) from None


def read_folds(folder: Path) -> list[dict[str, Any]]:
    """The folds of metrics.json, as `fold_facts` made them; without what is none."""
    folds = read_json(folder / "metrics.json").get("folds")
    return [fold for fold in folds if isinstance(fold, dict)] if isinstance(folds, list) else []


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a folder that need not be whole; empty if it can't be read."""
    try:
        value = _load(path)
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _load(path: Path) -> Any:
    value = json.loads(regular(path).read_text(encoding="utf-8"))
    json.dumps(value, ensure_ascii=False).encode()  # refuses halves of characters
    return value


def run_of(folder: Path, facts: Any, scores: Any) -> Run:
    """The run whose run.json and metrics.json hold these values.

    Raises
    ------
    TypeError
        If a value has another type than its field; it names the value.
    KeyError
        If one is missing.
    """
    for name, value in (("run.json", facts), ("metrics.json", scores)):
        if not isinstance(value, dict):
            raise TypeError(f"{name} holds no JSON object")
    found: dict[str, Any] = {"folder": folder}
    for one in fields(Run):
        if one.name in ("folder", "p", "family", "ranked"):
            continue
        source, name = (scores, _SCORES[one.name]) if one.name in _SCORES else (facts, one.name)
        needed = one.default is MISSING and one.default_factory is MISSING
        value = source[name] if needed else source.get(name)
        if value is None and not needed:
            continue
        kind, fits = _KINDS[str(one.type)]
        if not fits(value):
            raise TypeError(f"{name} is {str(value)[:60]!r}, not {kind}")
        found[one.name] = tuple(value) if isinstance(value, list) else value
    classes = found.get("classes", ())
    if found.setdefault("positive", positive_label(classes)) not in ("", *classes):
        raise TypeError(f"positive is {found['positive'][:60]!r}, no class of the run")
    return Run(**found)


def run_name(candidate: str, view: Sequence[str], balance: bool) -> str:
    """A candidate's name, and what trained beside the images.

    For instance "resnet18.concat.mlp.views-hflip+rot90.balanced".
    """
    parts = [candidate, *([f"views-{'+'.join(view)}"] if view else []), *["balanced"] * balance]
    return ".".join(parts)


def run_label(run: Run) -> str:
    """For instance "resnet18 + mobilenet_v2 · concat · mlp · with hflip"."""
    fused = [run.fusion] if len(run.backbones) > 1 else []
    tuned = [f"tuned ({run.tune})"] if run.tune else []
    selected = [run.select] if run.select else []
    parts = [" + ".join(run.backbones), *fused, *selected, run.head, *tuned, trained_with(run)]
    return " · ".join(part for part in parts if part)


def trained_with(run: Run) -> str:
    """What trained beside the images: "with hflip, rot90, balanced"; "" for nothing."""
    views = f"with {', '.join(run.view)}" if run.view else ""
    return f"{views}, balanced" if views and run.balance else views


def settings_text(settings: Mapping[str, Any]) -> str:
    """For instance "head.hidden=512, seeds=3"."""
    return ", ".join(f"{name}={value}" for name, value in sorted(settings.items()))


def asides(runs: Sequence[Run]) -> list[str]:
    """What tells each of these runs from others with the same label: "hidden=512"; "" for most.

    The settings and the seed in which they differ; if they don't, the digest in the folder's name.
    """
    alike: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        alike.setdefault(run_label(run), []).append(place)
    found = [""] * len(runs)
    for places in (places for places in alike.values() if len(places) > 1):
        known = [runs[place].settings for place in places]
        names = {name for settings in known for name in settings}
        apart = [name for name in names if len({str(one.get(name)) for one in known}) > 1]
        last = [name.rpartition(".")[2] for name in apart]
        short = {a: b if last.count(b) == 1 else a for a, b in zip(apart, last, strict=True)}
        seeds = len({runs[place].seed for place in places}) > 1
        for place, settings in zip(places, known, strict=True):
            shown = {short[name]: settings[name] for name in apart if name in settings}
            shown |= {"seed": runs[place].seed} if seeds else {}
            found[place] = settings_text(shown)
        told = [found[place] for place in places]
        for place in (place for place in places if told.count(found[place]) > 1):
            digest = runs[place].folder.name.rpartition(".")[2]
            found[place] = f"{found[place]}, {digest}".lstrip(", ")
    return found


def labels(runs: Sequence[Run]) -> list[str]:
    """`run_label` of each, with its aside: "resnet18 · mlp (hidden=512)"."""
    return [_with(run_label(run), aside) for run, aside in zip(runs, asides(runs), strict=True)]


def called(run: Run, runs: Sequence[Run]) -> str:
    """A run's name, with its aside among these."""
    return _with(run.name, dict(zip(map(id, runs), asides(runs), strict=True))[id(run)])


def _with(name: str, aside: str) -> str:
    return f"{name} ({aside})" if aside else name


def folder_name(name: str, digest: str) -> str:
    """The run folder's name for a candidate's; a long one, as of many backbones, is shortened."""
    if len((own := file_stem(name)).encode()) <= _LONGEST:
        return f"{own}.{digest[:8]}"
    return f"{own.encode()[: _LONGEST - 60].decode(errors='ignore')}~{own[-20:]}.{digest[:16]}"


def run_digest(
    features: Features,
    rows: str,
    fusion: Any,
    head: Any,
    seed: int,
    settings: Mapping[str, Any],
) -> str:
    """A digest of all that a run's numbers depend on: equal means that there is nothing to redo.

    `fusion` and `head` are names, or what `Candidate.identity` says of objects.

    Raises
    ------
    RecipeError
        For a setting that is no plain number, text, list or mapping.
    """
    try:
        canonical_json(settings)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"the settings {dict(settings)} hold something that is no plain value: {error}",
            "Use numbers, text, true, false, or lists of them.",
        ) from None
    return sha256_json(
        {
            "format": FORMAT,
            "keys": features.keys,
            "backbones": features.names,
            "rows": rows,
            "fusion": fusion,
            "head": head,
            "seed": seed,
            "settings": settings,
        }
    )


def rows_digest(features: Features, folds: Sequence[Fold]) -> str:
    """A digest of which rows were trained on and tested on, in any order.

    Their labels are in it, and their groups: intervals and tests depend on those.
    """
    return sha256_pieces(rows_json(features, folds))


def rows_json(features: Features, folds: Sequence[Fold]) -> Iterator[str]:
    """The canonical JSON of the folds and of all rows, sorted by id, in pieces.

    Together it is some 200 bytes a row and fold.
    """
    yield '{"folds":['
    for number, fold in enumerate(folds):
        (plain,) = folds_to_json([fold], features)
        yield "," * (number > 0) + canonical_json(
            {**plain, "train": sorted(plain["train"]), "test": sorted(plain["test"])}
        )
    yield "]," + '"leaky":true,' * is_leaky(folds) + '"rows":['
    columns = (features.ids, features.sha256, features.y, features.groups)
    order = np.argsort(features.ids)
    for start in range(0, len(order), _AT_ONCE):
        part = order[start : start + _AT_ONCE]
        rows = list(zip(*(column[part].tolist() for column in columns), strict=True))
        yield "," * (start > 0) + canonical_json(rows)[1:-1]
    yield "]}"


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_name(value: Any) -> bool:
    try:
        return _is_text(value) and bool(check_name(value))
    except DataError:
        return False


def _is_list(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and all(map(of, value))


def _is_dict(value: Any, of: Callable[[Any], bool] = lambda _: True) -> bool:
    return isinstance(value, dict) and all(map(of, value.values()))


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {  # by what a field is annotated with
    "str": ("text", _is_text),
    "Name": ("a plain name", _is_name),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "int": ("a number", _is_number),
    "float": ("a number", _is_number),
    "Names": ("names", lambda value: _is_list(value, _is_text) and len(value) > 0),
    "tuple[str, ...]": ("names", lambda value: _is_list(value, _is_text)),
    "tuple[float, float]": ("two numbers", lambda v: _is_list(v, _is_number) and len(v) == 2),
    "dict[str, float]": ("numbers by name", lambda value: _is_dict(value, _is_number)),
    "dict[str, float | None]": (
        "numbers by name",
        lambda value: _is_dict(value, lambda one: one is None or _is_number(one)),
    ),
    "dict[str, str]": ("text by name", lambda value: _is_dict(value, _is_text)),
    "dict[str, str | None]": ("text by name", _is_dict),
    "dict[str, Any]": ("values by name", _is_dict),
}
