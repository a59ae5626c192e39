"""Time and memory of one learner step against a plain reference, in the same run, one thread or one GPU.

The reference does what published code does: it rolls out in the learner in a Python loop over the steps with the graph
of all of them kept, scores the prior in a second loop, and back-propagates through everything. Ours gets trajectories
that actors made, with the prior's estimates; networks, batch and number of steps are the same. What is counted is a
whole step, from the message to the new weights.

    all        every transition, replayed trajectories
    compiled   the same with the network's operations fused (the MLP's; to compile the U-Net takes a CPU ten minutes)
    bfloat16   the same as `all`, and for the MLP as `compiled`, in bfloat16, where the device multiplies it
    chunked    the same with at most a fifth of the transitions in memory
    subset     K of T transitions, replayed trajectories, as few in memory
    fresh      K of T transitions, trajectories of the present weights, as few in memory

With `--device cuda` batches are larger, the reference loops over the same GPU, time is wall-clock time, and memory that
of the GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from actors import Actor, ActorConfig
from benchmarks.harness import peak_bytes, write_figures
from diffusion.denoiser import NetworkDenoiser
from diffusion.kernel import normal_log_prob
from diffusion.network import MLP, UNet
from diffusion.posterior import FinetunePosterior
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from diffusion.trajectory import Trajectory
from envs import InverseProblem
from envs.likelihoods import GaussianLikelihood
from envs.operators import Matrix
from learner import Learner, LearnerConfig
from learner.learner import multiplies_bfloat16

VARIANTS = ("reference", "all", "chunked", "subset", "fresh")
PUBLISHED_CLIP = 0.1  # of the squared residual, in the reference's loss


@dataclass(frozen=True)
class Case:
    """Network, batch and chain."""

    shape: tuple[int, ...]
    batch: int
    steps: int
    subset: int
    rounds: int
    variants: tuple[str, ...] = VARIANTS


CASES = {
    "mlp": Case(
        shape=(2,), batch=500, steps=100, subset=25, rounds=15, variants=(*VARIANTS, "compiled", "compiled-bfloat16")
    ),
    "unet": Case(shape=(1, 32, 32), batch=8, steps=20, subset=5, rounds=5, variants=(*VARIANTS, "bfloat16")),
}


GPU_CASES = {
    "mlp": dataclasses.replace(
        CASES["mlp"], batch=2048, variants=(*VARIANTS, "compiled", "bfloat16", "compiled-bfloat16")
    ),
    "unet": dataclasses.replace(CASES["unet"], batch=64, rounds=10),
}


def make_problem(case: Case, device: str, dtype: torch.dtype = torch.float32) -> InverseProblem:
    """A network with random weights as the prior, the first number of x measured."""
    torch.manual_seed(0)
    dim = math.prod(case.shape)
    network: nn.Module = MLP(dim, dim, 96, 4) if len(case.shape) == 1 else UNet(1, 1, (32, 64, 64))
    for parameter in network.head.parameters():  # type: ignore[union-attr]
        nn.init.normal_(parameter, std=0.05)
    denoiser = NetworkDenoiser(network).requires_grad_(False).to(dtype)
    prior = Prior(denoiser, make_schedule("vp-cosine-zero-snr", case.steps), case.shape)
    likelihood = GaussianLikelihood(Matrix(torch.eye(1, dim, dtype=torch.float64)), 1.0)
    problem = InverseProblem(name="learner-step", prior=prior, likelihood=likelihood, measurements=torch.ones(1, 1))
    return problem.to(device)


def make_trajectory(problem: InverseProblem, case: Case) -> Trajectory:
    """What an actor sends."""
    alone = {"on-policy": 1.0}
    config = ActorConfig(batch_size=case.batch, mixture=alone, final_mixture=alone)
    return Actor(problem, FinetunePosterior(problem.prior), config, seed=0).act()


class PlainReference:
    """A step as published code makes it."""

    def __init__(self, problem: InverseProblem) -> None:
        self.problem = problem
        self.posterior = FinetunePosterior(problem.prior).to(problem.device)
        self.log_partition = nn.Parameter(torch.zeros((), dtype=torch.float64, device=problem.device))
        self.optimizer = torch.optim.Adam([*self.posterior.parameters(), self.log_partition], lr=1e-3)

    def step(self, batch: int) -> None:
        """Rolls out, scores, and updates."""
        with self.problem.placement():
            self._step(batch)

    def _step(self, batch: int) -> None:
        prior = self.problem.prior
        states, log_posterior = [prior.sample_base(batch)], torch.zeros(batch, dtype=torch.float64)
        for index in range(prior.num_steps):
            step = torch.full((batch,), index)
            mean = self._mean(states[-1], step)
            following = (mean + prior.std[index] * torch.randn_like(mean)).to(mean).detach()
            log_posterior = log_posterior + normal_log_prob(following, mean, prior.std[step]).double()
            states.append(following)
        self.optimizer.zero_grad()
        self._loss(torch.stack(states, 1), log_posterior).backward()
        self.optimizer.step()

    def gradient(self, states: Tensor) -> Tensor:
        """Of the loss on given `states` [B, T+1, *D], flat; with the residual's square."""
        log_posterior = torch.zeros(len(states), dtype=torch.float64)
        for index in range(self.problem.prior.num_steps):
            step = torch.full((len(states),), index)
            mean = self._mean(states[:, index], step)
            log_posterior = log_posterior + normal_log_prob(states[:, index + 1], mean, self.problem.prior.std[step])
        self._loss(states, log_posterior, clip=0.0).backward()
        return torch.cat([parameter.grad.flatten() for parameter in self.posterior.parameters()])  # type: ignore[union-attr]

    def _mean(self, state: Tensor, step: Tensor) -> Tensor:
        prior = self.problem.prior
        return prior.mean(state, step, self.posterior.denoiser(state, prior.alpha[step], prior.sigma[step]))

    def _loss(self, states: Tensor, log_posterior: Tensor, clip: float = PUBLISHED_CLIP) -> Tensor:
        prior, log_prior = self.problem.prior, torch.zeros(len(states), dtype=torch.float64)
        for index in range(prior.num_steps):
            step = torch.full((len(states),), index)
            log_prior += prior.log_prob(states[:, index + 1], states[:, index], step).double()
        likelihood = self.problem.log_likelihood(states[:, -1], torch.zeros(len(states), dtype=torch.long))
        residual = self.log_partition + log_posterior - log_prior - likelihood.double()
        return 0.5 * (residual.square() - clip).clamp_min(0).mean()


