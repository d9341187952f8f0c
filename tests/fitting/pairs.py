"""Every pair of a fusion and a head; in the default suite those in which either is new."""

from __future__ import annotations

import pytest
from packages import needs_xgboost

from featcache.fitting.fusions import FUSIONS
from featcache.fitting.heads import HEADS

_FUSIONS, _HEADS = ("concat", "stack"), ("logreg", "mlp")  # each meets all of the others

PAIRS = [
    pytest.param(
        fusion, head,
        marks=([] if fusion in _FUSIONS or head in _HEADS else [pytest.mark.slow])
        + [needs_xgboost] * (head == "xgboost"),
        id=f"{fusion}-{head}",
    )
    for fusion in FUSIONS for head in HEADS
]  # fmt: skip
