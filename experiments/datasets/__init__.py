"""Generators of datasets: each a command that writes files with their cards, and functions that experiments call.

    point_maze       expert, medium, noisy, stitching; in three mazes
    ogbench_play     play of OGBench's point maze and cube; `task` labels it, `success` evaluates a policy
    metaworld_demos  demonstrations of three Meta-World tasks; `success` evaluates a policy
    own_logs         random, medium, medium-replay, expert, from PPO on an MJX task
    reading_speed    how fast files are read

Scores on data made here compare with each other, and never with published ones.
"""
