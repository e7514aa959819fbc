"""Errors that a test expects."""

import pytest

from tessera.errors import TesseraError


def raises(code, action, *parts):
    with pytest.raises(TesseraError) as caught:
        action()
    assert caught.value.code == code, caught.value
    for part in parts:
        assert part in caught.value.message, caught.value.message
