"""Samples corrected by resampling and moving, against a posterior that is known, from a proposal that is wrong."""

import dataclasses
import math

import pytest
import torch

from actors import rollout
from actors.resample_move import SWEEPS, moved, resampled
from actors.rollout import Rollout
from diffusion.path import denoise_path, path_log_prior
from diffusion.posterior import ControlPosterior
from envs.asked import LikelihoodCalls
from evaluation import bounds
from evaluation.bounds import effective_sample_size


@pytest.fixture
def wrong(gaussian_problem):
    """A control that pushes away from the posterior."""
    torch.manual_seed(0)
    posterior = ControlPosterior(gaussian_problem.prior, (2,), gaussian_problem.gradient, hidden=8)
    torch.nn.init.normal_(posterior.network.head.bias, std=0.5)
    return posterior.requires_grad_(False)


def _parts(problem, posterior, sizes, generator):
    for size in sizes:
        rows = torch.zeros(size, dtype=torch.int64)
        yield rollout(problem, posterior.control, rows, generator=generator, guided=posterior.uses_guidance)


def test_draws_are_in_proportion_to_the_weights_of_all_parts(gaussian_problem, wrong, generator):
    parts = list(_parts(gaussian_problem, wrong, (3, 1, 4), generator))
    wanted = torch.tensor([0.1, 0.0, 0.2, 0.15, 0.05, 0.3, 0.0, 0.2], dtype=torch.float64)
    made = []
    for part, log_weight in zip(parts, wanted.log().split((3, 1, 4)), strict=True):
        likelihood = 700 + log_weight + part.log_ratio.double().sum(1)  # weights of any size
        made.append(dataclasses.replace(part, log_likelihood=likelihood))
    count = 40_000
    drawn, numbers = resampled(made, count, generator)
    ends = torch.cat([part.states[:, -1] for part in parts])
    share = (drawn.states[:, -1][:, None] == ends).all(-1).double().mean(0)
    assert torch.equal(drawn.states[:, -1], ends[numbers])
    error = (wanted * (1 - wanted) / count).sqrt()
    assert ((share - wanted).abs() <= 4.5 * error).all()
    assert torch.equal(drawn.log_likelihood, torch.cat([part.log_likelihood for part in made])[numbers])


def test_paths_without_weight_are_never_drawn(gaussian_problem, wrong, generator):
    (part,) = _parts(gaussian_problem, wrong, (4,), generator)
    likelihood = torch.tensor([math.nan, -math.inf, 0.0, math.inf])
    drawn, _ = resampled([dataclasses.replace(part, log_likelihood=likelihood)], 50, generator)
    assert (drawn.states == part.states[2]).all()
    nothing = dataclasses.replace(part, log_likelihood=torch.full((4,), -math.inf))
    assert resampled([nothing, nothing], 50, generator) is None


def test_samples_of_a_wrong_posterior_come_near_the_exact_one(gaussian_problem, wrong, generator):
    exact = gaussian_problem.exact[0]
    paths = list(_parts(gaussian_problem, wrong, (1_500, 1_500), generator))
    drawn = torch.cat([part.states[:, -1] for part in paths]).double()
    kept, _ = resampled(paths, 2_000, generator)
    worth = 3_000 * effective_sample_size(torch.cat([part.log_weight for part in paths]))
    samples = moved(gaussian_problem, wrong, kept, generator)[0].double()
    before, after = ((part.mean(0) - exact.mean).abs() / exact.variance.sqrt() for part in (drawn, samples))
    assert float(before.max()) > 0.5
    assert float(after.max()) < 4 / (1 / worth + 1 / 2_000) ** -0.5
    assert len(samples.unique(dim=0)) > 1.3 * len(kept.states[:, -1].unique(dim=0))


def test_moves_leave_the_exact_posterior_of_the_chain_as_it_is(gaussian_problem, wrong, generator):
    problem, count = gaussian_problem, 8_000
    exact, rows = problem.exact[0], torch.zeros(count, dtype=torch.int64)
    states = bounds.exact_paths(problem, 0, count, generator).float()
    denoised, zeros = denoise_path(problem.prior, states), torch.zeros(count, dtype=torch.float64)
    paths = Rollout(
        states=states,
        denoised=denoised,
        log_prior=path_log_prior(problem.prior, states, denoised, 4_096),
        log_ratio=torch.zeros(count, problem.num_steps),
        log_behaviour_ratio=zeros,
        log_likelihood=problem.log_likelihood(states[:, -1], rows),
        measurement_id=rows,
    )
    samples, accepted = moved(problem, wrong, paths, generator, sweeps=12)
    samples = samples.double()
    start = states[:, -1].double()
    moved_by = (samples - start).square().mean(0) / (2 * exact.variance)
    assert 0.05 < accepted < 0.95 and float(moved_by.min()) > 0.1  # 1 of independent draws
    scale = exact.variance.sqrt()
    assert float(((samples.mean(0) - exact.mean) / scale).abs().max()) < 4.5 / count**0.5
    assert float((samples.var(0) / exact.variance - 1).abs().max()) < 4.5 * (2 / count) ** 0.5


def test_a_likelihood_is_asked_once_a_sweep_and_for_no_gradient_that_the_posterior_does_not_use(gaussian_problem):
    posterior = ControlPosterior(gaussian_problem.prior, (2,), hidden=8).requires_grad_(False)
    problem, generator = dataclasses.replace(gaussian_problem, calls=LikelihoodCalls()), torch.Generator()
    (part,) = _parts(problem, posterior, (5,), generator)
    moved(problem, posterior, part, generator)
    assert problem.calls.count == 5 * (1 + SWEEPS)


def test_no_sweeps_are_refused(gaussian_problem, wrong, generator):
    (part,) = _parts(gaussian_problem, wrong, (4,), generator)
    with pytest.raises(ValueError, match="sweeps must be at least 1, got 0"):
        moved(gaussian_problem, wrong, part, generator, sweeps=0)
    assert len(moved(gaussian_problem, wrong, part.take(torch.tensor([0])), generator)[0]) == 1
