"""Activations that are computed again instead of being kept: the same gradient in less memory."""

import pytest
import torch

from actors import Actor, ActorConfig
from diffusion.denoiser import NetworkDenoiser
from diffusion.network import UNet
from diffusion.posterior import ControlPosterior, FinetunePosterior
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs import InverseProblem
from envs.likelihoods import GaussianLikelihood
from envs.operators import Matrix
from learner import Learner, LearnerConfig

FORMS = {
    "finetune": lambda problem: FinetunePosterior(problem.prior, (2,)),
    "lora": lambda problem: FinetunePosterior(problem.prior, (2,), rank=2),
    "control": lambda problem: ControlPosterior(problem.prior, (2,), problem.gradient, network="unet", hidden=8),
}


@pytest.fixture
def problem():
    torch.manual_seed(0)
    network = UNet(1, 1, (8, 16), groups=4)
    torch.nn.init.normal_(network.head.weight, std=0.05)
    prior = Prior(NetworkDenoiser(network).requires_grad_(False), make_schedule("vp-cosine-zero-snr", 4), (1, 8, 8))
    likelihood = GaussianLikelihood(Matrix(torch.eye(2, 64, dtype=torch.float64)), 0.5)
    return InverseProblem(name="images", prior=prior, likelihood=likelihood, measurements=torch.ones(1, 2))


def _posterior(problem, form):
    torch.manual_seed(1)
    posterior = FORMS[form](problem)
    for parameter in posterior.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return posterior


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_gradient_is_the_same_and_more_transitions_fit_the_memory(problem, form, precision):
    alone = {"on-policy": 1.0}
    config = ActorConfig(batch_size=6, mixture=alone, final_mixture=alone)
    batch = Actor(problem, _posterior(problem, form), config, seed=0).act()
    gradients, rows, losses = [], [], []
    for again in (False, True):
        settings = LearnerConfig(
            batch_size=6, checkpoint_activations=again, graph_bytes=2**24, gradient_clip=1e9, precision=precision
        )
        learner = Learner(problem, _posterior(problem, form), settings)
        losses.append(learner.update(batch, 0.0).loss)
        gradients.append(torch.cat([value.grad.flatten() for value in learner.posterior.parameters()]))
        rows.append(learner._limits.graph)
    assert losses[1] == pytest.approx(losses[0], rel=1e-6) and losses[0] > 0
    assert float(gradients[0].norm()) > 0
    assert float((gradients[1] - gradients[0]).norm()) < 1e-5 * float(gradients[0].norm())
    assert rows[1] > 2 * rows[0]


def test_a_network_without_blocks_is_refused(gaussian_problem):
    with pytest.raises(ValueError, match="checkpoint_activations is for a network of blocks"):
        Learner(
            gaussian_problem, ControlPosterior(gaussian_problem.prior, (2,)), LearnerConfig(checkpoint_activations=True)
        )
