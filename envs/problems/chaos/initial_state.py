r"""`chaos-<system>`: the initial state of a chaotic system from a few of its elements at later times, with noise.

    y_j = x(t_j)_seen + noise,   t_j = j H / (m lambda),   j = 1..m,

lambda being the largest Lyapunov exponent: H = `horizon` is in Lyapunov times, over each of which a small error of the
initial state grows by e. Systems, their units and sources: `envs.problems.chaos.systems`; the integration, and what
happens far from where a system lives: `envs.operators.Evolution`.

The prior is one of states on the attractor, stored (`diffusion.stored_prior`); of Henon and Heiles' star, which has no
attractor, a normal distribution. Where its density is known, as that of a kernel density is, and x has few elements,
the posterior and log Z are known by importance sampling to about 0.02 nats (`envs.exact.weighted`).
"""

from __future__ import annotations

import torch

from diffusion.denoiser import DataSampler, GaussianDenoiser
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from diffusion.stored_prior import load_prior
from envs.exact.weighted import reference
from envs.likelihoods import GaussianLikelihood
from envs.operators import Evolution
from envs.problem import InverseProblem
from envs.problems.chaos.systems import SYSTEMS, System
from envs.registry import register

__all__ = ["henon_heiles", "lorenz63", "lorenz96"]

NORMAL = "normal"
ORBIT_STD = 0.2  # of a star's place and velocity; of the energy the mean is 0.08, and 8 % are above 1/6, not bound


@register("chaos-lorenz63")
def lorenz63(
    *,
    prior: str = "lorenz63-kde",
    seen: tuple[str, ...] = ("x",),
    times: int = 4,
    horizon: float = 1.0,
    noise_std: float = 2.0,
    count: int = 1,
    num_steps: int = 50,
    schedule: str = "vp-cosine-zero-snr",
    seed: int = 0,
) -> InverseProblem:
    """Lorenz's convection, elements x, y and z: those `seen` at `times` times up to `horizon` Lyapunov times of 1.1.

    `count` states are drawn from the prior and measured with noise of `noise_std`; the elements have a standard
    deviation of 8 to 9. Priors that ship: lorenz63-kde, the kernel density of 2,000 states, and lorenz63, a network.
    """
    chain = load_prior(prior, num_steps, schedule)
    return _problem("lorenz63", chain, seen, times, horizon, noise_std, count, seed)


@register("chaos-lorenz96")
def lorenz96(
    *,
    prior: str = "lorenz96",
    every: int = 2,
    times: int = 4,
    horizon: float = 1.0,
    noise_std: float = 1.0,
    count: int = 1,
    num_steps: int = 50,
    schedule: str = "vp-cosine-zero-snr",
    seed: int = 0,
) -> InverseProblem:
    """Lorenz's weather of 40 elements: one of `every` so many, `times` times up to `horizon` Lyapunov times of 0.6.

    `count` states are drawn from the prior and measured with noise of `noise_std`; the elements have a standard
    deviation of 3.6, and a unit of time is five days.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    chain = load_prior(prior, num_steps, schedule)
    seen = SYSTEMS["lorenz96"].elements[::every]
    return _problem("lorenz96", chain, seen, times, horizon, noise_std, count, seed)


@register("chaos-henon-heiles")
def henon_heiles(
    *,
    prior: str = NORMAL,
    seen: tuple[str, ...] = ("u",),
    times: int = 4,
    horizon: float = 0.5,
    noise_std: float = 0.1,
    count: int = 1,
    num_steps: int = 50,
    schedule: str = "vp-cosine-zero-snr",
    seed: int = 0,
) -> InverseProblem:
    """A star in a galaxy, place u, v and velocity p, q: those `seen` up to `horizon` Lyapunov times of 20.

    `count` orbits are drawn from the prior, N(0, 0.2^2 I) or one that is stored, and measured with noise
    of `noise_std`.
    """
    if prior == NORMAL:
        denoiser = GaussianDenoiser(torch.zeros(4), ORBIT_STD**2)
        levels = make_schedule(schedule, num_steps, scale=ORBIT_STD)
        chain = Prior(denoiser, levels, (4,), denoiser.denoising_variance, ORBIT_STD)
    else:
        chain = load_prior(prior, num_steps, schedule)
    return _problem("henon-heiles", chain, seen, times, horizon, noise_std, count, seed)


def _problem(
    name: str,
    prior: Prior,
    seen: tuple[str, ...],
    times: int,
    horizon: float,
    noise_std: float,
    count: int,
    seed: int,
) -> InverseProblem:
    system = SYSTEMS[name]
    if prior.event_shape != (len(system.elements),):
        raise ValueError(
            f"chaos-{name} needs a prior of {len(system.elements)} elements, got one of shape {prior.event_shape}"
        )
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    likelihood = GaussianLikelihood(_operator(system, seen, times, horizon), noise_std)
    generator = torch.Generator().manual_seed(seed)
    denoiser = prior.denoiser
    drawn = denoiser.sample(count, generator) if isinstance(denoiser, DataSampler) else prior.sample(count, generator)
    truth = drawn.double()
    problem = InverseProblem(
        name=f"chaos-{name}",
        prior=prior,
        likelihood=likelihood,
        measurements=likelihood.sample(truth, generator).float(),
        truth=truth.float(),
        measurement_image=lambda value: value.float().T,
        solve=reference(prior, likelihood),
    )
    return problem.solved()


def _operator(system: System, seen: tuple[str, ...], times: int, horizon: float) -> Evolution:
    """Seen as often as asked, and until then in the nearest whole number of steps."""
    unknown = [name for name in seen if name not in system.elements]
    if unknown or not seen:
        raise ValueError(f"seen must name some of the elements {', '.join(system.elements)}, got {', '.join(seen)!r}")
    if times < 1 or not horizon > 0:
        raise ValueError(f"times must be at least 1 and horizon positive, got {times} and {horizon}")
    stride = max(round(horizon / system.exponent / times / system.step), 1)
    indices = [system.elements.index(name) for name in seen]
    return Evolution(
        system.derivative,
        len(system.elements),
        indices,
        step=system.step,
        stride=stride,
        times=times,
        bound=system.bound,
    )
