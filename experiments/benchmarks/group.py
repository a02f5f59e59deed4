"""Speed of a GRPO step, writing and learning, on a decoder of 1.07 M parameters: jaxrl_gen and TRL, in turn.

Run:      python -m experiments.benchmarks.group   (TRL, transformers and CPU PyTorch where they are installed)
Hardware: any; the figures recorded in experiments/results/benchmark_group.json name theirs
Minutes:  about 4 on 2 CPU cores
Expect:   completions per second (64 to a step): medians over rounds, ratios to jaxrl_gen, compile seconds, peak memory

Either side has Qwen2's layout (4 layers of width 128, vocabulary 64, float32), 8 prompts of 8 tokens with 8 completions
of at most 32 tokens each, one update per batch, and a divergence of weight 0.04 from a reference. The reward is the
share of one token in the completion. The table's steps are completions.
"""

import importlib.util
import time
from functools import partial

from experiments.benchmarks._sides import Benchmark, compare, figures, trained

PROMPTS, GROUP, PROMPT, LENGTH, VOCAB, WANTED, END = 8, 8, 8, 32, 64, 5, 1
WIDTH, LAYERS, HEADS, HIDDEN = 128, 4, 4, 512
STEPS = 10  # to a measurement


def ours(seeds: int) -> dict:
    import jax
    import jax.numpy as jnp

    from jaxrl_gen import loops, nets
    from jaxrl_gen.algos import grpo
    from jaxrl_gen.nets import transformer
    from jaxrl_gen.types import Env, Outcome, Spec

    def reset(key):
        obs = {"tokens": jax.random.randint(key, (PROMPT,), 2, VOCAB), "valid": jnp.ones((PROMPT,), bool)}
        return obs, obs

    def step(state, action, key):
        written = jnp.cumsum(action == END) == 0
        reward = jnp.sum((action == WANTED) & written) / jnp.maximum(jnp.sum(written), 1)
        return state, state, Outcome(state, reward, jnp.array(True), jnp.array(False), jnp.array(True))

    shapes = {
        name: jax.ShapeDtypeStruct((PROMPT,), kind) for name, kind in {"tokens": "int32", "valid": "bool"}.items()
    }
    env = Env(reset, step, Spec(shapes, LENGTH, time_limit=1))
    sizes = transformer.Sizes(VOCAB, WIDTH, LAYERS, HEADS, HEADS, HIDDEN, PROMPT + LENGTH, tied=False)
    make = partial(grpo.make, decoder=nets.decoder(sizes))
    loop = loops.group(make, env, starts=PROMPTS, group=GROUP, iterations=STEPS)
    return trained(loop, grpo.Config(lr=1e-3, end=END, kl_coefficient=0.04), seeds=seeds, metric="episode/return")


def trl() -> dict:
    import tempfile

    import tokenizers
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(2)
    words = {"pad": 0, "end": END, **{f"t{i}": i for i in range(2, VOCAB)}}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="pad"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="pad", eos_token="end", padding_side="left")
    config = Qwen2Config(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, intermediate_size=HIDDEN, max_position_embeddings=PROMPT + LENGTH,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=END, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    marks, rewards = [], []

    def reward(completions, **_):
        shares = [text.split().count(f"t{WANTED}") / max(len(text.split()), 1) for text in completions]
        rewards.append(sum(shares) / len(shares))
        return shares

    class Clock(TrainerCallback):
        """The time after each step."""

        def on_step_end(self, *_, **__):
            marks.append(time.perf_counter())

    draw = lambda: " ".join(f"t{i}" for i in torch.randint(2, VOCAB, (PROMPT,)).tolist())
    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            folder, per_device_train_batch_size=PROMPTS * GROUP, num_generations=GROUP, steps_per_generation=1,
            gradient_accumulation_steps=1, num_iterations=1, max_completion_length=LENGTH, beta=0.04, use_cpu=True,
            max_steps=4 * STEPS, learning_rate=1e-3, lr_scheduler_type="constant", save_strategy="no",
            logging_strategy="no", report_to=[], bf16=False, gradient_checkpointing=False, disable_tqdm=True,
        )  # fmt: skip
        Qwen2ForCausalLM(config).save_pretrained(folder)  # the reference is read from where the model came from
        start = time.perf_counter()
        trainer = GRPOTrainer(
            Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32), reward, args=arguments,
            processing_class=tokenizer, callbacks=[Clock()],
            train_dataset=Dataset.from_dict({"prompt": [draw() for _ in range(4 * STEPS * PROMPTS)]}),
        )  # fmt: skip
        trainer.train()
    measured = [marks[i + STEPS] - marks[i] for i in range(STEPS - 1, 3 * STEPS, STEPS)]  # the first ten warm up
    return figures(marks[0] - start, STEPS * PROMPTS * GROUP, measured, last=rewards[-1])


SIDES = {"GRPO, 1 seed | jaxrl_gen": partial(ours, 1), "GRPO, 4 seeds | jaxrl_gen": partial(ours, 4)}
if importlib.util.find_spec("trl"):
    SIDES["GRPO, 1 seed | TRL"] = trl


if __name__ == "__main__":
    import tyro

    compare(tyro.cli(Benchmark), SIDES, "group")
