"""The fusions that go by a name: callables from parameters to an sklearn estimator.

Every fusion takes `blocks` (None means one block). All but `vote` and `stack` are transformers
that a head follows; those two take the head as their parameter `head` and are classifiers
themselves.

Whatever a name implies is said by its class: `search_space` is what `tuning` searches,
`fit_stream(stream, y, groups)` fits rows that stay on disk, `as_module()` is the fitted fusion as a
torch module from (n, d) to (n, width), for ONNX, `untrained()` makes the network of a fitted fusion
again, so that `persist` can save it, `weights(X)` is how much each backbone counts for each row,
for the report, and `joint` how the head "mlp" trains it along with itself, see
`learned.LearnedFusion`. A class without one of them can't do that. Nothing is imported before a
fusion is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from featcache.fitting.registry import LazyClass

FUSIONS: dict[str, Callable[..., Any]] = {
    "concat": LazyClass("featcache.fitting.fusions.concat:ConcatFusion"),
    "attention": LazyClass("featcache.fitting.fusions.learned:AttentionFusion"),
    "gated": LazyClass("featcache.fitting.fusions.learned:GatedFusion"),
    "sum": LazyClass("featcache.fitting.fusions.pooled:SumFusion"),
    "mean": LazyClass("featcache.fitting.fusions.pooled:MeanFusion"),
    "max": LazyClass("featcache.fitting.fusions.pooled:MaxFusion"),
    "hadamard": LazyClass("featcache.fitting.fusions.learned:HadamardFusion"),
    "bilinear": LazyClass("featcache.fitting.fusions.learned:BilinearFusion"),
    "vote": LazyClass("featcache.fitting.fusions.late:VoteFusion"),
    "stack": LazyClass("featcache.fitting.fusions.late:StackFusion"),
}
