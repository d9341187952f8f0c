import numpy as np
import pytest

from featcache.errors import RecipeError
from featcache.fitting.class_weights import class_weights

CLASSES = np.array(["cat", "dog"])
Y = np.array(["cat"] * 3 + ["dog"])


def test_weights():
    assert class_weights(None, CLASSES, Y) is None
    np.testing.assert_allclose(class_weights("balanced", CLASSES, Y), [4 / 6, 4 / 2])
    np.testing.assert_array_equal(class_weights({"dog": 3}, CLASSES, Y), [1, 3])


@pytest.mark.parametrize(
    "given", ["even", 3, {"doge": 2}, {"dog": 0}, {"dog": -1}, {"dog": float("nan")}]
)
def test_weights_of_another_kind(given):
    with pytest.raises(RecipeError, match="class_weight"):
        class_weights(given, CLASSES, Y)
