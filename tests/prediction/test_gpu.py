"""A model on a card says of images what it says on the processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from card import card

from featcache.prediction.model import load_model

from .conftest import make

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("head", ["logreg", "mlp"])
def test_labels_and_probabilities_are_those_of_the_processor(head: str, tmp_path: Path) -> None:
    device = card()
    made = make(tmp_path, head=head, count=45)
    paths = sorted(str(path) for path in made.images.rglob("*.png"))
    there, here = (
        load_model(made.run, backbone=made.backbones, device=one) for one in (device, "cpu")
    )
    np.testing.assert_allclose(there.predict_proba(paths), here.predict_proba(paths), atol=1e-4)
    assert there.predict(paths).tolist() == here.predict(paths).tolist()
