"""Likelihoods beyond Gaussian noise of one size: each normalised, simulated as it says, and with its gradient."""

import math
import os
import time

import numpy as np
import pytest
import torch
from scipy import stats

from envs.likelihoods import (
    BernoulliLikelihood,
    BlackBoxLikelihood,
    CorrelatedGaussianLikelihood,
    DifferentiableLikelihood,
    EventLikelihood,
    GaussianLikelihood,
    JointLikelihood,
    LikelihoodError,
    PoissonGaussianLikelihood,
    PoissonLikelihood,
    SimulableLikelihood,
    StudentTLikelihood,
    WithoutGradient,
    joint,
)
from envs.operators import Matrix, Quantised, Separable
from envs.time_limit import LikelihoodTimeout

ONE = Matrix(torch.tensor([[1.0, -2.0]]))
TWO = Matrix(torch.tensor([[1.0, 0.5], [0.2, -1.0]]))
WHOLE = Separable((1, 4, 6), torch.eye(4), torch.eye(6))


class Intensity(torch.nn.Module):
    """exp(A x), which is positive."""

    measurement_shape = (2,)

    def forward(self, value):
        return TWO(value).exp()


def _power():
    down, right = (torch.fft.fftfreq(size, dtype=torch.float64) for size in (4, 6))
    return 0.1 / (0.05 + down[:, None].square() + right.square())


LIKELIHOODS = {
    "a size for each": GaussianLikelihood(TWO, torch.tensor([0.3, 1.7])),
    "correlated": CorrelatedGaussianLikelihood(WHOLE, _power()),
    "poisson": PoissonLikelihood(Intensity(), exposure=30.0, background=torch.tensor([0.0, 4.0])),
    "poisson-gaussian": PoissonGaussianLikelihood(Intensity(), 2.0, gain=0.7, exposure=5.0),
    "bernoulli": BernoulliLikelihood(TWO),
    "student": StudentTLikelihood(TWO, 0.4, 2.5),
    "joint": joint([GaussianLikelihood(ONE, 0.5), StudentTLikelihood(TWO, 0.4)]),
}


@pytest.fixture(params=LIKELIHOODS)
def likelihood(request):
    return LIKELIHOODS[request.param]


def _x(likelihood, count, generator):
    shape = (1, 4, 6) if isinstance(likelihood, CorrelatedGaussianLikelihood) else (2,)
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64)


def test_the_gradient_is_that_of_finite_differences(likelihood, generator):
    value = _x(likelihood, 3, generator)
    measurement = likelihood.sample(value, generator)
    gradient = likelihood.gradient(value, measurement)
    direction = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    ahead, behind = (likelihood.log_prob(value + sign * 1e-5 * direction, measurement) for sign in (1, -1))
    slope = (gradient * direction).flatten(1).sum(1)
    assert slope.numpy() == pytest.approx(((ahead - behind) / 2e-5).numpy(), rel=1e-4, abs=1e-5)
    assert isinstance(likelihood, DifferentiableLikelihood) and isinstance(likelihood, SimulableLikelihood)


def test_its_log_density_has_the_entropy_of_what_it_simulates(likelihood, generator):
    """E_y[d log p(y | x) / dx] = 0 and E_y[p(y | x') / p(y | x)] = 1: both fail where noise and density disagree."""
    count = 40_000
    value = _x(likelihood, 1, generator)
    rows = value.expand(count, *value.shape[1:])
    drawn = likelihood.sample(rows, generator)
    score = likelihood.gradient(rows, drawn).flatten(1)
    assert float((score.mean(0) / (score.std(0) / count**0.5)).abs().max()) < 5
    near = rows + 0.05 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
    ratio = (likelihood.log_prob(near, drawn) - likelihood.log_prob(rows, drawn)).exp()
    assert float(ratio.mean()) == pytest.approx(1, abs=5 * float(ratio.std()) / count**0.5)
    assert float(ratio.std()) > 0.01


