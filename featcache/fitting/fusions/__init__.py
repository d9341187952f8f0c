"""The fusions that go by a name: callables from parameters to an sklearn estimator.

Every fusion takes `blocks` (None means one block). All but `vote` and `stack` are transformers
that a head follows; those two take the head as their parameter `head` and are classifiers
themselves. Nothing is imported before a fusion is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _concat(**params: Any) -> Any:
    """`concat.ConcatFusion`."""
    from featcache.fitting.fusions.concat import ConcatFusion

    return ConcatFusion(**params)


def _attention(**params: Any) -> Any:
    """`learned.AttentionFusion`."""
    from featcache.fitting.fusions.learned import AttentionFusion

    return AttentionFusion(**params)


def _gated(**params: Any) -> Any:
    """`learned.GatedFusion`."""
    from featcache.fitting.fusions.learned import GatedFusion

    return GatedFusion(**params)


def _add(**params: Any) -> Any:
    """`pooled.SumFusion`."""
    from featcache.fitting.fusions.pooled import SumFusion

    return SumFusion(**params)


def _mean(**params: Any) -> Any:
    """`pooled.MeanFusion`."""
    from featcache.fitting.fusions.pooled import MeanFusion

    return MeanFusion(**params)


def _largest(**params: Any) -> Any:
    """`pooled.MaxFusion`."""
    from featcache.fitting.fusions.pooled import MaxFusion

    return MaxFusion(**params)


def _hadamard(**params: Any) -> Any:
    """`pooled.HadamardFusion`."""
    from featcache.fitting.fusions.pooled import HadamardFusion

    return HadamardFusion(**params)


def _bilinear(**params: Any) -> Any:
    """`bilinear.BilinearFusion`."""
    from featcache.fitting.fusions.learned import BilinearFusion

    return BilinearFusion(**params)


def _vote(**params: Any) -> Any:
    """`late.VoteFusion`."""
    from featcache.fitting.fusions.late import VoteFusion

    return VoteFusion(**params)


def _stack(**params: Any) -> Any:
    """`late.StackFusion`."""
    from featcache.fitting.fusions.late import StackFusion

    return StackFusion(**params)


FUSIONS: dict[str, Callable[..., Any]] = {
    "concat": _concat,
    "attention": _attention,
    "gated": _gated,
    "sum": _add,
    "mean": _mean,
    "max": _largest,
    "hadamard": _hadamard,
    "bilinear": _bilinear,
    "vote": _vote,
    "stack": _stack,
}