def stepper(case: Case, variant: str, device: str) -> Callable[[], None]:
    """Makes one learner step when called."""
    problem = make_problem(case, device)
    if variant == "reference":
        reference = PlainReference(problem)
        return lambda: reference.step(case.batch)
    steps_per_path = case.subset if variant in ("subset", "fresh") else None
    config = LearnerConfig(
        steps_per_path=steps_per_path,
        objective="rtb",
        graph_bytes=2**40,
        compile="compiled" in variant,
        precision="bfloat16" if "bfloat16" in variant else "float32",
    )
    learner = Learner(problem, FinetunePosterior(problem.prior), config)
    if variant in ("chunked", "subset", "fresh"):
        learner.limit_rows(case.batch * case.steps // 5)
    trajectory = make_trajectory(problem, case)

    def step() -> None:
        version = learner.updates if variant == "fresh" else -1
        learner.update(
            dataclasses.replace(trajectory, policy_version=np.full(case.batch, version, dtype=np.int64)),
            0.5,
            versions_hold=True,
        )

    return step


def memory_of(case: Case, variant: str, device: str) -> int:
    """Memory that steps take beyond what the process had before them; in a process of its own."""
    torch.set_num_threads(1)
    step = stepper(case, variant, device)
    if device == "cpu":
        before, peak = peak_bytes(), peak_bytes
    else:
        torch.cuda.reset_peak_memory_stats()
        before, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated
    for _ in range(2):
        step()
    return peak() - before


def gradient_error(case: Case) -> float:
    """|ours - reference| / |reference| of the gradient of all transitions on the same paths, in float64."""
    problem = make_problem(case, "cpu", torch.float64)
    trajectory = make_trajectory(make_problem(case, "cpu"), case)
    reference = PlainReference(problem)
    for parameter in reference.posterior.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    expected = reference.gradient(torch.from_numpy(np.array(trajectory.states)).double())
    learner = Learner(
        problem, FinetunePosterior(problem.prior), LearnerConfig(objective="rtb", loss="square", gradient_clip=1e12)
    )
    learner.posterior.load_state_dict(reference.posterior.state_dict())
    learner.limit_rows(case.batch * case.steps // 3)
    wide = dataclasses.replace(trajectory, states=trajectory.states.astype(np.float64), denoised=None)
    learner.update(wide, 0.5)
    found = torch.cat([parameter.grad.flatten() for parameter in learner.posterior.parameters()])  # type: ignore[union-attr]
    return float((found - expected).norm() / expected.norm())


def seconds_of(step: Callable[[], None], device: str) -> float:
    """Processor time of a step, or wall-clock time until the GPU has finished it."""
    if device == "cpu":
        began = time.process_time()
        step()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(name: str, rounds: int | None, device: str) -> dict[str, float]:
    """Figures of one case; its table is printed."""
    case = CASES[name] if device == "cpu" else GPU_CASES[name]
    multiplies = device != "cpu" or multiplies_bfloat16()
    variants = [variant for variant in case.variants if "bfloat16" not in variant or multiplies]
    steps = {variant: stepper(case, variant, device) for variant in variants}
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for index in range((rounds or case.rounds) + 1):
        for variant, step in steps.items():
            taken = seconds_of(step, device)
            if index:  # the first is for warming up
                seconds[variant].append(taken)
    typical = {variant: statistics.median(values) for variant, values in seconds.items()}
    memory: dict[str, int] = {}
    for variant in variants:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            memory[variant] = pool.submit(memory_of, case, variant, device).result()
    parameters = sum(value.numel() for value in FinetunePosterior(make_problem(case, "cpu").prior).parameters())
    print(f"\n| {name}, {parameters:,} parameters, B = {case.batch}, T = {case.steps} | ms | speed-up | MiB |")
    print("|---|---:|---:|---:|")
    for variant in variants:
        label = f"{variant}, K = {case.subset}" if variant in ("subset", "fresh") else variant
        ratio = typical["reference"] / typical[variant]
        print(f"| {label} | {1e3 * typical[variant]:.0f} | {ratio:.2f} | {memory[variant] / 2**20:.0f} |")
    figures = {f"{name}_speedup": typical["reference"] / typical["all"]}
    figures |= {
        f"{name}_{variant.replace('-', '_')}_speedup": typical["reference"] / typical[variant]
        for variant in variants[2:]
    }
    figures[f"{name}_memory_ratio"] = memory["subset"] / max(memory["reference"], 1)
    figures[f"{name}_chunked_memory_ratio"] = memory["chunked"] / max(memory["reference"], 1)
    if device == "cpu":
        figures[f"{name}_gradient_error"] = gradient_error(case)
    return {key if device == "cpu" else f"{device}_{key}": value for key, value in figures.items()}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learner_step", description=__doc__)
    parser.add_argument("--short", action="store_true", help="three rounds")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the steps are made")
    known = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    for name in CASES:
        figures |= measure(name, 3 if known.short else None, known.device)
    print()
    for key, value in figures.items():
        print(f"{key:32} {value:.3g}")
    write_figures(known.json, figures)


if __name__ == "__main__":
    main()
