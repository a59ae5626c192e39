"""Samples corrected by resampling and moving, against a posterior that is known, from a proposal that is wrong."""

import dataclasses
import math

import pytest
import torch

from actors import rollout
from actors.resample_move import moved, resampled
from diffusion.posterior import ControlPosterior


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
    drawn = resampled(made, count, generator)
    ends = torch.cat([part.states[:, -1] for part in parts])
    share = (drawn.states[:, -1][:, None] == ends).all(-1).double().mean(0)
    error = (wanted * (1 - wanted) / count).sqrt()
    assert ((share - wanted).abs() <= 4.5 * error).all()
    assert torch.equal(drawn.log_likelihood[:5], torch.cat([p.log_likelihood for p in made])[_rows(drawn, ends)][:5])


def _rows(drawn, ends):
    return (drawn.states[:, -1][:, None] == ends).all(-1).double().argmax(1)


def test_paths_without_weight_are_never_drawn(gaussian_problem, wrong, generator):
    (part,) = _parts(gaussian_problem, wrong, (4,), generator)
    likelihood = torch.tensor([math.nan, -math.inf, 0.0, math.inf])
    drawn = resampled([dataclasses.replace(part, log_likelihood=likelihood)], 50, generator)
    assert (drawn.states == part.states[2]).all()
    nothing = dataclasses.replace(part, log_likelihood=torch.full((4,), -math.inf))
    assert resampled([nothing, nothing], 50, generator) is None


def test_corrected_samples_of_a_wrong_posterior_are_exact(gaussian_problem, wrong, generator):
    exact = gaussian_problem.exact[0]
    paths = list(_parts(gaussian_problem, wrong, (1_500, 1_500), generator))
    drawn = torch.cat([part.states[:, -1] for part in paths]).double()
    kept = resampled(paths, 2_000, generator)
    samples, accepted = moved(gaussian_problem, wrong, kept, generator, sweeps=10, rows=1_999)  # one is left over
    samples = samples.double()
    scale = exact.variance.sqrt()
    before, after = ((part.mean(0) - exact.mean).abs() / scale for part in (drawn, samples))
    assert float(before.max()) > 0.5
    assert float(after.max()) < 0.12  # of about a thousand that are independent: 0.03 each
    assert (samples.std(0) / scale).numpy() == pytest.approx(1, abs=0.1)
    assert 0 < accepted < 1
    assert len(samples.unique(dim=0)) > len(kept.states[:, -1].unique(dim=0))
