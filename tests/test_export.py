"""Exported policies: equal to `act`, readable without the training code, refused by name where damaged."""

import json
import os
import pickle
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import export as jax_export

from jaxrl_gen import deploy, export, nets, normalize
from jaxrl_gen.algos import flow_policy, ppo
from jaxrl_gen.data import statistics
from jaxrl_gen.types import Algorithm, Recalled, Spec

COUNT = 1000
FILES = {"policy.stablehlo", "policy.npz", "policy.json"}


def shaped(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


class Sensors(NamedTuple):
    """An observation that is a NamedTuple, with fields out of alphabetical order."""

    joints: jax.Array
    camera: jax.Array


PLAIN = Spec(shaped(6), 2)
NESTED = Spec({"speed": shaped(2, 3), "arm": {"angle": shaped(4), "load": shaped()}}, 3)
PIXELS = Spec(shaped(8, 8, 3, dtype=jnp.uint8), 4, discrete=True)
SMALL = ppo.Config(actor_hidden=(32, 32), critic_hidden=(8,))


def trained(algo, spec, seed=0):
    """A State that looks trained: all parameters random, and a normaliser that saw observations around 5."""
    rng = np.random.default_rng(seed)
    scaled = lambda x: rng.standard_normal(x.shape) / np.sqrt(x.shape[0] if len(x.shape) > 1 else 10)  # noqa: E731
    shapes = jax.eval_shape(algo.init, jax.random.key(0))
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    params = jax.tree.map(lambda x: scaled(x).astype(np.float32), shapes.params)
    around = lambda x, low, high: rng.uniform(low, high, x.shape).astype(np.float32)  # noqa: E731
    means = jax.tree.map(lambda x: around(x, 4, 6), shapes.normalizer.mean)
    squares = jax.tree.map(lambda x: around(x, 500 * 2.0**2, 500 * 4.0**2), shapes.normalizer.m2)
    return state._replace(params=params, normalizer=normalize.Normalizer(np.float32(500), means, squares))


def observations(spec, count=COUNT, seed=1):
    rng = np.random.default_rng(seed)
    draw = lambda leaf: (5.0 + 3.0 * rng.standard_normal((count, *leaf.shape))).astype(leaf.dtype)  # noqa: E731
    return jax.tree.map(draw, spec.obs)


def act_of(algo, state):
    return jax.jit(lambda obs: algo.act(state, obs, None)[0])


CASES = {
    "array": (PLAIN, {}, SMALL),
    "nested": (NESTED, {}, SMALL),
    "discrete": (NESTED._replace(discrete=True), {}, SMALL),
    "named_tuple": (Spec(Sensors(shaped(3), shaped(2, 2)), 2), {}, SMALL),
    "integers": (Spec(shaped(5, dtype=jnp.int32), 2), {}, SMALL),
    "no_normaliser": (PLAIN, {}, ppo.Config(normalize_obs=False)),
    "no_hidden_layer": (PLAIN, {}, ppo.Config(actor_hidden=())),
    "one_leaf_of_many": (NESTED, {"actor_view": lambda obs: obs["arm"]}, SMALL),
    **{
        name: (PLAIN, {"actor": nets.flat(nets.mlp((32, 32, 2), activation), PLAIN.obs)}, SMALL)
        for name, activation in {
            "relu": jax.nn.relu,
            "elu": jax.nn.elu,
            "silu": jax.nn.silu,
            "gelu": jax.nn.gelu,
        }.items()
    },
}


@pytest.mark.parametrize("name", CASES)
def test_both_files_equal_act(name, tmp_path):
    spec, parts, cfg = CASES[name]
    algo = ppo.make(cfg, spec, **parts)
    state, obs = trained(algo, spec), observations(spec)
    written = export.policy(algo, state, spec, tmp_path / "policy")
    assert set(written.files) == FILES == {path.name for path in written.folder.iterdir()}
    assert written.platforms == ("cpu", "cuda", "tpu") and written.not_plain == ""
    wanted = np.asarray(act_of(algo, state)(obs))
    assert len(np.unique(wanted, axis=0)) > (2 if spec.discrete else COUNT // 2)  # the actions say something
    np.testing.assert_allclose(export.load(tmp_path / "policy")(obs), wanted, rtol=0, atol=1e-6)
    by_numpy = export.load_numpy(tmp_path / "policy" / "policy.npz")(obs)
    assert isinstance(by_numpy, np.ndarray) and by_numpy.dtype == wanted.dtype
    np.testing.assert_allclose(by_numpy, wanted, rtol=0, atol=1e-6)
    with np.load(tmp_path / "policy" / "policy.npz", allow_pickle=False) as file:
        expected = name if name in deploy.ACTIVATIONS else "tanh"
        assert (file["activation"], file["head"]) == (expected, "argmax" if spec.discrete else "tanh")


def test_the_npz_is_enough_to_compute_the_action_by_hand(tmp_path):
    """Against float64, from nothing but the arrays' names."""
    algo = ppo.make(SMALL, PLAIN)
    state, obs = trained(algo, PLAIN), observations(PLAIN)
    export.policy(algo, state, PLAIN, tmp_path)
    file = {name: x.astype(np.float64) for name, x in np.load(tmp_path / "policy.npz").items() if x.dtype.kind == "f"}
    x = np.clip((obs - file["mean"]) / file["std"], -file["clip"], file["clip"])
    for i in range(3):
        x = np.tanh(x @ file[f"weight_{i}"] + file[f"bias_{i}"])
    np.testing.assert_allclose(export.load_numpy(tmp_path / "policy.npz")(obs), x, rtol=0, atol=1e-6)
    np.testing.assert_allclose(act_of(algo, state)(obs), x, rtol=0, atol=1e-6)


def test_convolutions_are_exported_without_plain_arrays(tmp_path):
    make_net = lambda size: nets.conv((4,), (8, size), (3,), (2,))  # noqa: E731
    cfg = ppo.Config(normalize_obs=False)
    algo = ppo.make(cfg, PIXELS, actor=make_net(4), critic=make_net(1))
    state = trained(algo, PIXELS)
    written = export.policy(algo, state, PIXELS, tmp_path)
    assert set(written.files) == FILES - {"policy.npz"} and not (tmp_path / "policy.npz").exists()
    assert "no stack of dense layers" in written.not_plain and "no policy.npz" in str(written)
    obs = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3)).astype(np.uint8)
    np.testing.assert_array_equal(export.load(tmp_path)(obs), act_of(algo, state)(obs))
    with pytest.raises(ValueError, match="obs is float32; the policy reads uint8"):
        export.load(tmp_path)(obs.astype(np.float32))


