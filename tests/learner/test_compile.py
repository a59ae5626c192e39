"""Networks whose operations torch.compile fuses: the same updates."""

import shutil

import pytest
import torch

from actors import Actor, ActorConfig
from diffusion.posterior import ControlPosterior
from learner import Learner, LearnerConfig


def _learner(problem, **options):
    torch.manual_seed(1)
    posterior = ControlPosterior(problem.prior, (2,), problem.gradient, hidden=16, elementwise=8)
    for parameter in posterior.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return Learner(problem, posterior, LearnerConfig(warmup_updates=0, gradient_clip=1e9, **options))


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_updates_are_the_same_in_one_chunk_and_in_several(gaussian_problem):
    alone = {"on-policy": 1.0}
    config = ActorConfig(batch_size=8, mixture=alone, final_mixture=alone)
    batch = Actor(gaussian_problem, _learner(gaussian_problem).posterior, config, seed=0).act()
    found = []
    for compiles in (False, True):
        learner = _learner(gaussian_problem, compile=compiles)
        assert all((network._compiled_call_impl is not None) == compiles for network in learner.posterior.networks)
        losses, gradients = [], []
        for _ in range(2):
            losses.append(learner.update(batch, 0.0).loss)
            gradients.append(torch.cat([value.grad.flatten() for value in learner.posterior.parameters()]))
            learner.limit_rows(7)  # chunks of seven transitions, and a smaller one
        found.append((losses, torch.stack(gradients)))
    (plain, expected), (fused, gradient) = found
    assert fused == pytest.approx(plain, rel=1e-5) and float(expected.norm(dim=1).min()) > 0
    assert float((gradient - expected).norm()) < 1e-5 * float(expected.norm())


def test_a_missing_compiler_is_said_at_the_start(gaussian_problem, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="compile needs a C\\+\\+ compiler, but there is no 'no-such-compiler'"):
        _learner(gaussian_problem, compile=True)
