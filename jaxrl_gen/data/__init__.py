"""Recorded episodes: read from files, checked, held once on the device, and drawn from in the compiled program.

trajectory   Dataset: one pytree out of every format; relabelled, joined, select
sampling     transitions, windows: pure functions (data, key) -> batch, for `loops.offline`
arrays       npz files in D4RL's and in OGBench's layout
rlds         RLDS episodes through tensorflow-datasets, without TensorFlow
checks       one line that says what was read, and refusals
statistics   mean, deviation and range, which travel with the policy
card         what made a dataset, what is in it, and its hash
"""
