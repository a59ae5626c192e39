"""A problem of your own, from outside the package: where is it, given one noisy distance to a station at the origin?

The position x ~ N(0, I) lies in the plane and y = |x| + noise, so the posterior is a ring, which no Gaussian fits.
log Z is an integral over the radius, computed here to compare with.

    rtb train configs/experiments/gaussian_linear.yaml --plugins examples.add_a_problem --problem.name range-finder
    python examples/add_a_problem.py [--updates 1000]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from actors import Actor, ActorConfig, rollout
from diffusion.denoiser import GaussianDenoiser
from diffusion.posterior import PosteriorConfig, make_posterior
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs import InverseProblem, make_problem, register
from envs.likelihoods import GaussianLikelihood
from evaluation import evaluate
from learner import Learner, LearnerConfig


# --- the problem ---
class Distance:
    """The forward operator: distance from the origin, [N, 2] -> [N, 1]."""

    measurement_shape = (1,)

    def __call__(self, value: Tensor) -> Tensor:
        """See `envs.operators.ForwardOperator`."""
        return value.norm(dim=1, keepdim=True)


@register("range-finder")
def range_finder(*, distance: float = 1.5, noise_std: float = 0.2, num_steps: int = 20) -> InverseProblem:
    """A position in the plane, from one noisy distance."""
    denoiser = GaussianDenoiser(torch.zeros(2), torch.eye(2))
    schedule = make_schedule("vp-cosine-zero-snr", num_steps)
    return InverseProblem(
        name="range-finder",
        prior=Prior(denoiser, schedule, (2,), denoiser.denoising_variance),
        likelihood=GaussianLikelihood(Distance(), noise_std),
        measurements=torch.tensor([[distance]]),
    )


# --- end of the problem ---
def log_partition(distance: float, noise_std: float) -> float:
    """Exact log p(y), by quadrature over the radius r, whose density is r exp(-r^2 / 2)."""
    radius = torch.linspace(0, 10, 20_001, dtype=torch.float64)
    likelihood = torch.distributions.Normal(radius, noise_std).log_prob(torch.tensor(distance, dtype=torch.float64))
    return math.log(float(torch.trapezoid(radius * (-0.5 * radius.square() + likelihood).exp(), radius)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains on it through the API, without runner or replay, and prints what was learned."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--updates", type=int, default=1_000)
    updates = parser.parse_args(arguments).updates
    torch.set_num_threads(1)
    torch.manual_seed(0)
    problem = make_problem("range-finder", {"distance": 1.5})

    def posterior() -> torch.nn.Module:
        return make_posterior(PosteriorConfig(hidden=64), problem.prior, (1,), problem.gradient)

    learner = Learner(problem, posterior(), LearnerConfig(batch_size=64))
    actor = Actor(problem, posterior(), ActorConfig(batch_size=64), seed=0)
    for update in range(updates):
        actor.load_weights(learner.weights(), version=update, progress=update / updates)
        learner.update(actor.act(), progress=update / updates)
    draws = rollout(problem, learner.posterior.control, torch.zeros(2_000, dtype=torch.int64))
    result = evaluate(problem, 0, draws.states[:, -1], draws.log_weight)
    print(f"ELBO                    {result.elbo:8.3f} nats")
    print(f"importance-weighted     {result.iw_log_partition:8.3f}")
    print(f"exact log Z             {log_partition(1.5, 0.2):8.3f}")
    print(f"effective sample size   {result.effective_sample_size:8.1%}")
    print(f"mean distance           {float(draws.states[:, -1].norm(dim=1).mean()):8.3f}")


if __name__ == "__main__":
    main()
