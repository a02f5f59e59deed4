"""The experiment on Countdown: each method runs with its own settings, flags come before them, records stay true."""

import dataclasses
import json

import pytest

from experiments import grpo_countdown, publish
from jaxrl_gen import record

RECORDS = sorted(publish.RESULTS.glob("grpo_countdown*.json"))


def run(method, **flags):
    """The Config with which a method runs, where flags change `algo`."""
    exp = grpo_countdown.Countdown(method=method)
    return grpo_countdown.settings(dataclasses.replace(exp, algo=dataclasses.replace(exp.algo, **flags)))


@pytest.mark.parametrize(
    ("method", "walls", "in_reward"),
    [
        ("grpo", (0.2, 0.2), 0.0), ("dr_grpo", (0.2, 0.2), 0.0), ("dapo", (0.2, 0.28), 0.0),
        ("rloo", (0.2, 0.2), 0.03), ("reinforce_plus_plus", (0.2, 0.2), 0.01), ("gspo", (3e-4, 4e-4), 0.0),
        ("cispo", (1.0, 4.0), 0.0), ("clip_cov", (0.2, 0.2), 0.0), ("kl_cov", (0.2, 0.2), 0.0),
        ("cloned", (0.2, 0.2), 0.0),
    ],
)  # fmt: skip
def test_methods_run_with_their_own_settings_and_flags_come_first(method, walls, in_reward):
    assert len(grpo_countdown.METHODS) == 10
    cfg, usual = run(method), grpo_countdown.Countdown().algo
    assert ((cfg.clip_low, cfg.clip_high), cfg.kl_in_reward) == (walls, in_reward)
    plain = dict(clip_low=0.2, clip_high=0.2, kl_in_reward=0.0)
    assert dataclasses.replace(cfg, **plain) == usual
    flags = dict(clip_low=0.11, clip_high=0.12, kl_in_reward=0.13, lr=0.14)
    assert run(method, **flags) == dataclasses.replace(usual, **flags)


def test_what_a_method_sets_is_printed(capsys):
    run("dapo")
    assert capsys.readouterr().out == "dapo: algo.clip_high is 0.28\n"
    run("dapo", clip_high=0.3)
    assert capsys.readouterr().out == ""


def test_the_vocabulary_is_that_of_the_numbers():
    exp = grpo_countdown.Countdown(target=100)
    assert grpo_countdown.settings(exp).vocab == 107
    wrong = dataclasses.replace(exp, algo=dataclasses.replace(exp.algo, vocab=58))
    with pytest.raises(ValueError, match="config.vocab is 58; expected 107"):
        grpo_countdown.main(wrong)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="method is 'ppo'; allowed: grpo, dr_grpo"):
        grpo_countdown.main(grpo_countdown.Countdown(method="ppo"))


def test_a_divergence_from_no_reference_is_refused_before_the_run():
    algo = dataclasses.replace(grpo_countdown.Countdown().algo, reference=False)
    with pytest.raises(ValueError, match="config.kl_in_reward is 0.03 without a reference"):
        grpo_countdown.main(grpo_countdown.Countdown(method="rloo", algo=algo))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_is_of_the_settings_that_its_method_has_today(path):
    told = json.loads(path.read_text())["config"]
    told = told["static"] | told["floats"]
    today = record.plain(record.describe(run(told["method"])))
    for field, value in (today["static"] | today["floats"]).items():
        assert told["algo." + field.removeprefix("config.")] == pytest.approx(value, rel=1e-6), field
