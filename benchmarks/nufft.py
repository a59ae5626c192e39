"""The fast transform of visibilities against the direct sum: error, and the size from which it is faster.

Images of N x N pixels and K visibilities, drawn evenly over what the pixels carry; float32, 64 images, forward and
adjoint together, one thread, the best of three. The direct sum is a product with a matrix, and its cost per pixel grows
with K; the fast transform's is the grid's. `fast_from` is the K from which the fast one is ahead in every case.
`day_mib` is the largest resident memory of this process, all libraries included, while it reads a whole day of the
Event Horizon Telescope, where $RTB_DATA has it, and transforms 64 images of 64 x 64 pixels there and back.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from benchmarks.harness import parse, peak_bytes, reset_peak_bytes, write_figures
from envs.data import MissingDataError, data_file, read_visibilities
from envs.operators import FastVisibilities, Visibilities
from envs.operators.base import LinearOperator
from envs.operators.visibilities import ARCSECOND
from envs.problems.radio.observation import EHT

CASES = ((32, 512), (32, 1_024), (32, 2_048), (32, 4_096), (64, 512), (64, 1_024), (64, 2_048), (64, 4_096))
SHORT_CASES = CASES[:4]
BATCH, REPEATS = 64, 3
DAY = "SR1_M87_2017_096_lo_hops_netcal_StokesI.csv"  # the one with the most visibilities
DAY_FIELD, DAY_SIZE = 1.28e-4 * ARCSECOND, 64


def seconds(operator: LinearOperator, value: Tensor) -> float:
    """Of A^T A x, the best of three after one that warms up."""
    taken = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        operator.adjoint(operator(value))
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def day_mib() -> tuple[int, float]:
    """Visibilities of a day, and the peak of memory.

    Raises:
        MissingDataError: the day is not on this machine.
    """
    path = data_file("eht_m87_2017", "csv", DAY, source=EHT)
    reset_peak_bytes()
    table = read_visibilities(path)
    frequencies = torch.from_numpy(table.u), torch.from_numpy(table.v)
    operator = FastVisibilities((1, DAY_SIZE, DAY_SIZE), *frequencies, DAY_FIELD / DAY_SIZE)
    operator.adjoint(operator(torch.rand(BATCH, 1, DAY_SIZE, DAY_SIZE)))
    return len(table), peak_bytes() / 2**20


def main() -> None:
    """Runs the benchmark."""
    benchmark = parse("nufft", __doc__ or "")
    generator = torch.Generator().manual_seed(0)
    figures: dict[str, float] = {}
    ratios: list[tuple[int, float]] = []
    try:  # first, as what later cases leave in memory would count
        count, figures["day_mib"] = day_mib()
        print(f"a day of {count:,} visibilities: {figures['day_mib']:.0f} MiB at most\n")
    except MissingDataError as missing:
        print(f"{missing}\n")
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
