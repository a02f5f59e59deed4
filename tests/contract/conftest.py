"""How the checks of the contract are called: for each of a module's CASES, with room for its programs alone."""

import jax
import pytest

pytest.register_assert_rewrite("tests.contract.checks")

from tests.contract import checks  # noqa: E402


def pytest_generate_tests(metafunc):
    """`case`: each of the module's; `one_of_each_loop`: the last of those with the same kind of loop."""
    cases = {"case": metafunc.module.CASES}
    cases["one_of_each_loop"] = list({getattr(x.train, "func", x.train): x for x in metafunc.module.CASES}.values())
    for name in set(cases) & set(metafunc.fixturenames):
        metafunc.parametrize(name, cases[name], ids=[case.name for case in cases[name]])


@pytest.fixture(autouse=True, scope="module")
def shared_cache():
    """What is compiled here, the new process of the last test loads; then all of it is let go."""
    before = {name: getattr(jax.config, name) for name in checks.KEPT}
    for name, value in checks.KEPT.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    checks.ready.cache_clear()
    checks.populated.cache_clear()
    jax.clear_caches()