def test_a_policy_with_memory_carries_it_along(tmp_path):
    actor, critic = (nets.flat(nets.gru(8, (size,)), PLAIN.obs) for size in (2, 1))
    algo = ppo.make(SMALL, PLAIN, actor=actor, critic=critic)
    state = trained(algo, PLAIN)
    written = export.policy(algo, state, PLAIN, tmp_path)
    assert set(written.files) == {"policy.stablehlo", "policy.json", "policy.memory.npz"}
    assert written.not_plain == "the policy has memory"
    policy, lanes, act = export.load(tmp_path), 4, jax.jit(lambda read: algo.act(state, read, None))
    memory, expected_memory = policy.memory(lanes), algo.memory(lanes)
    jax.tree.map(np.testing.assert_array_equal, memory, expected_memory)
    for obs in observations(PLAIN, 5 * lanes).reshape(5, lanes, 6):
        action, memory = policy(obs, memory)
        expected, extras = act(Recalled(obs, expected_memory))
        expected_memory = extras["memory"]
        np.testing.assert_allclose(action, expected, rtol=0, atol=1e-6)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), memory, expected_memory)
    with pytest.raises(ValueError, match="this policy has memory"):
        policy(obs)
    with pytest.raises(ValueError, match=r"memory has the leading axes \(2,\), and obs \(4,\)"):
        policy(obs, policy.memory(2))


