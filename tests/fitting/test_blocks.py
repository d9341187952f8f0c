import pytest

from featcache.errors import DataError
from featcache.fitting.blocks import resolve_blocks, slices


def test_none_is_one_block():
    assert resolve_blocks(None, 7) == (7,)
    assert resolve_blocks([3, 4], 7) == (3, 4)


@pytest.mark.parametrize("blocks", [(3, 3), (), (8, -1), (7, 0)])
def test_blocks_that_do_not_fit(blocks):
    with pytest.raises(DataError, match="X has 7 columns"):
        resolve_blocks(blocks, 7)


def test_slices():
    assert slices((3, 4)) == [slice(0, 3), slice(3, 7)]
