"""The latent-action model: an oracle in its parts finds the true actions, and the model itself learns to."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from jaxrl_gen import loops, nets, types
from jaxrl_gen.algos import bc, latent_action
from jaxrl_gen.envs.tasks import sprites
from jaxrl_gen.losses import latent
from jaxrl_gen.nets import patches, vq
from jaxrl_gen.types import Spec

PLACES, PIXELS, ACTIONS = 4, 2, 5
CFG = latent_action.Config(codes=ACTIONS, width=4, patch=PIXELS, features=8, hidden=32)  # the defaults otherwise
VECTOR = Spec(jax.ShapeDtypeStruct((3,), jnp.float32), 2, True)


@functools.cache
def world():
    return sprites.make(places=PLACES, pixels=PIXELS, actions=ACTIONS)


@functools.cache
def film():
    """Wandering sprites; leaves [64, 16, ...]."""
    wander = sprites.seeker(places=PLACES, actions=ACTIONS, slips=1.0)
    return jax.jit(lambda key: sprites.film(world(), wander, key, lanes=16, steps=64))(jax.random.key(0))


def pairs(rows):
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
    return latent_action.Pair(flat.obs, flat.next_obs, flat.valid), np.asarray(flat.action)


def sample(rows, key):
    index = jax.random.randint(key, (64,), 0, len(rows.valid))
    return jax.tree.map(lambda x: x[index], rows)


def oracle(cfg, spec):
    """Parts that know the world: which way the sprite went, and how the screen looks once it went that way."""
    colours = {name: jnp.asarray(getattr(sprites, name), jnp.float32) / 255.0 for name in ("SPRITE", "FLAG", "GROUND")}
    is_a = lambda grid, name: jnp.all(jnp.abs(grid[..., :3] - colours[name]) < 1e-3, -1)
    moves = [tuple(move) for move in sprites.MOVES[:ACTIONS].tolist()]
    ways = lambda grid: jnp.stack([jnp.roll(is_a(grid, "SPRITE"), move, (-2, -1)) for move in moves], -1)

    def inverse(params, seen):
        before, after = seen
        return jnp.all(ways(before) == is_a(after, "SPRITE")[..., None], (-3, -2)).astype(jnp.float32)

    def forward(params, told):
        grid, code = told
        at = jnp.take_along_axis(ways(grid), jnp.argmax(code, -1)[..., None, None, None], -1)[..., 0]
        painted = jnp.where(is_a(grid, "FLAG")[..., None], colours["FLAG"], colours["GROUND"])
        return jnp.tile(jnp.where(at[..., None], colours["SPRITE"], painted), PIXELS**2)

    nothing = lambda key, example: ()
    identity = nets.Net(nothing, lambda params, x: x)
    see = lambda frame: patches.cut(frame, PIXELS)
    return latent_action.Parts(see, identity, nets.Net(nothing, inverse), nets.Net(nothing, forward))


def knowing():
    """The algorithm with the oracle's parts, its Config, and a State whose codes are the five actions."""
    cfg = latent_action.Config(codes=ACTIONS, width=ACTIONS, patch=PIXELS, least_usage=0.0)
    algo = latent_action.make(cfg, world().spec, parts=oracle)
    state = algo.init(jax.random.key(0))
    usage = vq.Usage(*jnp.full((2, ACTIONS), 1 / ACTIONS), jnp.eye(ACTIONS) / ACTIONS)
    return algo, cfg, state._replace(params=state.params | {"codes": jnp.eye(ACTIONS)}, usage=usage)


def test_an_oracle_infers_the_true_actions_and_reconstructs_without_error():
    algo, _, state = knowing()
    rows, action = pairs(film())
    code, extras = jax.jit(lambda state, rows: algo.act(state, (rows.obs, rows.next_obs), None))(state, rows)
    np.testing.assert_array_equal(code, action)
    np.testing.assert_array_equal(extras["code"], extras["latent"])
    state, metrics = jax.jit(algo.update)(state, rows, jax.random.key(1))
    assert float(metrics["forward/error"]) < 1e-12
    assert float(metrics["codebook/commitment"]) == float(metrics["codebook/error"]) == 0.0
    np.testing.assert_allclose(state.params["codes"], np.eye(ACTIONS), atol=1e-6)
    wrong = state._replace(params=state.params | {"codes": jnp.eye(ACTIONS)[::-1]})
    assert float(jax.jit(algo.update)(wrong, rows, jax.random.key(1))[1]["forward/error"]) < 1e-12  # codes name nothing
    bad = rows._replace(next_obs=jnp.roll(rows.next_obs, 1, 0))
    assert float(jax.jit(algo.update)(state, bad, jax.random.key(1))[1]["forward/error"]) > 1e-3