def test_a_policy_that_plans_chunks_carries_its_plan_along(tmp_path):
    """Its memory has counts and flags; and what it sees and does is scaled by statistics that its State holds."""
    cfg = flow_policy.Config(horizon=4, execute=3, steps=2, channels=(8,), kernel=1, time_width=8, normalize_obs=False)
    known = [
        statistics.moments(np.random.default_rng(0).normal(3.0, 2.0, (20, size))) for size in (6, PLAIN.action_size)
    ]
    algo = statistics.scaled(flow_policy.make, statistics.Statistics(*known))(cfg, PLAIN)
    state = algo.init(jax.random.key(0))
    export.policy(algo, state, PLAIN, tmp_path, platforms=("cpu",))
    policy, lanes, act = export.load(tmp_path), 4, jax.jit(lambda read: algo.act(state, read, None))
    memory, expected_memory = policy.memory(lanes), algo.memory(lanes)
    did = []
    for obs in observations(PLAIN, 5 * lanes).reshape(5, lanes, 6):
        action, memory = policy(obs, memory)
        expected, extras = act(Recalled(obs, expected_memory))
        expected_memory = extras["memory"]
        np.testing.assert_allclose(action, expected, rtol=0, atol=1e-5)
        for mine, other in zip(jax.tree.leaves(memory), jax.tree.leaves(expected_memory), strict=True):
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5)
        did.append(action)
    assert np.ptp(did) > 2.0, "in the units of the data"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with a policy on nested observations, the observations and the actions wanted."""
    folder = tmp_path_factory.mktemp("exported")
    algo = ppo.make(SMALL, NESTED)
    state, obs = trained(algo, NESTED), observations(NESTED)
    export.policy(algo, state, NESTED, folder)
    return folder, obs, np.asarray(act_of(algo, state)(obs))


def both(folder):
    return export.load(folder), export.load_numpy(folder / "policy.npz")


def test_any_leading_axes_or_none(exported):
    folder, obs, wanted = exported
    for policy in both(folder):
        for shape in [(), (1,), (7,), (2, 3)]:
            count = int(np.prod(shape))
            some = jax.tree.map(lambda x, n=count, s=shape: x[:n].reshape((*s, *x.shape[1:])), obs)
            np.testing.assert_allclose(policy(some), wanted[:count].reshape(*shape, 3), rtol=0, atol=2e-6)
    inside_jit = jax.jit(export.load(folder))(obs)
    np.testing.assert_allclose(inside_jit, wanted, rtol=0, atol=1e-6)


def test_python_numbers_and_doubles_are_read_as_float32(exported):
    folder, obs, wanted = exported
    one = jax.tree.map(lambda x: x[0].astype(np.float64), obs)
    one["arm"]["load"] = float(one["arm"]["load"])
    for policy in both(folder):
        assert policy(one).dtype == np.float32
        np.testing.assert_allclose(policy(one), wanted[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda obs: {"speed": obs["speed"]},
            r"obs has the leaves obs\['speed'\]; the policy reads obs\['arm'\]\['angle'\]",
        ),
        (lambda obs: {"arm": obs["arm"], "fast": obs["speed"]}, r"obs\['fast'\]; the policy reads"),
        (lambda obs: obs["speed"], "obs has the leaves obs; the policy reads"),
        (
            lambda obs: obs | {"speed": obs["speed"][..., :2]},
            r"obs\['speed'\] has shape \(1000, 2, 2\); allowed: \(2, 3\)",
        ),
        (lambda obs: obs | {"speed": obs["speed"][:5]}, r"obs\['speed'\] has the leading axes \(5,\)"),
        (lambda obs: obs | {"speed": obs["speed"].astype(complex)}, r"obs\['speed'\] is complex128"),
        (lambda obs: jax.tree.map(lambda x: x[:0], obs), "no observation at all"),
    ],
)
def test_observations_of_another_shape_are_refused_by_name(exported, change, message):
    folder, obs, _ = exported
    for policy in both(folder):
        with pytest.raises(ValueError, match=message):
            policy(change(obs))


def in_a_bare_process(code, blocked, *arguments):
    """Run code where the training code cannot be imported."""
    block = f"""
        import sys
        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {blocked!r}:
                    raise ImportError("blocked: " + name)
        sys.meta_path.insert(0, Blocked())
        import numpy as np
        leaf = lambda name: np.load(sys.argv[2])[name]
        obs = {{"speed": leaf("speed"), "arm": {{"angle": leaf("angle"), "load": leaf("load")}}}}
    """
    command = [sys.executable, "-I", "-c", textwrap.dedent(block) + textwrap.dedent(code), *map(str, arguments)]
    environment = {"PATH": os.environ["PATH"], "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 0, result.stderr


TRAINING = ["jaxrl_gen", "flax", "optax", "distrax", "chex", "brax", "mujoco"]
DEPLOY = """
    import importlib.util
    spec = importlib.util.spec_from_file_location("deploy", sys.argv[4])
    deploy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(deploy)
