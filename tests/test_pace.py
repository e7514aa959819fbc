import gc
import time

import pytest

from tests.pace import slower, within


def spin(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_a_block_that_takes_longer_fails():
    with within(0.5):
        spin(0.01)
    with pytest.raises(AssertionError, match="where 0.01 s x"), within(0.01):
        spin(0.01 * slower() * 5)


def test_what_a_block_raises_passes_and_garbage_is_collected_again():
    with pytest.raises(KeyError), within(1):
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()