def test_an_oracle_imagines_what_each_action_would_do():
    _, cfg, state = knowing()
    rows, action = pairs(film())
    grid = latent_action.imagine(cfg, world().spec, state, rows.obs, jnp.asarray(action), parts=oracle)
    np.testing.assert_allclose(patches.join(grid, PIXELS) * 255.0, rows.next_obs, atol=1e-3)


def train(cfg, rows, updates, make=latent_action.make):
    loop = loops.offline(make, world(), sample, (rows,), updates=updates)
    cfg = types.strong(cfg)
    carry = jax.jit(loop.init)(cfg, jax.random.key(0))
    return carry.state, *jax.jit(loop.chunk)(cfg, carry, rows)


def matched(code, action):
    """Accuracy under the best one-to-one naming of codes by actions."""
    table = np.zeros((int(code.max()) + 1, ACTIONS))
    np.add.at(table, (np.asarray(code), action), 1)
    return table[linear_sum_assignment(-table)].sum() / table.sum()


@functools.cache
def learned():
    train_rows, _ = pairs(jax.tree.map(lambda x: x[:, :12], film()))
    return train(CFG, train_rows, 500)


def test_it_finds_the_actions_of_episodes_it_never_saw():
    first, carry, metrics = learned()
    rows, action = pairs(jax.tree.map(lambda x: x[:, 12:], film()))
    act = jax.jit(lambda state: latent_action.make(CFG, world().spec).act(state, (rows.obs, rows.next_obs), None)[0])
    found, at_first = act(carry.state), act(first)
    assert matched(found, action) > 0.9
    assert matched(at_first, action) < 0.7  # an encoder that learned nothing
    assert matched(found, np.random.default_rng(0).permutation(action)) < 0.4  # a probe of nothing
    assert float(metrics["codebook/perplexity"]) > 3.0 and float(metrics["codebook/collapsed"]) < 0.05  # of all updates
    latent_action.refuse_collapsed(carry.state)


def test_the_forward_model_teaches_the_embedding_only_through_the_code():
    """Where the code passes no gradient, inverse model and embedding stay, though the forward model reads features."""
    rows, _ = pairs(film())
    cfg = dataclasses.replace(CFG, commitment_coefficient=0.0)
    moved = {}
    for name, through in {"cut": lambda z, c, key: jax.lax.stop_gradient(c), "open": latent.straight_through}.items():
        algo = latent_action.make(cfg, world().spec, through=through)
        state = algo.init(jax.random.key(0))
        after, _ = jax.jit(algo.update)(state, jax.tree.map(lambda x: x[:64], rows), jax.random.key(1))
        change = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), state.params, after.params)
        moved[name] = {part: max(jax.tree.leaves(change[part])) for part in ("embed", "inverse", "forward")}
    assert moved["cut"]["embed"] == moved["cut"]["inverse"] == 0.0 and moved["cut"]["forward"] > 0.0
    assert moved["open"]["embed"] > 0.0 and moved["open"]["inverse"] > 0.0


def vectors(key, count=32):
    """Pairs that differ by a sign of which the first one tells nothing: blind to the code, one errs by 1 or more."""
    key_obs, key_sign = jax.random.split(key)
    obs, sign = jax.random.normal(key_obs, (count, 3)), jax.random.rademacher(key_sign, (count, 1), jnp.float32)
    return latent_action.Pair(obs, obs + sign, jnp.ones((count,), bool))


@functools.cache
def stream():
    """Batches of such pairs, leaves [200, ...], and a key for each."""
    keys = jax.random.split(jax.random.key(3), (200, 2))
    return jax.jit(jax.vmap(vectors))(keys[:, 0]), keys[:, 1]


def watch_vectors(algo):
    """The State after one update from each batch, and the forward model's error on each before it was learned from."""

    def update(state, seen):
        state, metrics = algo.update(state, *seen)
        return state, metrics["forward/error"]

    return jax.jit(lambda key, seen: jax.lax.scan(update, algo.init(key), seen))(jax.random.key(0), stream())


