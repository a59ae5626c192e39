"""The fast transform of visibilities against the direct sum: error, and the size from which it is faster.

Images of N x N pixels and K visibilities, drawn evenly over what the pixels carry; float32, 64 images, forward and
adjoint together, one thread, the best of three. The direct sum is a product with a matrix, and its cost per pixel grows
with K; the fast transform's is the grid's. `fast_from` is the K from which the fast one is ahead in every case.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from benchmarks.harness import parse, write_figures
from envs.operators import FastVisibilities, Visibilities
from envs.operators.base import LinearOperator

CASES = ((32, 512), (32, 1_024), (32, 2_048), (32, 4_096), (64, 512), (64, 1_024), (64, 2_048), (64, 4_096))
SHORT_CASES = CASES[:4]
BATCH, REPEATS = 64, 3


def seconds(operator: LinearOperator, value: Tensor) -> float:
    """Of A^T A x, the best of three after one that warms up."""
    taken = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        operator.adjoint(operator(value))
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def main() -> None:
    """Runs the benchmark."""
    benchmark = parse("nufft", __doc__ or "")
    generator = torch.Generator().manual_seed(0)
    figures: dict[str, float] = {}
    ratios: list[tuple[int, float]] = []
    print("| pixels | visibilities | direct, ms | fast, ms | direct / fast | error |")
    print("|---:|---:|---:|---:|---:|---:|")
    for size, count in SHORT_CASES if benchmark.short else CASES:
        u, v = (torch.rand(2, count, generator=generator, dtype=torch.float64) - 0.5) / 1e-6
        direct, fast = (kind((1, size, size), u, v, 1e-6) for kind in (Visibilities, FastVisibilities))
        value = torch.rand(BATCH, 1, size, size, generator=generator)
        times = seconds(direct, value), seconds(fast, value)
        exact = direct(value[:1].double())
        error = float((fast(value[:1]).double() - exact).norm() / exact.norm())
        ratio = times[0] / times[1]
        print(
            f"| {size} x {size} | {count} | {1e3 * times[0]:.1f} | {1e3 * times[1]:.1f} | {ratio:.2f} | {error:.1e} |"
        )
        figures[f"speedup_{size}_{count}"] = ratio
        figures["largest_error"] = max(figures.get("largest_error", 0.0), error)
        ratios.append((count, ratio))
    behind = max((count for count, ratio in ratios if ratio <= 1), default=0)
    ahead = [count for count, _ in ratios if count > behind]
    if ahead:
        figures["fast_from"] = float(min(ahead))
        print(f"\nfast from K = {min(ahead)} on, error at most {figures['largest_error']:.1e}")
    write_figures(benchmark.json, figures)


if __name__ == "__main__":
    main()
