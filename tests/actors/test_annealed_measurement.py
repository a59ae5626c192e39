"""Annealed measurement: the schedule and the noisy measurement by hand, the density given n, the weights over n."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from actors import Actor, ActorConfig
from actors.annealed_measurement import AnnealedMeasurement, AnnealedMeasurementConfig, annealed
from diffusion.kernel import normal_log_prob
from diffusion.posterior import ControlPosterior, FinetunePosterior
from diffusion.trajectory import Origin
from envs import make_problem

LATE = AnnealedMeasurementConfig(clean_until=0.2, noise_from=0.75, scale=2.0, rescaling=0.4)


def _posterior(problem, head=0.3, **options):
    torch.manual_seed(0)
    posterior = ControlPosterior(problem.prior, (2,), problem.gradient, hidden=8, depth=1, **options)
    torch.nn.init.normal_(posterior.network.head.weight, std=head)
    posterior.gain.data.fill_(0.3)
    return posterior.requires_grad_(False)


def test_gamma_is_nothing_early_and_one_late_and_linear_in_between():
    config = AnnealedMeasurementConfig(clean_until=0.25, noise_from=0.75)
    expected = {1.0: 0.0, 0.75: 0.0, 0.7: 0.1, 0.5: 0.5, 0.375: 0.75, 0.25: 1.0, 0.0: 1.0}
    assert [config.gamma(time) for time in expected] == pytest.approx(list(expected.values()))


def test_the_noisy_measurement_by_hand():
    measurement, noise = torch.tensor([[3.0, -1.0, 1.0, 1.0]]), torch.tensor([[1.0, 0.0, -2.0, 0.5]])
    size = math.sqrt(12 / 4)
    seen = np.array(
        [0.5 * y + 0.2 * math.sqrt(0.75) * size * n for y, n in zip((3, -1, 1, 1), (1, 0, -2, 0.5), strict=True)]
    )
    assert annealed(measurement, noise, 0.25, 0.2, 0.0)[0].numpy() == pytest.approx(seen, rel=1e-6)
    back = 1.0 + np.std([3, -1, 1, 1], ddof=1) * (seen - seen.mean()) / seen.std(ddof=1)
    assert annealed(measurement, noise, 0.25, 0.2, 1.0)[0].numpy() == pytest.approx(back, rel=1e-5)
    half = annealed(measurement, noise, 0.25, 0.2, 0.5)[0].numpy()
    assert half == pytest.approx((seen + back) / 2, rel=1e-5)


def test_at_gamma_zero_nothing_of_the_measurement_but_its_mean_and_spread_is_left_after_rescaling():
    noise = torch.randn(1, 5, generator=torch.Generator().manual_seed(0))
    first = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    seen = [annealed(value, noise, 0.0, 0.25, 1.0) for value in (first, first.flip(1))]
    assert seen[0].numpy() == pytest.approx(seen[1].numpy(), abs=1e-6)
    assert float(seen[0].mean()) == pytest.approx(3.0) and float(seen[0].std()) == pytest.approx(float(first.std()))


def test_a_measurement_of_zeros_or_of_equal_numbers_stays_finite():
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    seen = annealed(torch.tensor([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]]), noise, 0.5, 0.25, 1.0)
    assert seen.tolist() == [[0.0] * 3, [2.0] * 3]


@pytest.mark.parametrize("guided", [True, False])
def test_the_behaviour_ratio_given_the_noise_is_that_of_two_normal_densities_at_the_noisy_measurements(
    gaussian_problem, guided
):
    problem, count, steps = gaussian_problem, 20, 10
    posterior = _posterior(problem, guided=guided)
    kind, rows = AnnealedMeasurement(LATE, problem), torch.zeros(count, dtype=torch.long)
    made = kind.explore(problem, posterior, rows, 0.0, torch.Generator().manual_seed(3))
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(3))  # the first that is drawn
    measurement = problem.measurements[rows]
    ratio, at_y = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for index in range(steps):
        step, state, following = torch.full((count,), index), made.states[:, index], made.states[:, index + 1].double()
        time = 1 - index / steps
        gamma = min(max((0.75 - time) / 0.55, 0.0), 1.0)
        seen = annealed(measurement, noise, gamma, 2.0, 0.4) if gamma < 1 else measurement
        denoised = problem.prior.denoised(state, step)
        mean, std = problem.prior.mean(state, step, denoised).double(), problem.prior.std[step].double()
        for total, shown in ((ratio, seen), (at_y, measurement)):
            u = posterior.control(state, step, denoised, shown).double()
            total += normal_log_prob(following, mean + std[:, None] * u, std) - normal_log_prob(following, mean, std)
    assert made.log_behaviour_ratio.numpy() == pytest.approx(ratio.numpy(), abs=5e-3)
    assert float((ratio - at_y).abs().max()) > 0.1
    assert (made.guidance is not None) == guided
    if guided:  # what the learner is sent is the guidance at the measurement itself
        step, state = torch.full((count,), 2), made.states[:, 2]
        expected = problem.prior.pull_back(state, step, lambda value: problem.gradient(value, measurement))[1]
        assert made.guidance[:, 2].numpy() == pytest.approx(expected.numpy(), abs=1e-5)


def test_weights_given_the_noise_average_to_the_evidence_over_the_noise(generator):
    """A control that depends on y strongly, so that paths of different n have different kernels."""
    problem = make_problem("gaussian-linear", {"dim": 2, "measurement_dim": 2, "num_steps": 4})
    posterior = _posterior(problem, head=0.0)
    posterior.gain.data[1] = 0.0  # weights of finite variance
    kind = AnnealedMeasurement(LATE, problem)
    made = kind.explore(problem, posterior, torch.zeros(40_000, dtype=torch.long), 0.0, generator)
    weight = (made.log_likelihood.double() - made.log_behaviour_ratio - problem.exact[0].log_partition).exp()
    error = float(weight.std()) / 200
    assert error < 0.02
    assert float(weight.mean()) == pytest.approx(1.0, abs=4 * error)
    # Their mean of x is the posterior's, too.
    samples = made.states[:, -1].double()
    mean = (weight[:, None] * samples).mean(0) / weight.mean()
    spread = (weight[:, None] * (samples - mean)).std(0) / 200
    assert float(((mean - problem.exact[0].mean) / spread).abs().max()) < 4


def test_paths_are_marked_and_made_anew_with_every_batch(gaussian_problem):
    only = {"annealed-measurement": 1.0}
    config = ActorConfig(batch_size=3, mixture=only, final_mixture=only)
    actor = Actor(gaussian_problem, _posterior(gaussian_problem), config, seed=0)
    first, second = actor.act(), actor.act()
    assert set(first.origin.tolist()) == {Origin.ANNEALED} and (first.states != second.states).all()


def test_a_posterior_that_sees_no_measurement_is_refused(network_prior):
    problem = make_problem("gaussian-linear", {"dim": 3, "measurement_dim": 2})
    problem = dataclasses.replace(problem, prior=network_prior, exact=())
    config = ActorConfig(mixture={"annealed-measurement": 1.0})
    with pytest.raises(ValueError, match="changes the measurement that the posterior sees, and this form sees none"):
        Actor(problem, FinetunePosterior(network_prior), config, seed=0)


def test_measurements_that_cannot_be_annealed_are_refused():
    with pytest.raises(ValueError, match="every measurement of problem 'funnel' is zero"):
        AnnealedMeasurement(AnnealedMeasurementConfig(), make_problem("funnel"))
    single = make_problem("gaussian-linear", {"dim": 2, "measurement_dim": 1})
    with pytest.raises(ValueError, match=r"single numbers, .*: set actor.annealed_measurement.rescaling to 0"):
        AnnealedMeasurement(AnnealedMeasurementConfig(), single)
    AnnealedMeasurement(AnnealedMeasurementConfig(rescaling=0.0), single)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clean_until": 0.9}, "0 <= clean_until < noise_from <= 1, got 0.9 and 0.9"),
        ({"noise_from": 1.1}, "0 <= clean_until < noise_from <= 1, got 0.6 and 1.1"),
        ({"clean_until": math.nan}, "0 <= clean_until < noise_from <= 1, got nan and 0.9"),
        ({"scale": 0.0}, "scale must be positive and finite, got 0.0"),
        ({"scale": math.inf}, "scale must be positive and finite, got inf"),
        ({"rescaling": 1.5}, r"rescaling must be within \[0, 1\], got 1.5"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        AnnealedMeasurementConfig(**options)