VARIANTS = {
    "running_means": {},
    "gradient": {"quantizer": vq.gradient},
    "noise_substitution": {"quantizer": vq.gradient, "through": latent.noise_substitution},
    "finite": {"quantizer": lambda size, width, decay, least: vq.finite((5, 3, 3), decay=decay)},
}


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("parts", VARIANTS.values(), ids=VARIANTS)
def test_every_quantiser_learns_to_predict_and_names_codes(parts, tokens):
    cfg = latent_action.Config(lr=1e-2, codes=6, width=3, tokens=tokens, hidden=16)
    algo = latent_action.make(cfg, VECTOR, parts=latent_action.on_vectors, **parts)
    state, errors = watch_vectors(algo)
    assert float(jnp.mean(errors[-20:])) < 0.2  # without the code: 1, as the next test shows
    batch = vectors(jax.random.key(1))
    index, extras = algo.act(state, (batch.obs, batch.next_obs), None)
    assert index.shape == ((32,) if tokens == 1 else (32, 2)) and index.dtype == jnp.int32
    assert extras["latent"].shape == extras["code"].shape == (32, tokens, 3)
    size = 6 if len(state.params["codes"]) else 45
    assert 0 <= int(index.min()) and int(index.max()) < size
    assert state.usage.share.shape == (size,) and float(jnp.sum(state.usage.share)) == pytest.approx(1.0, rel=1e-4)


def test_blind_to_the_code_it_errs_by_all_that_the_first_frame_does_not_tell():
    """What the errors above are far below: the rest is learned, the variance of the sign is left."""
    cfg = latent_action.Config(lr=1e-2, codes=6, width=3, hidden=16)
    blind = lambda latent, code, key: jnp.zeros_like(code)
    algo = latent_action.make(cfg, VECTOR, parts=latent_action.on_vectors, through=blind)
    _, errors = watch_vectors(algo)
    assert 0.95 < float(jnp.mean(errors[-40:])) < 1.3 < float(errors[0])


def test_rows_that_are_not_valid_change_nothing():
    algo = latent_action.make(latent_action.Config(codes=4, hidden=8), VECTOR, parts=latent_action.on_vectors)
    state, batch = algo.init(jax.random.key(0)), vectors(jax.random.key(5))
    valid = jnp.arange(32) < 20
    other = jax.tree.map(lambda x: jnp.where(valid.reshape(-1, *[1] * (x.ndim - 1)), x, 7), batch)
    afters = [algo.update(state, rows._replace(valid=valid), jax.random.key(1))[0] for rows in (batch, other)]
    for one, two in zip(*map(jax.tree.leaves, afters)):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    assert any(np.any(x != y) for x, y in zip(*map(jax.tree.leaves, (afters[0], state))))


def test_a_gradient_that_is_not_finite_leaves_no_trace():
    algo = latent_action.make(latent_action.Config(codes=4, hidden=8), VECTOR, parts=latent_action.on_vectors)
    state, batch = algo.init(jax.random.key(0)), vectors(jax.random.key(5))
    after, metrics = algo.update(state, batch._replace(obs=batch.obs.at[0, 0].set(jnp.nan)), jax.random.key(1))
    assert float(metrics["guard/skipped_updates"]) == 1.0
    for one, two in zip(jax.tree.leaves(after), jax.tree.leaves(state)):
        np.testing.assert_array_equal(one, two)


def test_what_codes_mean_is_counted():
    rng = np.random.default_rng(0)
    code, action, valid = rng.integers(0, 4, 50), rng.integers(0, 3, 50), rng.random(50) < 0.8
    code[code == 3] = 2  # a code without labels
    found = jax.jit(lambda *a: latent_action.meanings(*a, codes=4, actions=3, prior=0.5))(code, action, valid)
    overall = np.array([1.0 + np.sum((action == a) & valid) for a in range(3)]) / (3 + valid.sum())
    for k in range(4):
        of_code = (code == k) & valid
        for a in range(3):
            expected = (np.sum(of_code & (action == a)) + 0.5 * overall[a]) / (of_code.sum() + 0.5)
            assert float(found[k, a]) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(found.sum(1), 1.0, rtol=1e-6)


