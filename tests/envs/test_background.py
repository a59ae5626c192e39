"""Counts over a measured background: a normalised density, with the gradient of quadrature and of differences."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from envs.likelihoods import MeasuredBackgroundLikelihood, PoissonLikelihood
from envs.operators import Lognormal


def _likelihood(background, ratio):
    return MeasuredBackgroundLikelihood(Lognormal((len(background),), 1.0), torch.tensor(background), ratio)


def _value(source):
    return (torch.as_tensor(source, dtype=torch.float64).log() + 0.5).reshape(-1, 1)


@pytest.mark.parametrize(("background", "ratio"), [(0.0, 0.2), (7.0, 0.2), (3.0, 2.5), (400.0, 0.4)])
def test_the_density_is_that_of_a_poisson_and_a_negative_binomial_number(background, ratio):
    """Counts from none to far above a source of 0.05 to 40; where they all but cannot be, the error is 1e-20."""
    likelihood = _likelihood([background], ratio)
    number = np.arange(400)
    chances = stats.nbinom.pmf(number, background + 0.5, 1 / (1 + ratio))
    for source in (0.05, 3.0, 40.0):
        for counts in (0, 1, 12, 60, 300):
            expected = stats.poisson.pmf(counts - number, source) @ chances
            got = float(likelihood.log_prob(_value([source]), torch.tensor([[float(counts)]])))
            assert math.exp(got) == pytest.approx(expected, abs=2e-20, rel=1e-9), (source, counts)
            if expected > 1e-12:
                assert got == pytest.approx(math.log(expected), abs=1e-7), (source, counts)


def test_the_density_is_the_integral_over_the_backgrounds_rate():
    likelihood = _likelihood([7.0], 0.2)

    def joint(rate):
        return stats.poisson.pmf(12, 3.0 + 0.2 * rate) * stats.gamma.pdf(rate, 7.5)

    expected = integrate.quad(joint, 0, 100, points=[7.5], epsabs=0, epsrel=1e-9)[0]
    got = likelihood.log_prob(_value([3.0]), torch.tensor([[12.0]]))
    assert float(got) == pytest.approx(math.log(expected), abs=1e-7)


def test_the_density_sums_to_one_over_all_counts():
    likelihood = _likelihood([4.0], 0.5)
    counts = torch.arange(200.0)[:, None]
    for source in (0.0, 2.0, 60.0):
        value = _value([source]).expand(200, 1)
        assert float(likelihood.log_prob(value, counts).exp().sum()) == pytest.approx(1, abs=1e-10)


def test_the_gradient_is_that_of_differences_where_it_is_steep_and_where_it_is_not(generator):
    likelihood = _likelihood([0.0, 3.0, 50.0, 400.0], 0.3)
    value = torch.randn(6, 4, generator=generator, dtype=torch.float64) * 2 + 2
    counts = torch.tensor([0.0, 9.0, 200.0, 1000.0]).expand(6, 4)
    gradient = likelihood.gradient(value, counts)
    for element in range(4):
        shift = 1e-5 * torch.eye(4, dtype=torch.float64)[element]
        rise = likelihood.log_prob(value + shift, counts) - likelihood.log_prob(value - shift, counts)
        assert gradient[:, element].numpy() == pytest.approx((rise / 2e-5).numpy(), rel=1e-5, abs=1e-4)
    far = torch.full((1, 4), -80.0, dtype=torch.float64)
    assert bool(torch.isfinite(likelihood.log_prob(far, counts[:1])).all())
    assert bool(torch.isfinite(likelihood.gradient(far.float(), counts[:1])).all())


def test_draws_have_the_mean_and_the_variance_that_residuals_are_judged_by(generator):
    """Mean s + r (B + 1/2), variance s + r (1 + r) (B + 1/2); 40,000 draws."""
    likelihood = _likelihood([0.0, 6.0], 0.4)
    value = _value([2.0, 5.0]).reshape(1, 2).expand(40_000, 2)
    drawn = likelihood.sample(value, generator).numpy()
    mean = np.array([2.0, 5.0]) + 0.4 * np.array([0.5, 6.5])
    variance = np.array([2.0, 5.0]) + 0.4 * 1.4 * np.array([0.5, 6.5])
    assert drawn.mean(0) == pytest.approx(mean, abs=4 * math.sqrt(variance.max() / 40_000))
    assert drawn.var(0) == pytest.approx(variance, rel=0.05)
    residual = likelihood.standardised(value, torch.from_numpy(drawn))
    assert residual.square().mean(0).numpy() == pytest.approx(np.ones(2), rel=0.05)
    assert likelihood.log_prob(value[:1], torch.tensor([[1.0, 0.5]])).tolist() == [-math.inf]


def test_a_long_look_at_the_background_is_as_good_as_knowing_it():
    operator = Lognormal((2,), 1.0)
    background = torch.tensor([2e5, 6e5])
    known = PoissonLikelihood(operator, background=1e-5 * background)
    measured = MeasuredBackgroundLikelihood(operator, background, 1e-5)
    value, counts = torch.tensor([[0.5, 2.0]], dtype=torch.float64), torch.tensor([[3.0, 11.0]])
    assert float(measured.log_prob(value, counts)) == pytest.approx(float(known.log_prob(value, counts)), abs=1e-3)


def test_what_is_no_background_is_refused():
    operator = Lognormal((2,), 1.0)
    with pytest.raises(ValueError, match=r"of the measurement's shape \(2,\), got shape \(3,\)"):
        MeasuredBackgroundLikelihood(operator, torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match="background must be whole numbers of 0 and more"):
        MeasuredBackgroundLikelihood(operator, torch.tensor([1.5, 0.0]), 1.0)
    with pytest.raises(ValueError, match="ratio must be positive and finite, got 0"):
        MeasuredBackgroundLikelihood(operator, torch.zeros(2), 0.0)
