"""The experiment on the sprite world goes through its codebooks, in a small one."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments import latent_action_sprites as sprites
from jaxrl_gen import evaluate
from jaxrl_gen.nets import vq


def test_each_codebook_is_probed_beside_a_model_with_all_labels():
    exp = sprites.Sprites(seeds=2, total_steps=10, lanes=8, steps=8, codes=(4,), distractors=(0,))
    said = []
    labels, codes = sprites.codebooks(exp, said.append)
    assert (labels["model"], codes["model"]) == ("labels", 4) and len(said) == 2
    for accuracy in (labels["accuracy"], codes["accuracy"], codes["untrained"]):
        assert accuracy.shape == (2,) and np.all((accuracy >= 0) & (accuracy <= 1))
    assert codes["complaints"] == []
    assert np.all((codes["perplexity"] >= 1) & (codes["perplexity"] <= 4)) and np.all(np.isfinite(codes["error"]))


def test_a_seed_whose_codebook_collapsed_is_named_and_the_others_go_on(monkeypatch):
    """Nothing is trained, and of the models that the policies learn from the second one has a dead codebook."""

    def untrained(exp, make, cfg, env, *data):
        states = jax.vmap(make(cfg, env.spec).init)(jax.random.split(jax.random.key(0), exp.seeds))
        if hasattr(states, "usage"):
            dead = states.usage.share.at[1].set(jnp.eye(states.usage.share.shape[1])[2])
            states = states._replace(usage=vq.Usage(dead, *states.usage[1:]))
        return states, {}, 0.0

    monkeypatch.setattr(sprites, "learn", untrained)
    monkeypatch.setattr(evaluate, "episodes", lambda *a, **k: evaluate.Episodes(*[jnp.zeros(4)] * 5))
    exp = sprites.Sprites(seeds=2, lanes=8, steps=4, labels=(8,), policy_world=(4, 0))
    said = []
    rows = sprites.policies(exp, said.append)
    (of_codes,) = (row for row in rows if row["method"] == "codes")
    (line,) = of_codes["complaints"]
    assert line in said and "member 1 has collapsed: of its 4 codes 1.00 are in use" in line
    assert [row["method"] for row in rows if "complaints" in row] == ["codes"]
    assert all(row["success"].shape == (2,) for row in rows)
