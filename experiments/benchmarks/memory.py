"""Memory of a run: the peak of a process that goes through 10 chunks, 100 and 1,000.

Run:      python -m experiments.benchmarks.memory
Hardware: any
Minutes:  about 1
Expect:   the same number of megabytes, whatever the number of chunks
"""

import resource
import subprocess
import sys

CHUNKS = (10, 100, 1000)


def peak(chunks: int) -> int:
    """The peak of this process's memory in bytes, after a run of so many chunks."""
    import jax

    from jaxrl_gen import loops, types
    from jaxrl_gen.algos import ppo
    from jaxrl_gen.envs import probe, wrap

    loop = loops.on_policy(ppo.make, wrap.fresh(probe.continuous_action(), 256), steps=64, iterations=2)
    cfg = types.strong(ppo.Config())
    carry = jax.jit(loop.init)(cfg, jax.random.key(0))
    compiled = loops.compile_report(loop, cfg, carry)
    loops.run(compiled.chunk, cfg, carry, chunks=chunks)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Each number of chunks in a process of its own, in turn."""
    for chunks in CHUNKS:
        command = [sys.executable, "-m", "experiments.benchmarks.memory", str(chunks)]
        finished = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"{chunks:5} chunks: {int(finished.stdout.splitlines()[-1]) / 1e6:,.1f} MB")


if __name__ == "__main__":
    print(peak(int(sys.argv[1]))) if len(sys.argv) > 1 else main()
