"""Networks on patches: cut against NumPy loops, and the same answer wherever on the screen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen.nets import mlp, patches


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_cut_takes_the_patches_apart_and_join_puts_them_together(leading):
    image = np.random.default_rng(0).integers(0, 256, (*leading, 6, 8, 3)).astype(np.uint8)
    grid = jax.jit(lambda x: patches.cut(x, 2))(image)
    assert grid.shape == (*leading, 3, 4, 12) and grid.dtype == jnp.float32
    for row in range(3):
        for column in range(4):
            tile = image[..., 2 * row : 2 * row + 2, 2 * column : 2 * column + 2, :]
            np.testing.assert_allclose(grid[..., row, column, :], tile.reshape(*leading, 12) / 255.0, rtol=1e-6)
    np.testing.assert_allclose(patches.join(grid, 2) * 255.0, image, atol=1e-4)


def test_floats_keep_their_scale_and_sides_must_divide():
    image = np.full((4, 4, 1), 0.5, np.float32)
    np.testing.assert_array_equal(patches.cut(image, 2), np.full((2, 2, 4), 0.5))
    with pytest.raises(ValueError, match="patches of 3 pixels"):
        patches.cut(image, 3)


def test_neighbours_are_the_nine_patches_around_and_beyond_an_edge_the_other_one():
    grid = np.arange(12.0).reshape(3, 4, 1)
    found = np.asarray(patches.with_neighbours(jnp.asarray(grid)))
    for row in range(3):
        for column in range(4):
            around = {grid[(row + i) % 3, (column + j) % 4, 0] for i in (-1, 0, 1) for j in (-1, 0, 1)}
            assert set(found[row, column]) == around and found.shape == (3, 4, 9)


def grids(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_change_says_the_same_wherever_it_happened():
    net, before, after = patches.change(8, 3), grids(4, 5, 2), grids(4, 5, 2, seed=1)
    params = net.init(jax.random.key(0), (before, after))
    apply = jax.jit(net.apply)
    said = apply(params, (before, after))
    moved = apply(params, tuple(jnp.roll(x, (1, 2), (0, 1)) for x in (before, after)))
    np.testing.assert_allclose(moved, said, rtol=1e-5, atol=1e-6)
    assert said.shape == (3,) and np.abs(apply(params, (after, before)) - said).max() > 1e-3


def test_repaint_paints_the_same_wherever_it_is():
    net, grid, code = patches.repaint(8, 6), grids(4, 5, 2), grids(3, seed=1)
    params = net.init(jax.random.key(0), (grid, code))
    apply = jax.jit(net.apply)
    painted = apply(params, (grid, code))
    moved = apply(params, (jnp.roll(grid, (1, 2), (0, 1)), code))
    np.testing.assert_allclose(moved, jnp.roll(painted, (1, 2), (0, 1)), rtol=1e-5, atol=1e-6)
    assert painted.shape == (4, 5, 6) and np.abs(apply(params, (grid, -code)) - painted).max() > 1e-3
    many = apply(params, (jnp.stack([grid] * 2), jnp.stack([code, -code])))
    np.testing.assert_allclose(many[0], painted, rtol=1e-5, atol=1e-6)


def test_of_images_embeds_each_image_of_a_tree():
    net = patches.of_images(patches.change(8, 3), side=2, features=4)
    pair = tuple(np.random.default_rng(i).integers(0, 256, (6, 8, 3)).astype(np.uint8) for i in range(2))
    params = net.init(jax.random.key(0), pair)
    said = net.apply(params, pair)
    embed = lambda x: patches.each(4).apply(params["embed"], patches.cut(x, 2))
    np.testing.assert_allclose(said, patches.change(8, 3).apply(params["net"], tuple(map(embed, pair))), rtol=1e-6)
    several = net.apply(params, tuple(np.stack([x] * 5) for x in pair))
    np.testing.assert_allclose(several, np.stack([said] * 5), rtol=1e-5, atol=1e-6)


def test_each_is_one_dense_layer():
    grid = grids(2, 3, 5)
    params = patches.each(4).init(jax.random.key(0), grid[0, 0])
    np.testing.assert_allclose(patches.each(4).apply(params, grid), mlp((4,)).apply(params, grid))
