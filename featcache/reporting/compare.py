"""Compare: the grid of candidates on shared folds, each fitted once and kept as a run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from featcache.fitting.classifier import make_classifier
from featcache.fitting.gate import check_features
from featcache.fitting.grid import Candidate, candidates, run_candidate
from featcache.fitting.splits import Fold, make_folds
from featcache.reporting.comparison import Comparison, sort_runs, write_comparison
from featcache.reporting.run_folder import Run, read_run, rows_digest, run_digest, save_run
from featcache.store.features import Features

__all__ = ["Comparison", "compare"]


def compare(
    features: Features,
    *,
    fusion: str | Sequence[str] = "concat",
    head: str | Sequence[str] = "mlp",
    singles: bool = True,
    folds: int | None = None,
    test_split: bool | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    jobs: int = 1,
    reports: str | Path = "reports",
    gate: str = "refuse",
    again: bool = False,
    fitted: Callable[[int, int, Run], None] | None = None,
) -> Comparison:
    """Fit and score every candidate on the same folds.

    The candidates are every fusion under every head on all backbones together, and each
    backbone alone under every head. A candidate that was run before on the same features,
    labels, folds and settings is read from its run folder.

    Parameters
    ----------
    features : Features
    fusion, head : str or sequence of str
        Names in `FUSIONS` and `HEADS`.
    singles : bool, default True
        Also each backbone alone.
    folds : int, optional
        Stratified K-fold; by default the data's test split, else five folds.
    test_split : bool, optional
        Insist on the data's own split, or don't use it.
    seed : int, default 0
    settings : mapping, optional
        Parameters by dotted name, for instance {"mlp.hidden": 512}.
    jobs : int, default 1
        Folds fitted at the same time.
    reports : str or Path, default "reports"
        Where run folders go.
    gate : {"refuse", "warn", "off"}, default "refuse"
        What to do about features that look broken.
    again : bool, default False
        Fit even what was run before.
    fitted : callable, optional
        Called after each candidate with its number, how many there are, and its run.

    Returns
    -------
    Comparison
        Of this grid, best first. The comparison files below `reports` cover every run there.
    """
    check_features(features, gate)
    grid = candidates(features.names, _several(fusion), _several(head), singles)
    for candidate in grid:  # before the first fit, and also for those that need none
        make_classifier(candidate.fusion, candidate.head, settings=settings)
    split = make_folds(features, folds, test_split, seed=seed)
    rows = rows_digest(features, split)
    runs = []
    for number, candidate in enumerate(grid, 1):
        run = _run_once(
            candidate, features, split, rows, seed, dict(settings or {}), jobs, Path(reports), again
        )
        runs.append(run)
        if fitted is not None:
            fitted(number, len(grid), run)
    write_comparison(Path(reports))
    return sort_runs(runs)


def _run_once(
    candidate: Candidate,
    features: Features,
    folds: list[Fold],
    rows: str,
    seed: int,
    settings: dict[str, Any],
    jobs: int,
    reports: Path,
    again: bool,
) -> Run:
    chosen = features.select(candidate.backbones)
    mine = {
        name: value
        for name, value in settings.items()
        if name.split(".")[0] in ("fusion", "head", candidate.fusion, candidate.head)
    }
    digest = run_digest(chosen, rows, candidate.fusion, candidate.head, seed, mine)
    folder = reports / features.data / f"{candidate.name}.{digest[:8]}"
    if (folder / "run.json").is_file() and not again:
        return read_run(folder)
    result = run_candidate(candidate, chosen, folds, seed, settings, jobs, gate="off")
    return save_run(folder, result, chosen, folds, rows=rows, seed=seed, settings=mine)


def _several(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)