"""


@pytest.mark.parametrize(
    "code, blocked",
    [
        (DEPLOY + "    action = deploy.load(sys.argv[1])(obs)\n", TRAINING),
        (DEPLOY + "    action = deploy.load_numpy(sys.argv[1] + '/policy.npz')(obs)\n", [*TRAINING, "jax", "scipy"]),
        (
            """
            from jax import export
            blob = open(sys.argv[1] + "/policy.stablehlo", "rb").read()
            action, = export.deserialize(bytearray(blob)).call(obs["arm"]["angle"], obs["arm"]["load"], obs["speed"])
            """,
            TRAINING,
        ),
    ],
    ids=["load", "load_numpy", "jax_alone"],
)
def test_loading_needs_nothing_of_the_training_code(exported, tmp_path, code, blocked):
    folder, obs, wanted = exported
    np.savez(tmp_path / "obs.npz", speed=obs["speed"], angle=obs["arm"]["angle"], load=obs["arm"]["load"])
    code = textwrap.dedent(code) + "\nnp.save(sys.argv[3], np.asarray(action))\n"
    in_a_bare_process(code, blocked, folder, tmp_path / "obs.npz", tmp_path / "action.npy", deploy.__file__)
    np.testing.assert_allclose(np.load(tmp_path / "action.npy"), wanted, rtol=0, atol=1e-6)


def test_the_description_is_plain_and_complete(exported):
    folder, _, _ = exported
    about = json.loads((folder / "policy.json").read_text())
    assert about["obs"] == [
        {"path": ["arm", "angle"], "shape": [4], "dtype": "float32"},
        {"path": ["arm", "load"], "shape": [], "dtype": "float32"},
        {"path": ["speed"], "shape": [2, 3], "dtype": "float32"},
    ]
    assert about["action"] == {"shape": [3], "dtype": "float32"}
    assert (about["action_size"], about["discrete"], about["memory"]) == (3, False, [])
    assert about["platforms"] == ["cpu", "cuda", "tpu"]
    assert about["versions"]["jax"] == jax.__version__
    assert about["files"].keys() == FILES - {"policy.json"}


def test_products_are_computed_in_full_precision(exported):
    program = jax_export.deserialize(bytearray((exported[0] / "policy.stablehlo").read_bytes())).mlir_module()
    products = [line for line in program.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) >= 3 and all("precision = [HIGHEST, HIGHEST]" in line for line in products)
    assert "f64" not in program


def test_the_program_does_not_tell_where_it_was_written(exported):
    blob = (exported[0] / "policy.stablehlo").read_bytes()
    assert not re.search(rb"\.py\b", blob) and str(Path(deploy.__file__).parent).encode() not in blob
    assert __name__.encode() not in blob and b"pytest" not in blob, "nor who called"


def copy(folder, to):
    for name in FILES:
        (to / name).write_bytes((folder / name).read_bytes())
    return to


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize(
    "damage", [lambda blob: b"", lambda blob: blob[: len(blob) // 2], lambda blob: b"\x80\x04K\x01." + blob]
)
def test_damaged_files_are_named(exported, tmp_path, name, damage):
    folder = copy(exported[0], tmp_path)
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        both(folder)


@pytest.mark.parametrize("name", sorted(FILES))
def test_missing_files_are_named(exported, tmp_path, name):
    folder = copy(exported[0], tmp_path)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        both(folder)


@given(st.data())
def test_a_flipped_bit_is_refused_or_harmless(exported, tmp_path_factory, data):
    folder, obs, wanted = exported
    blob = bytearray((folder / "policy.npz").read_bytes())
    place = data.draw(st.integers(0, 8 * len(blob) - 1))
    blob[place // 8] ^= 1 << place % 8
    path = tmp_path_factory.mktemp("flipped") / "policy.npz"
    path.write_bytes(blob)
    try:
        policy = export.load_numpy(path)
    except ValueError as error:
        assert f"{path} is damaged or not a policy" in str(error) and "\n" not in str(error)
    else:  # a date, say
        np.testing.assert_allclose(policy(obs), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": np.asarray(2)}, "its format is 2; this reader knows 1"),
        ({"activation": np.asarray("swirl")}, "its activation is 'swirl'; known: tanh"),
        ({"weight_1": np.zeros((3, 3), np.float32)}, "damaged or not a policy"),
        ({"mean": None}, "it lacks 'mean'"),
    ],
)
def test_policies_of_another_kind_are_refused(exported, tmp_path, change, message):
    arrays = dict(np.load(exported[0] / "policy.npz")) | change
    np.savez(tmp_path / "policy.npz", **{name: x for name, x in arrays.items() if x is not None})
    with pytest.raises(ValueError, match=message):
        export.load_numpy(tmp_path / "policy.npz")


class Explosive:
    """Leaves a mark if anybody unpickles it."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_nothing_is_unpickled(exported, tmp_path):
    mark, folder = tmp_path / "mark", copy(exported[0], tmp_path)
    arrays = dict(np.load(folder / "policy.npz"))
    np.savez(folder / "policy.npz", **arrays | {"mean": np.array([Explosive(mark)], object)})
    with pytest.raises(ValueError, match="policy.npz is damaged"):
        export.load_numpy(folder / "policy.npz")
    for name in FILES:
        (folder / name).write_bytes(pickle.dumps(Explosive(mark)))
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            both(folder) if name != "policy.npz" else export.load_numpy(folder / name)
        copy(exported[0], tmp_path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Explosive(mark)))
    assert mark.exists()  # it would have gone off


