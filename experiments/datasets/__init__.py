"""Generators of datasets: each a command that writes files with their cards, and functions that experiments call.

    point_maze       expert, medium, noisy, stitching, narrow, mixed; in three mazes
    ogbench_play     play of OGBench's point maze, also to be stitched, cube and scene; `task` labels it, `judge`
                     evaluates a policy
    metaworld_demos  demonstrations of three Meta-World tasks; `judge` evaluates a policy
    own_logs         random, medium, medium-replay, expert, from PPO on a task of Playground or brax; `references`
                     of normalised scores
    reading_speed    how fast files are read

Scores on data made here compare with each other, and never with published ones.
"""
