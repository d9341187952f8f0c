"""The candidates of a comparison: which backbones, fused how, under which head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from featcache.errors import UnknownName, unknown
from featcache.fitting.classifier import make_classifier
from featcache.fitting.evaluate import Result, evaluate
from featcache.fitting.fusion import FUSIONS
from featcache.fitting.heads import HEADS
from featcache.fitting.splits import Fold
from featcache.store.features import Features


@dataclass(frozen=True)
class Candidate:
    """Backbones, a fusion and a head, all by name."""

    backbones: tuple[str, ...]
    fusion: str
    head: str

    @property
    def name(self) -> str:
        """For instance "resnet18+mobilenet_v2.concat.mlp"."""
        return f"{'+'.join(self.backbones)}.{self.fusion}.{self.head}"


def candidates(
    names: Sequence[str], fusion: Sequence[str], head: Sequence[str], singles: bool = True
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
    if singles and len(names) > 1:
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
) -> Result:
    """Evaluate one candidate on shared folds; see `make_classifier` and `evaluate`.

    `features` hold at least the candidate's backbones.
    """
    chosen = features.select(candidate.backbones)
    classifier = make_classifier(candidate.fusion, candidate.head, seed=seed, settings=settings)
    result = evaluate(
        classifier, chosen, seed=seed, n_jobs=n_jobs, split=folds, gate=gate, keep=keep
    )
    return replace(result, fusion=candidate.fusion, head=candidate.head)
