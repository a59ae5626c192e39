"""Stored trajectories that kinds of exploration go on from: paths of the exact posterior, and of the prior."""

import numpy as np
import pytest
import torch

from actors import rollout
from diffusion.path import denoise_path, path_log_prior
from diffusion.trajectory import Origin, Trajectory


def _exact_paths(problem, count):
    """`count` paths of the chain's posterior, of weight Z each."""
    exact, rows = problem.exact[0], torch.zeros(count, dtype=torch.long)
    states = exact.sample_path(count, torch.Generator().manual_seed(7)).float()
    denoised = denoise_path(problem.prior, states)
    log_likelihood = problem.log_likelihood(states[:, -1], rows)
    return Trajectory(
        uid=np.arange(count, dtype=np.uint64),
        states=states.numpy(),
        log_prior=path_log_prior(problem.prior, states, denoised).float().numpy(),
        log_behaviour_ratio=(log_likelihood - exact.log_partition).float().numpy(),
        log_likelihood=log_likelihood.float().numpy(),
        measurement_id=rows.numpy(),
        policy_version=np.zeros(count, np.int64),
        origin=np.full(count, Origin.EXACT, np.uint8),
        denoised=denoised.float().numpy(),
    )


def _prior_paths(problem, count):
    """`count` paths of the prior, of weight p(y | x)."""
    made = rollout(problem, None, torch.zeros(count, dtype=torch.long), generator=torch.Generator().manual_seed(8))
    return made.trajectory(np.arange(count, dtype=np.uint64), 0, Origin.PRIOR)


@pytest.fixture(scope="session")
def stored_paths(gaussian_problem):
    """By what they are drawn from: 20,000 of each, which are not to be changed."""
    made = {"exact": _exact_paths(gaussian_problem, 20_000), "prior": _prior_paths(gaussian_problem, 20_000)}
    for trajectory in made.values():
        for value in trajectory.arrays().values():
            value.setflags(write=False)  # as it comes out of shared memory
    return made


@pytest.fixture(scope="session")
def exact_paths():
    """(problem, count) -> that many paths of the chain's posterior, for problems that know it."""
    return _exact_paths


@pytest.fixture
def exact_starts(stored_paths):
    """As an actor asks replay."""
    return lambda count, by: stored_paths["exact"].take(np.arange(count))
