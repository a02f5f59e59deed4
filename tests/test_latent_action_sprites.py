"""The experiment on the sprite world goes through its codebooks, in a small one."""

import numpy as np

from experiments import latent_action_sprites as sprites


def test_each_codebook_is_probed_beside_a_model_with_all_labels():
    exp = sprites.Sprites(seeds=2, total_steps=10, lanes=8, steps=8, codes=(4,), distractors=(0,))
    said = []
    labels, codes = sprites.codebooks(exp, said.append)
    assert (labels["model"], codes["model"]) == ("labels", 4) and len(said) == 2
    for accuracy in (labels["accuracy"], codes["accuracy"], codes["untrained"]):
        assert accuracy.shape == (2,) and np.all((accuracy >= 0) & (accuracy <= 1))
    assert np.all((codes["perplexity"] >= 1) & (codes["perplexity"] <= 4)) and np.all(np.isfinite(codes["error"]))