def test_noise_of_another_size_in_each_element_is_that_of_scipy(generator):
    std = torch.tensor([0.3, 1.7])
    value, measurement = (torch.randn(5, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = stats.norm(TWO(value).numpy(), std.double().numpy()).logpdf(measurement.numpy()).sum(1)
    assert GaussianLikelihood(TWO, std).log_prob(value, measurement).numpy() == pytest.approx(expected, rel=1e-7)


def test_correlated_noise_is_a_multivariate_normal_with_the_covariance_of_its_power_spectrum(generator):
    power = _power()
    correlation = torch.fft.ifft2(power).real
    place = torch.cartesian_prod(torch.arange(4), torch.arange(6))
    apart = place[:, None] - place
    covariance = correlation[apart[..., 0] % 4, apart[..., 1] % 6].numpy()
    value, measurement = (torch.randn(3, 1, 4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = stats.multivariate_normal(np.zeros(24), covariance).logpdf((measurement - value).flatten(1).numpy())
    likelihood = CorrelatedGaussianLikelihood(WHOLE, power)
    assert likelihood.log_prob(value, measurement).numpy() == pytest.approx(expected, rel=1e-10)
    drawn = likelihood.sample(torch.zeros(40_000, 1, 4, 6, dtype=torch.float64), generator).flatten(1)
    assert np.cov(drawn.numpy().T) == pytest.approx(covariance, abs=0.05 * covariance.max())
    three = CorrelatedGaussianLikelihood(Separable((3, 4, 6), torch.eye(4), torch.eye(6)), power)
    together = three.log_prob(value.swapaxes(0, 1), measurement.swapaxes(0, 1))  # the three images as channels
    assert together.tolist() == pytest.approx([sum(expected)], rel=1e-10)
    white = CorrelatedGaussianLikelihood(WHOLE, torch.full((4, 6), 0.49))
    assert white.log_prob(value, measurement).numpy() == pytest.approx(
        GaussianLikelihood(WHOLE, 0.7).log_prob(value, measurement).numpy(), rel=1e-6
    )


def test_counts_are_poisson_as_scipy_has_it(generator):
    likelihood, value = LIKELIHOODS["poisson"], torch.randn(4, 2, generator=generator, dtype=torch.float64)
    mean = 30 * TWO(value).exp() + torch.tensor([0.0, 4.0])
    counts = likelihood.sample(value, generator)
    expected = stats.poisson(mean.numpy()).logpmf(counts.numpy()).sum(1)
    assert likelihood.log_prob(value, counts).numpy() == pytest.approx(expected, rel=1e-10)
    # A hundred thousand counts in float32: what is small is what is left of numbers that are large.
    bright = PoissonLikelihood(Intensity(), exposure=1e5)
    value, counts = torch.zeros(1, 2), torch.tensor([[100_200.0, 99_900.0]])
    expected = stats.poisson(1e5).logpmf(counts.numpy()).sum()
    assert float(bright.log_prob(value, counts)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("counts", [[-1.0, 2.0], [1.5, 2.0]])
def test_what_is_no_count_is_impossible(counts):
    likelihood = PoissonLikelihood(Intensity())
    assert float(likelihood.log_prob(torch.zeros(1, 2), torch.tensor([counts]))) == -math.inf


def test_an_intensity_below_zero_is_impossible_and_of_zero_gives_no_count():
    likelihood, camera = PoissonLikelihood(ONE), PoissonGaussianLikelihood(ONE, 1.0)
    value, counts = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0], [0.0], [1.0]])
    assert likelihood.log_prob(value, counts).tolist() == [-math.inf, 0.0, -math.inf]
    assert torch.isfinite(likelihood.gradient(value, counts)).all()
    assert camera.log_prob(value, counts).tolist()[0] == -math.inf
    assert camera.log_prob(value, counts).tolist()[1:] == pytest.approx(stats.norm.logpdf([0.0, 1.0]), abs=1e-6)


def test_an_element_of_which_nothing_is_expected_leaves_the_others_their_gradient():
    for likelihood in (PoissonLikelihood(Matrix(torch.eye(2))), PoissonGaussianLikelihood(Matrix(torch.eye(2)), 0.5)):
        value = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
        measurement = torch.tensor([[0.0, 5.0]], dtype=torch.float64)
        shift = torch.tensor([[0.0, 1e-5]], dtype=torch.float64)
        ahead, behind = (float(likelihood.log_prob(value + sign * shift, measurement)) for sign in (1, -1))
        gradient = likelihood.gradient(value, measurement)[0]
        assert float(gradient[1]) == pytest.approx((ahead - behind) / 2e-5, rel=1e-4)
        assert math.isfinite(float(gradient[0]))


def test_an_intensity_that_overflows_is_impossible():
    value, counts = torch.tensor([[89.0, 0.0], [0.0, 0.0]]), torch.tensor([[3.0, 1.0], [3.0, 1.0]])
    for likelihood in (PoissonLikelihood(Intensity()), PoissonGaussianLikelihood(Intensity(), 1.0)):
        first, second = likelihood.log_prob(value, counts).tolist()
        assert first == -math.inf and math.isfinite(second)
        assert bool(torch.isfinite(likelihood.gradient(value, counts)[1]).all())


@pytest.mark.parametrize("mean", [1e-3, 0.4, 3.0, 60.0, 2_000.0])
@pytest.mark.parametrize("read_std", [0.3, 1.0, 6.0])
@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_the_sum_over_photons_is_that_of_all_their_numbers_however_unlikely_y(mean, read_std, gain):
    likelihood = PoissonGaussianLikelihood(Matrix(torch.ones(1, 1)), read_std, gain, exposure=mean)
    centre, width = gain * mean, (gain**2 * mean + read_std**2) ** 0.5
    y = torch.linspace(centre - 6 * width, centre + 60 * width, 40, dtype=torch.float64)[:, None]
    number = np.arange(0, int(mean + 80 * mean**0.5 + 2 * float(y.max()) / gain + 100))
    terms = stats.poisson(mean).logpmf(number) + stats.norm(gain * number, read_std).logpdf(y.numpy())
    expected = np.logaddexp.reduce(terms, axis=1)
    found = likelihood.log_prob(torch.ones(40, 1, dtype=torch.float64), y)
    assert found.numpy() == pytest.approx(expected, rel=1e-8, abs=1e-8)


def test_ones_and_zeros_have_the_probabilities_of_a_logistic_regression(generator):
    value = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    seen = LIKELIHOODS["bernoulli"].sample(value, generator)
    expected = stats.bernoulli(1 / (1 + np.exp(-TWO(value).numpy()))).logpmf(seen.numpy().astype(int)).sum(1)
    assert LIKELIHOODS["bernoulli"].log_prob(value, seen).numpy() == pytest.approx(expected, rel=1e-10)
    assert float(LIKELIHOODS["bernoulli"].log_prob(value[:1], torch.tensor([[0.5, 1.0]]))) == -math.inf


def test_outliers_are_those_of_students_t(generator):
    value, measurement = (torch.randn(5, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    measurement[0] += 50
    expected = stats.t(2.5, TWO(value).numpy(), 0.4).logpdf(measurement.numpy()).sum(1)
    likelihood = LIKELIHOODS["student"]
    assert likelihood.log_prob(value, measurement).numpy() == pytest.approx(expected, rel=1e-10)
    drawn = likelihood.sample(torch.zeros(20_000, 2, dtype=torch.float64), generator)
    assert stats.kstest(drawn.flatten().numpy(), stats.t(2.5, 0, 0.4).cdf).pvalue > 1e-3


def test_several_instruments_are_the_sum_of_each(generator):
    parts = [GaussianLikelihood(WHOLE, 0.5), PoissonLikelihood(Intensity())]
    both = joint([GaussianLikelihood(TWO, 0.5), parts[1]])
    value = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    drawn = both.sample(value, generator)
    first, second = both.split(drawn)
    expected = both.parts[0].log_prob(value, first) + both.parts[1].log_prob(value, second)
    assert both.measurement_shape == (4,) and both.log_prob(value, drawn).tolist() == expected.tolist()
    with_event = joint([GaussianLikelihood(TWO, 0.5), EventLikelihood(lambda x: x[:, 0])])
    assert isinstance(with_event, JointLikelihood) and not isinstance(with_event, DifferentiableLikelihood)
    with pytest.raises(ValueError, match="needs at least one part"):
        joint([])
    unseen = joint([GaussianLikelihood(TWO, 0.5), BlackBoxLikelihood(lambda x, y: x[:, 0], (1,))])
    assert isinstance(both, SimulableLikelihood) and not isinstance(unseen, SimulableLikelihood)


def test_an_event_has_the_probability_that_it_happens(generator):
    likelihood = EventLikelihood(lambda value: value.sum(1) - 2)
    value = torch.tensor([[1.0, 1.0], [1.0, 0.5]])
    assert likelihood.log_prob(value, torch.ones(2, 1)).tolist() == [0.0, -math.inf]
    assert likelihood.log_prob(value, torch.zeros(2, 1)).tolist() == [-math.inf, 0.0]
    assert likelihood.sample(value).tolist() == [[1.0], [0.0]]
    assert not isinstance(likelihood, DifferentiableLikelihood)


def test_a_staircase_keeps_its_gradient_back(generator):
    staircase = WithoutGradient(GaussianLikelihood(Quantised((2,), 5), 0.1))
    value = torch.tensor([[0.2, 0.6]])
    assert not isinstance(staircase, DifferentiableLikelihood) and isinstance(staircase, SimulableLikelihood)
    expected = stats.norm([0.0, 0.5], 0.1).logpdf([0.1, 0.4]).sum()
    assert float(staircase.log_prob(value, torch.tensor([[0.1, 0.4]]))) == pytest.approx(expected, rel=1e-6)


# --- black boxes ---


def _sum(value, measurement):
    return -0.5 * np.square(measurement[:, 0] - value.sum(1))


def _troubled(value, measurement):
    """What the first number of x asks for."""
    what = value[0, 0]
    if what == 1:
        time.sleep(60)
    if what == 2:
        os._exit(3)
    if what == 3:
        raise ZeroDivisionError("no such x")
    if what == 4:
        return np.zeros(len(value) + 1)
    if what == 5:
        return ["a"] * len(value)
    return np.zeros(len(value))


@pytest.mark.parametrize("time_limit", [None, 20.0])
def test_a_function_of_numpy_arrays_is_a_likelihood(time_limit, generator):
    likelihood = BlackBoxLikelihood(_sum, (1,), time_limit)
    value, measurement = torch.randn(4, 2, generator=generator), torch.randn(4, 1, generator=generator)
    found = likelihood.log_prob(value, measurement)
    expected = -0.5 * (measurement[:, 0] - value.sum(1)).square()
    assert found.dtype == torch.float32 and found.numpy() == pytest.approx(expected.numpy(), rel=1e-5)
    assert not isinstance(likelihood, DifferentiableLikelihood | SimulableLikelihood)
    likelihood.close()


@pytest.mark.parametrize("time_limit", [None, 20.0])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        (3, r"_troubled raised ZeroDivisionError: no such x \(File .*test_noise.py\", line \d+\)"),
        (4, r"_troubled must give log p\(y \| x\) \[2\], one for each x, got shape \(3,\)"),
        (5, r"_troubled must give numbers \[2\], got"),
    ],
)
def test_a_function_that_raises_or_gives_something_else_is_named(time_limit, what, message):
    likelihood = BlackBoxLikelihood(_troubled, (1,), time_limit)
    with pytest.raises(LikelihoodError, match=message):
        likelihood.log_prob(torch.full((2, 1), float(what)), torch.zeros(2, 1))
    assert likelihood.log_prob(torch.zeros(2, 1), torch.zeros(2, 1)).tolist() == [0.0, 0.0]
    likelihood.close()


def test_a_function_that_hangs_or_crashes_costs_its_batch_and_three_in_a_row_the_run(caplog):
    likelihood = BlackBoxLikelihood(_troubled, (1,), 0.5)
    sound, hangs, crashes = (torch.full((2, 1), float(what)) for what in (0, 1, 2))
    zero = torch.zeros(2, 1)
    assert torch.isnan(likelihood.log_prob(hangs, zero)).all()
    likelihood.time_limit = 20.0
    assert torch.isnan(likelihood.log_prob(crashes, zero)).all()
    assert likelihood.log_prob(sound, zero).tolist() == [0.0, 0.0]  # in a new process
    assert "_troubled has not returned within 0.5 s; its 2 trajectories are set aside" in caplog.text
    assert "_troubled ended its process; its 2 trajectories are set aside" in caplog.text
    for _ in range(2):
        likelihood.log_prob(crashes, zero)
    with pytest.raises(LikelihoodTimeout, match="_troubled ended its process, 3 times in a row"):
        likelihood.log_prob(crashes, zero)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianLikelihood(TWO, torch.ones(3)), r"of the measurement's shape \(2,\), got shape \(3,\)"),
        (lambda: GaussianLikelihood(TWO, torch.tensor([1.0, 0.0])), "got 1 others of 2; leave elements out that were"),
        (lambda: CorrelatedGaussianLikelihood(TWO, torch.ones(2)), r"power must be \[H, W\] for a measurement"),
        (lambda: CorrelatedGaussianLikelihood(WHOLE, torch.zeros(4, 6)), "positive and finite everywhere, got a least"),
        (
            lambda: CorrelatedGaussianLikelihood(WHOLE, 1 + torch.arange(24.0).reshape(4, 6)),
            r"power must be even, P\(-f\) = P\(f\)",
        ),
        (lambda: PoissonLikelihood(TWO, exposure=0.0), "exposure must be positive and finite everywhere, got 0.0"),
        (lambda: PoissonLikelihood(TWO, background=-1.0), "background must be not negative and finite everywhere"),
        (lambda: PoissonLikelihood(TWO, exposure=torch.ones(3)), r"exposure must be a number or .*, got shape \(3,\)"),
        (lambda: PoissonGaussianLikelihood(TWO, 0.0), "read_std must be positive and finite, got 0.0"),
        (lambda: PoissonGaussianLikelihood(TWO, 1.0, gain=-1.0), "gain must be positive and finite, got -1.0"),
        (lambda: StudentTLikelihood(TWO, 1.0, 0.0), "degrees_of_freedom must be positive and finite, got 0.0"),
        (lambda: BlackBoxLikelihood(3, (1,)), "a black box is a function of .*, got int"),
        (lambda: BlackBoxLikelihood(_sum, (1,), 0.0), "time_limit must be positive or None, got 0.0"),
    ],
)
def test_noise_that_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
