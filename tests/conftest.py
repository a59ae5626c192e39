"""Shared by all tests: one thread, fixed seeds, and small problems whose answers are known."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import settings

from diffusion.denoiser import MixtureDenoiser, NetworkDenoiser
from diffusion.network import MLP
from diffusion.path import denoise_path
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs import InverseProblem, make_problem
from learner.batch import PathBatch
from tests import virtual_device

torch.set_num_threads(1)
if not torch.cuda.is_available():  # torch has one accelerator a process
    virtual_device.register()
settings.register_profile("untimed", deadline=None)  # a busy machine is not a failing test
settings.load_profile("untimed")


@pytest.fixture
def generator() -> torch.Generator:
    """A fresh random stream with a fixed seed."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def line_mixture() -> MixtureDenoiser:
    """Three unequal Gaussians of variance 0.3 on a line."""
    means = torch.tensor([[-2.0], [0.5], [3.0]], dtype=torch.float64)
    return MixtureDenoiser(means, 0.3, torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log())


@pytest.fixture(scope="session")
def plane_mixture() -> MixtureDenoiser:
    """Three unequal Gaussians in the plane that share a tilted covariance."""
    means = torch.tensor([[-2.0, 1.0], [0.5, -1.0], [1.5, 2.0]], dtype=torch.float64)
    covariance = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)
    return MixtureDenoiser(means, covariance, torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log())


@pytest.fixture(scope="session")
def gaussian_problem() -> InverseProblem:
    """Four dimensions seen through two numbers, ten steps, zero terminal SNR: exact for the discrete chain."""
    return make_problem("gaussian-linear", {"dim": 4, "measurement_dim": 2, "num_steps": 10})


@pytest.fixture(scope="session")
def path_batch() -> Callable[..., PathBatch]:
    """(prior, states, measurement) -> a batch for the gradient; likelihoods and behaviour are zero unless given."""

    def make(prior: Prior, states: torch.Tensor, measurement: torch.Tensor, **fields: torch.Tensor) -> PathBatch:
        zeros = torch.zeros(len(states), dtype=torch.float64)
        given = {"log_likelihood": zeros, "log_behaviour_ratio": zeros}
        given |= {"measurement_id": zeros.long(), "exact": zeros.bool()} | fields
        denoised = denoise_path(prior, states)
        return PathBatch(states=states, denoised=denoised, measurement=measurement.to(states), **given)

    return make


@pytest.fixture
def network_prior() -> Prior:
    """A frozen random MLP as the prior of three numbers, six steps."""
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(MLP(3, 3, hidden=16, depth=2)).requires_grad_(False)
    return Prior(denoiser, make_schedule("vp-cosine-zero-snr", 6), (3,))
