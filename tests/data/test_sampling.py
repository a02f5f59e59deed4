"""The samplers against lists of episodes that remember everything."""

import contextlib

import jax
import numpy as np
import pytest

from jaxrl_gen import loops
from jaxrl_gen.algos import prdc
from jaxrl_gen.data import sampling
from jaxrl_gen.losses import td
from jaxrl_gen.types import Algorithm, Env
from tests.data.recorded import LENGTHS, SPEC, TERMINATED, dataset, episodes

STEPS = [(e, t) for e, length in enumerate(LENGTHS) for t in range(length)]


def find(window, lived):
    """Which (episode, step) each sampled window began at, by its first joint observation."""
    where = {
        episode["joint"][t].tobytes(): (e, t) for e, episode in enumerate(lived) for t in range(len(episode["reward"]))
    }
    return [where[np.asarray(first).tobytes()] for first in window]


@pytest.mark.parametrize("horizon", [1, 3, 9])
def test_transitions_are_those_that_were_lived(horizon):
    data, lived = dataset(), episodes()
    sample = jax.jit(sampling.transitions(400, horizon, next_actions=True))
    window = jax.device_get(sample(data, jax.random.key(0)))
    begun = find(window.obs["joint"][0], lived)
    assert set(begun) == set(STEPS), "each row is a start"
    for b, (e, t) in enumerate(begun):
        for h in range(horizon):
            inside, last = t + h < LENGTHS[e], LENGTHS[e] - 1
            now = min(t + h, last)
            assert window.valid[h, b] == inside
            for part in ("camera", "joint"):
                np.testing.assert_array_equal(window.obs[part][h, b], lived[e][part][now])
                np.testing.assert_array_equal(window.next_obs[part][h, b], lived[e][part][now + 1])
            np.testing.assert_array_equal(window.action[h, b], lived[e]["action"][now])
            assert window.reward[h, b] == np.float32(lived[e]["reward"][now])
            assert window.terminated[h, b] == (now == last and TERMINATED[e])
            assert window.truncated[h, b] == (now == last and not TERMINATED[e])
            assert window.extras["next_known"][h, b] == (now < last)
            np.testing.assert_array_equal(window.extras["next_action"][h, b], lived[e]["action"][min(now + 1, last)])


def test_n_step_targets_equal_a_loop_over_the_episode():
    data, lived, horizon, gamma = dataset(), episodes(), 3, 0.9
    sample = sampling.transitions(300, horizon)
    condensed = jax.jit(lambda data, key: (window := sample(data, key), td.n_step(window, gamma=gamma)))
    window, steps = jax.device_get(condensed(data, jax.random.key(1)))
    for b, (e, t) in enumerate(find(window.obs["joint"][0], lived)):
        taken = min(horizon, LENGTHS[e] - t)
        total = sum(gamma**k * lived[e]["reward"][t + k] for k in range(taken))
        np.testing.assert_allclose(steps.reward[b], total, rtol=1e-5)
        stops = TERMINATED[e] and t + taken == LENGTHS[e]
        np.testing.assert_allclose(steps.discount[b], 0.0 if stops else gamma**taken, rtol=1e-5)
        np.testing.assert_array_equal(steps.next_obs["joint"][b], lived[e]["joint"][t + taken])
        assert steps.valid[b]


def test_every_row_is_drawn_equally_often():
    data, lived, count = dataset(), episodes(), 28_000
    begun = find(jax.jit(sampling.transitions(count))(data, jax.random.key(2)).obs["joint"][0], lived)
    often = np.array([begun.count(step) for step in STEPS])
    assert (np.abs(often - count / 14) < 5 * np.sqrt(count / 14)).all()


@pytest.mark.parametrize(("seen", "acted"), [(1, 1), (2, 5), (3, 3), (2, 12)])
def test_windows_are_padded_as_a_policy_meets_them(seen, acted):
    data, lived = dataset(), episodes()
    window = jax.device_get(jax.jit(sampling.windows(400, seen, acted))(data, jax.random.key(0)))
    assert window.obs["joint"].shape == (400, seen, 3) and window.action.shape == (400, acted, 2)
    begun = find(window.obs["joint"][:, -1], lived)
    assert set(begun) == set(STEPS), "each row is now"
    for b, (e, now) in enumerate(begun):
        for i in range(seen):
            at = max(now - (seen - 1) + i, 0)
            for part in ("camera", "joint"):
                np.testing.assert_array_equal(window.obs[part][b, i], lived[e][part][at])
        for h in range(acted):
            at = now - (seen - 1) + h
            assert window.valid[b, h] == (0 <= at < LENGTHS[e])
            nearest = min(max(at, 0), LENGTHS[e] - 1)
            np.testing.assert_array_equal(window.action[b, h], lived[e]["action"][nearest])


def counting(cfg, spec):
    """An algorithm that counts, and looks at marks."""

    def update(state, batch, key):
        valid = getattr(batch, "rows", batch).valid
        return state + 1, {"count/valid": valid.mean(dtype="float32")}

    return Algorithm(lambda key: np.zeros((), np.float32), update, lambda state, obs, key: (obs, {}))


def test_a_loop_draws_from_it_in_its_compiled_program():
    loop = loops.offline(counting, Env(None, None, SPEC), sampling.transitions(8, 2), (dataset(),), updates=5)
    carry, metrics = jax.jit(loop.chunk)(0.0, loop.init(0.0, jax.random.key(0)), *loop.data)
    assert carry.state == 5 and 0 < metrics["count/valid"] <= 1


def test_data_of_another_spec_are_refused_in_whatever_batch_they_are():
    """As rows, as windows of sequences, and among others that are brought along."""
    rows, chunks = sampling.transitions(8, 2), sampling.windows(8, 2, 3)
    among = lambda data, key: prdc.Among(rows(data, key), data.obs, data.action)
    joint = {"joint": jax.ShapeDtypeStruct((5,), np.float32), "camera": SPEC.obs["camera"]}
    for sample, kind in ((rows, "Transition"), (chunks, "Windows"), (among, "Transition")):
        for spec, said in (
            (SPEC._replace(action_size=3), rf"the data have action of shape \(2,\) in their {kind}; expected \(3,\), as"),
            (SPEC._replace(discrete=True), rf"the data have action of shape \(2,\) in their {kind}; expected \(\), as in"),
            (SPEC._replace(obs=joint), rf"the data have obs of shape .*\(3,\).* in their {kind}; expected .*\(5,\)"),
            (SPEC, None),
        ):
            loop = loops.offline(counting, Env(None, None, spec), sample, (dataset(),), updates=5)
            carry = jax.eval_shape(loop.init, 0.0, jax.random.key(0))
            with pytest.raises(ValueError, match=said) if said else contextlib.nullcontext():
                jax.eval_shape(loop.chunk, 0.0, carry, *loop.data)


def test_refusals():
    with pytest.raises(ValueError, match="horizon is 0; allowed: 1 and more"):
        sampling.transitions(4, 0)
    with pytest.raises(ValueError, match="batch_size is 0; allowed: 1 and more"):
        sampling.windows(0, 1, 1)
    with pytest.raises(
        ValueError, match=r"action_horizon is 4; allowed: 5 \(obs_horizon 2 - 1 \+ executed 4\) and more"
    ):
        sampling.windows(4, 2, 4, executed=4)
    sampling.windows(4, 2, 5, executed=4)
