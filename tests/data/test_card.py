"""Cards say what is in the file, and notice when it is another."""

import hashlib
import json

import numpy as np
import pytest

from jaxrl_gen.data import arrays, card
from tests.data.recorded import LENGTHS, dataset, episodes


def test_a_card_says_what_is_in_the_file(tmp_path):
    path = tmp_path / "maze.npz"
    arrays.write_d4rl(path, dataset())
    told = card.write(path, dataset(), generator="python -m x", seed=3, scores={"expert": 0.5}, maze=["##"])
    assert card.read(path) == told == json.loads((tmp_path / "maze.npz.card.json").read_text())
    assert told["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert told["counts"] == {"episodes": 4, "steps": 14, "terminated": 2, "truncated": 2}
    assert told["length"] == {"min": 1, "mean": np.mean(LENGTHS), "max": 7} and told["maze"] == ["##"]
    returns = [episode["reward"].sum() for episode in episodes()]
    assert told["return"] == pytest.approx({"min": min(returns), "mean": np.mean(returns), "max": max(returns)})
    assert (told["generator"], told["seed"], told["scores"]) == ("python -m x", 3, {"expert": 0.5})
    assert told["versions"]["numpy"] == np.__version__


def test_another_file_is_noticed(tmp_path):
    path = tmp_path / "folder"
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "a").write_bytes(b"12")
    (path / "b").write_bytes(b"3")
    card.write(path, dataset(), generator="g", seed=0, scores={})
    assert card.read(path)["file"] == "folder"
    (path / "inner" / "a").write_bytes(b"1")
    (path / "b").write_bytes(b"23")
    with pytest.raises(ValueError, match=r"folder: sha256 is \w{12}...; expected \w{12}..., as its card says"):
        card.read(path)


def test_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match="x.npz: there is no such file"):
        card.read(tmp_path / "x.npz")
    (tmp_path / "x.npz").write_bytes(b"1")
    with pytest.raises(FileNotFoundError, match="x.npz.card.json: there is no such file"):
        card.read(tmp_path / "x.npz")
    (tmp_path / "x.npz.card.json").write_text("[1]")
    with pytest.raises(ValueError, match="x.npz.card.json: is no card of a dataset"):
        card.read(tmp_path / "x.npz")
