"""The heads that go by a name: callables from a seed to an sklearn classifier.

Whatever a name implies is said by its class: `search_space` is what `tuning` searches,
`fit_stream(stream, y, groups)` fits rows that stay on disk, `as_module()` is the fitted head as a
torch module from (n, d) to logits, for ONNX, and `untrained()` makes the network of a fitted head
again, so that `persist` can save it. A class without one of them can't do that. `predict` gives the
label of the highest probability, if there are any. Nothing is imported before a head is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from featcache.fitting.registry import LazyClass

HEADS: dict[str, Callable[..., Any]] = {
    "mlp": LazyClass("featcache.fitting.heads.mlp:MLPHead"),
    "svm": LazyClass("featcache.fitting.heads.svm:SVMHead"),
    "xgboost": LazyClass("featcache.fitting.heads.xgboost:XGBHead"),
    "logreg": LazyClass("featcache.fitting.heads.linear:LogRegHead", C=None, max_iter=1000),
    # It has decision values and no probabilities: `evaluate` gives no AUC, log loss or ECE.
    "ridge": LazyClass("featcache.fitting.heads.linear:RidgeHead", alpha=None),
    "lda": LazyClass("featcache.fitting.heads.linear:LDAHead"),
    "knn": LazyClass("featcache.fitting.heads.neighbours:KNNHead"),
    "nearest_mean": LazyClass("featcache.fitting.heads.neighbours:NearestMeanHead"),
    "forest": LazyClass(
        "sklearn.ensemble:RandomForestClassifier",
        {"max_features": [0.02, 0.05, "sqrt", 0.2], "min_samples_leaf": ("int", 1, 10)},
        n_estimators=200,
        n_jobs=-1,
    ),
    # The most frequent class, whatever the image: what to beat.
    "dummy": LazyClass("sklearn.dummy:DummyClassifier", strategy="prior"),
}
