"""The candidates of a comparison: which backbones, fused how, under which head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from featcache.errors import UnknownName, unknown
from featcache.fitting.classifier import make_classifier, with_blocks
from featcache.fitting.evaluate import Result, evaluate
from featcache.fitting.fit_one import fit_clone
from featcache.fitting.fusion import FUSIONS
from featcache.fitting.heads import HEADS
from featcache.fitting.reuse import Shelf
from featcache.fitting.splits import Fold, Rows
from featcache.store.features import Features, take


@dataclass(frozen=True)
class Candidate:
    """Backbones, a fusion and a head, all by name; a selection of columns and a search, if any.

    Attributes
    ----------
    backbones : tuple of str
    fusion, head : str
    select : str, default ""
        See `selection.make_selection`.
    tune : int, default 0
        Settings to try, see `tuning`.
    tuner : str, default "random"
    """

    backbones: tuple[str, ...]
    fusion: str
    head: str
    select: str = ""
    tune: int = 0
    tuner: str = "random"

    @property
    def name(self) -> str:
        """For instance "resnet18+mobilenet_v2.concat.mlp", or "….concat.anova-256.mlp.tuned-20"."""
        parts = ["+".join(self.backbones), self.fusion, self.select.replace(":", "-"), self.head]
        return ".".join([part for part in parts if part] + [f"tuned-{self.tune}"] * (self.tune > 0))

    @property
    def options(self) -> dict[str, Any]:
        """What a run's digest and its settings hold beside the names; {} without any."""
        found: dict[str, Any] = {"select": self.select} if self.select else {}
        return found | ({"tune": self.tune, "tuner": self.tuner} if self.tune else {})


def candidates(
    names: Sequence[str],
    fusion: Sequence[str],
    head: Sequence[str],
    singles: bool = True,
    ablate: bool = False,
) -> list[Candidate]:
    """Every fusion under every head on all backbones, then each backbone alone.

    Parameters
    ----------
    names : sequence of str
        The backbones.
    fusion, head : sequence of str
        Names in `FUSIONS` and `HEADS`.
    singles : bool, default True
        With several backbones, add each alone under every head, as "concat": one block has
        nothing to fuse with.
    ablate : bool, default False
        Add, for every fusion and head, all backbones but one; of two, that is each alone.

    Returns
    -------
    list of Candidate
        Without repeats, in the order given.

    Raises
    ------
    UnknownName
        For a fusion or head that is not registered.
    """
    for kind, asked, known in (("fusion", fusion, FUSIONS), ("head", head, HEADS)):
        if not asked:
            raise UnknownName(f"no {kind} named", f"Known: {', '.join(known)}.")
        for name in asked:
            if name not in known:
                raise unknown(kind, name, known)
    made = [Candidate(tuple(names), one, under) for one in fusion for under in head]
    if ablate and len(names) > 2:
        left = [tuple(name for name in names if name != out) for out in names]
        made += [Candidate(rest, one, under) for rest in left for one in fusion for under in head]
    if (singles or (ablate and len(names) == 2)) and len(names) > 1:
        made += [Candidate((name,), "concat", under) for name in names for under in head]
    return list(dict.fromkeys(made))


def run_candidate(
    candidate: Candidate,
    features: Features,
    folds: Sequence[Fold],
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    n_jobs: int = 1,
    gate: str = "refuse",
    keep: bool = False,
    shelf: Shelf | None = None,
) -> Result:
    """Evaluate one candidate on shared folds; see `make_classifier` and `evaluate`.

    `features` hold at least the candidate's backbones.
    """
    chosen = features.select(candidate.backbones)
    classifier = classifier_of(candidate, seed, settings)
    result = evaluate(
        classifier, chosen, seed=seed, n_jobs=n_jobs, split=folds, gate=gate, keep=keep, shelf=shelf
    )
    return replace(result, fusion=candidate.fusion, head=candidate.head)


def classifier_of(
    candidate: Candidate, seed: int = 0, settings: Mapping[str, Any] | None = None
) -> Any:
    """The unfitted classifier of a candidate, see `make_classifier`."""
    return make_classifier(
        candidate.fusion,
        candidate.head,
        seed=seed,
        settings=settings,
        select=candidate.select,
        tune=candidate.tune,
        tuner=candidate.tuner,
    )


def fit_candidate(
    candidate: Candidate,
    features: Features,
    rows: Rows | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    groups: Rows | None = None,
) -> Any:
    """A candidate's classifier, fitted on these rows of the features, or on all.

    Rows that share a number of `groups` (n,) belong together, see `linked.fit_linked`.

    `features` hold the candidate's backbones and no others.
    """
    classifier = classifier_of(candidate, seed, settings)
    ready = with_blocks(classifier, features.blocks)
    if rows is None:
        return fit_clone(ready, features.X, features.y, groups)
    mine = None if groups is None else groups[rows]
    return fit_clone(ready, take(features.X, rows), features.y[rows], mine)
