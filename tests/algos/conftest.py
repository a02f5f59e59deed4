"""What the tests of one module compiled is let go at its end: a process has room for so many programs alone."""

import pytest

from tests.algos import windows


@pytest.fixture(autouse=True, scope="module")
def programs():
    yield
    for kept in (windows.learner, windows.updating, windows.offline, windows.rows_of):
        kept.cache_clear()