# What `policy` refuses, and how it writes. These algorithms are as small as can be.

SPEC = Spec(shaped(3), 2)
WEIGHTS = {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}


def tiny(act, state=WEIGHTS):
    return Algorithm(lambda key: state, None, lambda state, obs, key: (act(state, obs), {}))


def linear(state, obs):
    return obs @ state["Dense_0"]["kernel"] + state["Dense_0"]["bias"]


@pytest.mark.parametrize("name", [*sorted(FILES), "policy.memory.npz"])
def test_nothing_is_overwritten(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=f"{name} exists, and is not overwritten"):
        export.policy(tiny(linear), WEIGHTS, SPEC, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


def test_a_failure_while_writing_leaves_no_description_and_no_fragments(tmp_path, monkeypatch):
    replace = os.replace

    def failing(source, target):
        if Path(target).name == "policy.json":
            raise OSError("no space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="no space left"):
        export.policy(tiny(linear), WEIGHTS, SPEC, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"policy.json"}
    with pytest.raises(FileNotFoundError, match="policy.json is missing"):
        export.load(tmp_path)


def test_a_population_is_refused(tmp_path):
    algo = ppo.make(SMALL, PLAIN)
    states = jax.eval_shape(jax.vmap(algo.init), jax.random.split(jax.random.key(0), 3))
    states = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), states)
    with pytest.raises(ValueError, match=r"has shape \(3, .*export one member, sweep.member"):
        export.policy(algo, states, PLAIN, tmp_path / "new")
    with pytest.raises(ValueError, match="not one of this algorithm"):
        export.policy(algo, states.params, PLAIN, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_broken_state_is_refused(tmp_path):
    broken = jax.tree.map(lambda x: x * jnp.nan, WEIGHTS)
    with pytest.raises(ValueError, match="not finite"):
        export.policy(tiny(linear), broken, SPEC, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_policy_that_changes_from_trace_to_trace_is_not_written(tmp_path):
    traces = []

    def drifting(state, obs):
        traces.append(1)
        return linear(state, obs) + float(len(traces))

    with pytest.raises(RuntimeError, match="does not agree with act"):
        export.policy(tiny(drifting), WEIGHTS, SPEC, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_observations_in_unknown_containers_are_refused(tmp_path):
    box = jax.tree_util.Partial(max, shaped(3))  # a registered container that is no dict, list or tuple
    with pytest.raises(ValueError, match="allowed: nested dict, list and tuple"):
        export.policy(tiny(linear), WEIGHTS, SPEC._replace(obs=box), tmp_path)


@pytest.mark.parametrize(
    "act, head", [(linear, "linear"), (lambda s, x: jnp.clip(linear(s, x), -1, 1), "clip")], ids=["linear", "clip"]
)
def test_heads_other_than_tanh(tmp_path, act, head):
    export.policy(tiny(act), WEIGHTS, SPEC, tmp_path)
    obs = observations(SPEC) / 5
    found = export.load_numpy(tmp_path / "policy.npz")
    with np.load(tmp_path / "policy.npz") as file:
        assert file["head"] == head
    np.testing.assert_allclose(found(obs), act(WEIGHTS, obs), rtol=1e-6, atol=1e-6)


def test_an_activation_that_numpy_does_not_know_writes_no_plain_arrays(tmp_path):
    weights = {"Dense_0": {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)}}
    weights["Dense_1"] = {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}

    def act(state, obs):
        hidden = jax.nn.softplus(linear(state, obs))
        return hidden @ state["Dense_1"]["kernel"] + state["Dense_1"]["bias"]

    written = export.policy(tiny(act, weights), weights, SPEC, tmp_path)
    assert written.not_plain == "no plain perceptron in its State agrees with act"
    assert not (tmp_path / "policy.npz").exists()
    np.testing.assert_allclose(export.load(tmp_path)(np.ones(3, np.float32)), 4 * np.log1p(np.exp(3.0)) + 1, rtol=1e-6)


def test_two_perceptrons_that_choose_alike_are_not_told_apart(tmp_path):
    doubled = {"online": WEIGHTS, "target": jax.tree.map(lambda x: 2 * x, WEIGHTS)}
    distinct = {"kernel": jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), "bias": jnp.zeros(2)}
    state = jax.tree.map(lambda x: x, doubled | {"online": {"Dense_0": distinct}})
    state["target"] = jax.tree.map(lambda x: 2 * x, state["online"])
    algo = tiny(lambda state, obs: jnp.argmax(linear(state["online"], obs), -1).astype(jnp.int32), state)
    written = export.policy(algo, state, SPEC._replace(discrete=True), tmp_path)
    assert written.not_plain == "perceptrons that differ all agree with act on random observations"
    assert not (tmp_path / "policy.npz").exists()


def test_platforms_that_cannot_run_it_are_left_out(tmp_path):
    def act(state, obs):
        triangle, _ = jax.scipy.linalg.schur(state["Dense_0"]["kernel"] @ state["Dense_0"]["kernel"].T)  # on CPUs only
        return linear(state, obs) + jnp.trace(triangle)

    written = export.policy(tiny(act), WEIGHTS, SPEC, tmp_path)
    assert written.platforms == ("cpu",)
    np.testing.assert_allclose(export.load(tmp_path)(np.ones((2, 3), np.float32)), np.full((2, 2), 9.0), rtol=1e-5)
