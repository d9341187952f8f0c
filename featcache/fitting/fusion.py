"""The fusions that go by a name: callables from parameters to an sklearn estimator.

Every fusion takes `blocks` (None means one block). All but `vote` and `stack` are transformers
that a head follows; those two take the head as their parameter `head` and are classifiers
themselves. Nothing is imported before a fusion is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def concat(**params: Any) -> Any:
    """`concat.ConcatFusion`."""
    from featcache.fitting.concat import ConcatFusion

    return ConcatFusion(**params)


def attention(**params: Any) -> Any:
    """`learned.AttentionFusion`."""
    from featcache.fitting.learned import AttentionFusion

    return AttentionFusion(**params)


def gated(**params: Any) -> Any:
    """`learned.GatedFusion`."""
    from featcache.fitting.learned import GatedFusion

    return GatedFusion(**params)


def add(**params: Any) -> Any:
    """`pooled.SumFusion`."""
    from featcache.fitting.pooled import SumFusion

    return SumFusion(**params)


def mean(**params: Any) -> Any:
    """`pooled.MeanFusion`."""
    from featcache.fitting.pooled import MeanFusion

    return MeanFusion(**params)


def largest(**params: Any) -> Any:
    """`pooled.MaxFusion`."""
    from featcache.fitting.pooled import MaxFusion

    return MaxFusion(**params)


def hadamard(**params: Any) -> Any:
    """`pooled.HadamardFusion`."""
    from featcache.fitting.pooled import HadamardFusion

    return HadamardFusion(**params)


def bilinear(**params: Any) -> Any:
    """`bilinear.BilinearFusion`."""
    from featcache.fitting.bilinear import BilinearFusion

    return BilinearFusion(**params)


def vote(**params: Any) -> Any:
    """`late.VoteFusion`."""
    from featcache.fitting.late import VoteFusion

    return VoteFusion(**params)


def stack(**params: Any) -> Any:
    """`late.StackFusion`."""
    from featcache.fitting.late import StackFusion

    return StackFusion(**params)


FUSIONS: dict[str, Callable[..., Any]] = {
    "concat": concat,
    "attention": attention,
    "gated": gated,
    "sum": add,
    "mean": mean,
    "max": largest,
    "hadamard": hadamard,
    "bilinear": bilinear,
    "vote": vote,
    "stack": stack,
}
