r"""The kernel density of 60,000 images of MNIST as a prior: what a rollout costs, and what leaving components out does.

64 paths of 50 steps, in turn with all components and with those that matter (`diffusion.pruned_mixture`). Left out are
components whose probability given a projection of the state is below e^-40 of the largest: of the responsibilities of a
state at most 60,000 e^-40 = 2.5e-13 in expectation. What that does is measured along the paths, in the largest
difference of x^ in float64, where rounding does not hide it, and in float32, where it does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from actors.rollout import rollout
from benchmarks.harness import parse, write_figures
from diffusion.denoiser import MixtureDenoiser
from diffusion.prior import Prior
from diffusion.pruned_mixture import NEGLIGIBLE_NATS, PrunedMixtureDenoiser
from envs import InverseProblem, make_problem

PATHS, SHORT_PATHS = 64, 16
CHECKED = 4  # paths along which float64 is compared: every step, all components


def timed(function: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """(seconds of processor time, what it gave)."""
    start = time.process_time()
    made = function()
    return time.process_time() - start, made


def with_all(problem: InverseProblem) -> InverseProblem:
    """The problem with a prior that leaves nothing out, on the same chain."""
    pruned = problem.prior.denoiser
    assert isinstance(pruned, PrunedMixtureDenoiser)
    variance = float(pruned.eigenvalues[0])
    whole = MixtureDenoiser(pruned.means, variance, pruned.log_weights, pruned.event_shape)
    old = problem.prior
    prior = Prior(whole, old.schedule, old.event_shape, old.uncertainty.square(), old.data_std)
    return InverseProblem(
        name=problem.name, prior=prior, likelihood=problem.likelihood, measurements=problem.measurements
    )


def largest_difference(problem: InverseProblem, whole: InverseProblem, states: Tensor) -> float:
    """Largest difference of x^ over the states [N, T, *D] of paths, in their precision."""
    errors = []
    for index in range(problem.num_steps):
        state, step = states[:, index], torch.full((len(states),), index)
        errors.append(float((problem.prior.denoised(state, step) - whole.prior.denoised(state, step)).abs().max()))
    return max(errors)


def main() -> None:
    """Runs the benchmark."""
    benchmark = parse("kernel_density", __doc__ or "")
    problem = make_problem("image-inpainting", {"prior": "mnist-kde"})
    whole, rows = with_all(problem), torch.zeros(SHORT_PATHS if benchmark.short else PATHS, dtype=torch.int64)

    def ends(which: InverseProblem, guided: bool) -> Callable[[], Tensor]:
        return lambda: rollout(which, None, rows, generator=problem.generator(0), guided=guided).states

    figures: dict[str, float] = {}
    made = {}
    for guided, name in ((False, "prior"), (True, "guided")):
        for which, kind in ((problem, "pruned"), (whole, "all")):
            figures[f"seconds_{name}_{kind}"], made[kind] = timed(ends(which, guided))
        figures[f"ratio_{name}"] = figures[f"seconds_{name}_all"] / figures[f"seconds_{name}_pruned"]
        figures[f"end_difference_{name}"] = float((made["pruned"][:, -1] - made["all"][:, -1]).abs().max())
    states = made["pruned"][:CHECKED]
    figures["difference_float32"] = largest_difference(problem, whole, states)
    figures["difference_float64"] = largest_difference(problem, whole, states.double())
    figures["bound_left_out"] = 60_000 * math.exp(-NEGLIGIBLE_NATS)
    print(f"\n{len(rows)} paths of {problem.num_steps} steps, seconds of processor time\n")
    print("| rollout | all components | those that matter | times faster | largest difference of x at the end |")
    print("|---|---:|---:|---:|---:|")
    for name, title in (("prior", "of the prior"), ("guided", "with the likelihood's gradient")):
        numbers = [figures[f"seconds_{name}_{kind}"] for kind in ("all", "pruned")]
        print(
            f"| {title} | {numbers[0]:.1f} | {numbers[1]:.1f} | {figures[f'ratio_{name}']:.1f} "
            f"| {figures[f'end_difference_{name}']:.1e} |"
        )
    print(f"\nlargest difference of the estimates of x along {CHECKED} paths, against the bound on what is left out")
    for name in ("difference_float32", "difference_float64", "bound_left_out"):
        print(f"{name:40} {figures[name]:.2e}")
    write_figures(benchmark.json, figures)


if __name__ == "__main__":
    main()