def test_a_policy_over_codes_acts_by_what_they_mean():
    meaning = jnp.array([[0.1, 0.9], [1.0, 0.0], [0.3, 0.7]])
    plain = types.Algorithm(None, None, lambda state, obs, key: (obs, {}))
    policy = latent_action.decoded(plain, meaning)
    code = jnp.array([0, 1, 2, 2])
    action, extras = policy.act(None, code, None)
    np.testing.assert_array_equal(action, [1, 0, 1, 1])
    np.testing.assert_array_equal(extras["code"], code)
    drawn, _ = jax.jit(lambda key: policy.act(None, jnp.repeat(jnp.arange(3), 4000), key))(jax.random.key(0))
    np.testing.assert_allclose(np.asarray(drawn).reshape(3, -1).mean(1), meaning[:, 1], atol=0.03)


def test_a_policy_over_codes_is_cloning_with_other_actions():
    """The algorithm of cloning learns codes as it stands: only the Spec says otherwise."""
    env = world()
    cfg = bc.Config(lr=3e-3, actor_hidden=(32,), normalize_obs=False)
    cloning = bc.make(cfg, env.spec._replace(action_size=7))
    state = cloning.init(jax.random.key(0))
    meaning = latent_action.meanings(*jnp.zeros((2, 1), jnp.int32), jnp.ones((1,), bool), codes=7, actions=ACTIONS)
    action, _ = latent_action.decoded(cloning, meaning).act(state, film().obs[0], None)
    assert action.shape == (16,) and int(action.max()) < ACTIONS


def test_a_collapsed_codebook_is_named():
    state = learned()[1].state
    two = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    latent_action.refuse_collapsed(two)
    two = two._replace(usage=two.usage._replace(share=two.usage.share.at[1].set(jnp.array([0.98, 0.02, 0, 0, 0]))))
    (line,) = latent_action.collapsed(two)
    assert line.startswith("the codebook of member 1 has collapsed: of its 5 codes 1.10 are in use")
    with pytest.raises(ValueError, match=r"member 1 has collapsed: of its 5 codes 1\.10 are in use .*1\.5 and more"):
        latent_action.refuse_collapsed(two)
    nowhere = two._replace(usage=two.usage._replace(share=two.usage.share.at[0].set(jnp.nan)))
    assert len(latent_action.collapsed(nowhere)) == 2


def test_a_codebook_whose_latents_are_all_alike_says_so():
    """An inverse model that sees nothing: the metric tells, however often codes are revived."""
    blind = lambda cfg, spec: latent_action.on_vectors(cfg, spec)._replace(
        inverse=nets.Net(lambda key, example: (), lambda params, x: jnp.zeros((*x[0].shape[:-1], cfg.width)))
    )
    algo = latent_action.make(latent_action.Config(codes=8, decay=0.9), VECTOR, parts=blind)
    state, batch, update = algo.init(jax.random.key(0)), vectors(jax.random.key(5)), jax.jit(algo.update)
    for i in range(80):
        state, metrics = update(state, batch, jax.random.key(i))
    assert float(metrics["codebook/collapsed"]) == 1.0
    assert float(metrics["codebook/perplexity"]) < 1.1 and float(metrics["codebook/dead"]) == 7 / 8
    with pytest.raises(ValueError, match="collapsed"):
        latent_action.refuse_collapsed(state)


@pytest.mark.parametrize(
    "cfg, spec, parts, message",
    [(latent_action.Config(patch=3), None, {}, "config.patch is 3"),
     (latent_action.Config(patch=2), VECTOR, {}, "config.patch is 2"),
     (latent_action.Config(width=8, patch=2), None, {"quantizer": lambda *a, **k: vq.finite((5, 5))},
      "config.width is 8; allowed: 2")],
)  # fmt: skip
def test_what_does_not_fit_is_refused(cfg, spec, parts, message):
    with pytest.raises(ValueError, match=message):
        latent_action.make(cfg, spec or world().spec, **parts)


@pytest.mark.parametrize("changes", [{"codes": 0}, {"decay": 1.5}, {"lr": -1.0}, {"least_usage": np.nan}])
def test_bad_numbers_are_refused(changes):
    with pytest.raises(ValueError, match=f"config.{next(iter(changes))} is"):
        types.check(latent_action.Config(**changes))
