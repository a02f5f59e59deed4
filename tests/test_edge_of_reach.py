"""The grid of the experiment: its values against value iteration in NumPy, and its two extreme cells."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import edge_of_reach
from experiments.edge_of_reach import Edge
from jaxrl_gen import record

EXP = Edge(seeds=16, total_steps=400)


def optimum(exp):
    """The values of a rollout to the goal, gamma^(steps - 1) times the reward, by the distance in the grid."""
    places = np.stack(np.meshgrid(*[np.arange(exp.width)] * 2, indexing="ij"), -1).reshape(-1, 2)
    steps = np.abs(places - np.array(exp.goal)).sum(-1)
    return np.where(steps > 0, exp.reward * exp.gamma ** (steps - 1.0), 0.0), np.all(places < exp.block, -1) & (
        steps > 0
    )


def test_values_learned_everywhere_are_the_distance_to_the_goal():
    world, (truth, counted) = edge_of_reach.grid(EXP), optimum(EXP)
    np.testing.assert_array_equal(world.counted, counted)
    first = 20.0 * jax.random.normal(jax.random.key(0), (2, *world.reward.shape))
    everywhere = np.ones(len(truth), bool)
    values = np.asarray(edge_of_reach.learned(world, first, everywhere, EXP.gamma, 400))
    np.testing.assert_allclose(values[0].max(-1), truth, rtol=1e-4, atol=1e-4)
    policy = values[0].argmax(-1)
    np.testing.assert_allclose(edge_of_reach.returns(world, policy, EXP.gamma, 400), truth, rtol=1e-4, atol=1e-4)


def test_what_is_out_of_reach_stays_what_it_was():
    world = edge_of_reach.grid(EXP)
    first = jax.random.normal(jax.random.key(1), (3, *world.reward.shape))
    values = edge_of_reach.learned(world, first, world.distance < 2, EXP.gamma, 50)
    np.testing.assert_array_equal(np.asarray(values)[:, world.distance >= 2], np.asarray(first)[:, world.distance >= 2])
    assert np.sum(world.distance == 0) == 36 and np.sum(world.distance == 2) == 13 and world.distance.max() == 18


@pytest.fixture(scope="module")
def cells():
    """Thought and earned values of the cells that matter, over the seeds."""
    world = edge_of_reach.grid(EXP)
    settings = [(5, 20.0, 1), (5, 20.0, 10), (20, 20.0, 1), (5, 2.0, 1)]
    return {it: edge_of_reach.cell(EXP, world, *it) for it in settings}


def test_short_rollouts_of_an_exact_model_make_values_explode_and_policies_fail(cells):
    row = cells[5, 20.0, 1]
    assert np.all(row["thought"] > 1.5 * row["optimum"]) and row["earned"].mean() < 0.4 * row["optimum"]


@pytest.mark.parametrize("setting", [(5, 20.0, 10), (20, 20.0, 1), (5, 2.0, 1)], ids=["many", "long", "dim"])
def test_many_critics_or_long_rollouts_or_dim_first_values_do_not(cells, setting):
    row = cells[setting]
    assert np.mean(row["thought"]) == pytest.approx(row["optimum"], rel=0.05)
    assert np.mean(row["earned"]) > 0.9 * row["optimum"]


def test_the_optimum_is_the_average_distance_to_the_goal(cells):
    truth, counted = optimum(EXP)
    assert cells[5, 20.0, 1]["optimum"] == pytest.approx(truth[counted].mean(), rel=1e-4)


def test_a_headline_that_is_not_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="headline is"):
        edge_of_reach.main(dataclasses.replace(EXP, runs=tmp_path, headline=(7, 20.0, 10)))


def test_the_record_is_like_that_of_any_run(tmp_path):
    small = dict(seeds=3, total_steps=20, horizons=(5,), deviations=(20.0,), members=(10,), stamp=False)
    folder = edge_of_reach.main(dataclasses.replace(EXP, runs=tmp_path, **small))
    found = record.read_json(folder / "result.json")
    assert list(found) == ["experiment", "command", "score", "cells", "steps", "seconds", "versions", "config"]
    assert found["experiment"] == "edge_of_reach.Edge" and found["steps"] == 20
    assert found["config"]["static"]["seeds"] == 3
    score = np.array(found["score"]["per_member"])
    np.testing.assert_allclose(score, 100 * np.array(found["cells"][0]["earned"]) / found["cells"][0]["optimum"])
    assert {"what", "iqm", "low", "high"} <= set(found["score"]) and found["seconds"]["training"] > 0
    assert (folder / "curve.png").exists()
