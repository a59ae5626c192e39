"""Energies over a Gaussian base process, against quadrature and draws."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from envs import make_problem

ENERGIES = ["gmm-25", "funnel", "manywell"]


@pytest.mark.parametrize("name", ENERGIES)
def test_likelihood_times_prior_is_the_energy(name, generator):
    problem = make_problem(name, {"num_steps": 4})
    value = 2 * torch.randn(20, *problem.event_shape, generator=generator, dtype=torch.float64)
    log_prior = stats.norm(scale=problem.likelihood.base_std).logpdf(value.numpy()).sum(1)
    joint = problem.likelihood.log_prob(value, torch.zeros(1)).numpy() + log_prior
    assert joint == pytest.approx(problem.likelihood.energy(value).numpy(), rel=1e-9, abs=1e-8)


@pytest.mark.parametrize("name", ENERGIES)
def test_the_gradient_is_that_of_finite_differences(name, generator):
    problem = make_problem(name, {"num_steps": 4})
    value = torch.randn(3, *problem.event_shape, generator=generator, dtype=torch.float64)
    gradient = problem.gradient(value, torch.zeros(1))
    for element in (0, 1):
        shift = torch.zeros_like(value)
        shift[:, element] = 1e-5
        ends = [problem.likelihood.log_prob(value + sign * shift, torch.zeros(1)) for sign in (1, -1)]
        assert gradient[:, element].numpy() == pytest.approx(((ends[0] - ends[1]) / 2e-5).numpy(), rel=1e-5, abs=1e-6)


def test_a_normalised_energy_has_an_average_likelihood_of_one(generator):
    """E_prior[rho / prior] = Z = 1."""
    problem = make_problem("gmm-25", {"num_steps": 4})
    draws = problem.prior.denoiser.sample(400_000, generator)
    ratio = problem.likelihood.log_prob(draws, torch.zeros(1)).exp()
    error = float(ratio.std()) / math.sqrt(len(ratio))
    assert error < 0.05 and float(ratio.mean()) == pytest.approx(1.0, abs=4 * error + 0.02)
    assert problem.exact[0].log_partition == 0.0


@pytest.mark.parametrize("name", ENERGIES)
def test_exact_draws_have_the_stated_moments_and_classes(name, generator):
    problem = make_problem(name, {"num_steps": 4})
    exact = problem.exact[0]
    draws = exact.sample(40_000, generator)
    rows = slice(0, 1) if name == "funnel" else slice(None)  # the rest of the funnel has no usable variance
    mean, std = exact.mean[rows], exact.variance[rows].sqrt()
    assert (draws.mean(0)[rows] - mean).abs().max() < 4.5 * std.max() / 200
    assert draws.std(0)[rows].numpy() == pytest.approx(std.numpy(), rel=0.03)
    if problem.classes is not None:
        shares = problem.classes.probabilities(draws).mean(0)
        assert shares.numpy() == pytest.approx(problem.classes.exact[0].numpy(), abs=4.5 * 0.5 / 200)


def test_the_evidence_of_the_wells_is_that_of_quadrature():
    well, _ = integrate.quad(lambda a: math.exp(-(a**4) + 6 * a**2 + 0.5 * a), -6, 6, epsabs=1e-10, epsrel=1e-12)
    exact = make_problem("manywell", {"num_steps": 4}).exact[0]
    assert exact.log_partition == pytest.approx(16 * (math.log(well) + 0.5 * math.log(2 * math.pi)), abs=1e-6)
    assert exact.log_partition == pytest.approx(164.69568, abs=1e-3)  # as published (Midgley et al. 2023)
    right, _ = integrate.quad(lambda a: math.exp(-(a**4) + 6 * a**2 + 0.5 * a), 0, 6, epsabs=1e-10, epsrel=1e-12)
    assert exact.right == pytest.approx(right / well, abs=1e-6)


def test_the_funnel_has_the_density_of_its_two_stages(generator):
    problem = make_problem("funnel", {"num_steps": 4, "dim": 3})
    value = torch.randn(10, 3, generator=generator, dtype=torch.float64).numpy()
    neck = stats.norm(scale=3).logpdf(value[:, 0])
    rest = stats.norm(scale=np.exp(value[:, :1] / 2)).logpdf(value[:, 1:]).sum(1)
    assert problem.exact[0].log_prob(torch.from_numpy(value)).numpy() == pytest.approx(neck + rest, rel=1e-10)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("funnel", {"dim": 1}, "funnel needs dim >= 2, got 1"),
        ("manywell", {"dim": 5}, "manywell needs an even dim >= 2, got 5"),
        ("gmm-25", {"base_std": 0.0}, "base_std and start_std must be positive, got 0.0 and 2.5"),
    ],
)
def test_values_that_make_no_sense_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_problem(name, options)


def test_all_four_forms_of_a_digit_have_the_same_magnitudes_and_prior_density(generator):
    problem = make_problem("digits-phase", {"num_steps": 4, "training_digits": 20})
    value = torch.randn(3, 1, 8, 8, generator=generator, dtype=torch.float64)
    forms = [value, value.flip((2, 3)), -value, -value.flip((2, 3))]
    operator, denoiser = problem.likelihood.operator, problem.prior.denoiser
    full = np.abs(np.fft.fft2(value[:, 0].numpy(), s=(16, 16), norm="ortho"))[:, :, :9]
    assert operator(value).numpy() == pytest.approx(full.reshape(3, -1), abs=1e-6)
    for index, form in enumerate(forms):
        assert operator(form).numpy() == pytest.approx(operator(value).numpy(), abs=1e-9)
        assert denoiser.log_prob(form).numpy() == pytest.approx(denoiser.log_prob(value).numpy(), rel=1e-9)
        shares = problem.classes.probabilities(form)
        order = [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]][index]
        assert shares[:, order].numpy() == pytest.approx(problem.classes.probabilities(value).numpy(), abs=1e-9)
