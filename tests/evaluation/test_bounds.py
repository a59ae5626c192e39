import dataclasses
import math

import numpy as np
import pytest
import torch

import envs.problems  # noqa: F401  registers them
from envs.registry import make_problem
from evaluation import bounds

LOG_Z = -3.0


class PriorAsPosterior:
    def log_ratio(self, next_state, state, step, denoised, measurement):
        return torch.zeros(len(next_state), dtype=next_state.dtype)


def gaussian_pair(count, mean, seed=0):
    """lw of draws of q = N(0, 1) and of pi = N(mean, 1), the target being exp(LOG_Z) pi."""
    noise = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return LOG_Z + mean * noise - 0.5 * mean**2, LOG_Z + mean * (noise + mean) - 0.5 * mean**2


def test_elbo_and_eubo_of_two_unit_gaussians_lie_half_the_squared_distance_below_and_above():
    drawn, exact = gaussian_pair(100_000, mean=1.0)
    assert bounds.elbo(drawn) == pytest.approx(LOG_Z - 0.5, abs=4 / 100_000**0.5)
    assert bounds.eubo(exact) == pytest.approx(LOG_Z + 0.5, abs=4 / 100_000**0.5)


def test_iw_rises_with_the_group_from_the_elbo_to_log_z():
    drawn, _ = gaussian_pair(200_000, mean=1.0)
    values = [bounds.iw_log_partition(drawn, group) for group in (1, 4, 16, 64, None)]
    assert values[0] == pytest.approx(bounds.elbo(drawn), abs=1e-12)
    assert values == sorted(values)
    # The bias of IW-K is Var(w) / (2 K) for large K, and Var(w) = e - 1 here.
    assert values[3] == pytest.approx(LOG_Z - (math.e - 1) / 128, abs=0.006)
    assert values[4] == pytest.approx(LOG_Z, abs=0.012)


def test_iw_leaves_out_the_remainder_of_the_last_group():
    weights = torch.tensor([0.0, 0.0, 2.0, 2.0, 50.0], dtype=torch.float64)
    assert bounds.iw_log_partition(weights, 2) == pytest.approx(1.0, abs=1e-12)


def test_weights_too_large_for_exp_are_fine():
    weights = torch.full((10,), 5_000.0, dtype=torch.float64)
    assert bounds.iw_log_partition(weights) == pytest.approx(5_000.0)
    assert bounds.effective_sample_size(weights) == pytest.approx(1.0)


def test_effective_sample_size_of_two_unit_gaussians_is_exp_of_minus_the_squared_distance():
    drawn, _ = gaussian_pair(400_000, mean=0.7)
    assert bounds.effective_sample_size(drawn) == pytest.approx(math.exp(-0.49), rel=0.01)
    one_of_four = torch.tensor([0.0, -1e4, -1e4, -1e4], dtype=torch.float64)
    assert bounds.effective_sample_size(one_of_four) == pytest.approx(0.25)


def test_standard_errors_match_the_spread_over_400_repetitions():
    repeats = [gaussian_pair(500, mean=0.8, seed=seed)[0] for seed in range(400)]
    for value, error in (
        (bounds.elbo, bounds.bound_standard_error),
        (bounds.iw_log_partition, bounds.iw_standard_error),
    ):
        spread = float(torch.tensor([value(weights) for weights in repeats]).std())
        reported = sum(error(weights) for weights in repeats) / 400
        assert reported == pytest.approx(spread, rel=0.12)


def test_a_lost_mode_is_seen_by_the_eubo_and_by_nothing_else():
    def log_weight(value):  # q = N(5, 1); the target has a second mode at -5
        left, right = -0.5 * (value + 5).square(), -0.5 * (value - 5).square()
        return torch.logaddexp(left, right) - math.log(2) - right

    noise = torch.randn(4_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn, exact = log_weight(noise + 5), log_weight(noise + torch.tensor([-5.0, 5.0]).repeat(2_000))
    assert bounds.elbo(drawn) == pytest.approx(-math.log(2), abs=1e-6)
    assert bounds.iw_log_partition(drawn) == pytest.approx(-math.log(2), abs=1e-6)
    assert bounds.effective_sample_size(drawn) == pytest.approx(1.0, abs=1e-6)
    assert bounds.eubo(exact) == pytest.approx(25 - math.log(2), abs=0.6)


def test_with_the_exact_chain_posterior_plugged_in_all_bounds_are_log_z_and_ess_is_one():
    problem = make_problem("gaussian-linear", {"dim": 6, "measurement_dim": 3, "num_steps": 12})
    exact = problem.exact[0]
    paths = bounds.exact_paths(problem, 0, 64, torch.Generator().manual_seed(0))
    assert paths.shape == (64, 13, 6)
    weights = bounds.path_log_weight(problem, exact, paths, 0)
    # The measurement is stored in float32 and used in float64 by both: no rounding of its own.
    assert (weights - exact.log_partition).abs().max() < 1e-9
    assert bounds.elbo(weights) == pytest.approx(exact.log_partition, abs=1e-9)
    assert bounds.iw_log_partition(weights) == pytest.approx(exact.log_partition, abs=1e-9)
    assert bounds.effective_sample_size(weights) == pytest.approx(1.0, abs=1e-9)


def test_eubo_of_the_prior_is_the_expected_log_likelihood_under_the_exact_posterior():
    problem = make_problem("gaussian-linear", {"dim": 4, "measurement_dim": 2, "num_steps": 10})
    exact, likelihood = problem.exact[0], problem.likelihood
    paths = bounds.exact_paths(problem, 0, 4_000, torch.Generator().manual_seed(1))
    weights = bounds.path_log_weight(problem, PriorAsPosterior(), paths, 0)
    matrix = likelihood.operator.matrix.double()
    spread = (matrix @ exact.covariance @ matrix.T).trace()
    offset = (problem.measurements[0].double() - matrix @ exact.mean).square().sum()
    constant = 2 * (math.log(likelihood.noise_std) + 0.5 * math.log(2 * math.pi))
    expected = -0.5 * float(spread + offset) / likelihood.noise_std**2 - constant
    assert bounds.eubo(weights) == pytest.approx(expected, abs=4 * bounds.bound_standard_error(weights))
    assert bounds.eubo(weights) > exact.log_partition


def test_noising_over_chain_probability_averages_to_one_and_its_log_falls_with_the_number_of_steps():
    means = []
    for steps in (10, 40):
        problem = make_problem("gmm-linear", {"dim": 4, "num_steps": steps})
        generator = torch.Generator().manual_seed(0)
        clean = problem.prior.denoiser.sample(3_000, generator)
        log_ratio = bounds.path_discretisation(problem, problem.prior.noising.sample_path(clean, generator))
        ratio = log_ratio.neg().exp()  # chain over noising, both normalised: its mean is 1
        assert float(ratio.mean()) == pytest.approx(1.0, abs=4 * float(ratio.std()) / 3_000**0.5)
        means.append(float(log_ratio.mean()))
    assert means[0] > 0.05
    assert 0 < means[1] < 0.5 * means[0]


def test_paths_of_a_mixture_posterior_end_in_exact_samples():
    problem = make_problem("gmm-linear", {"dim": 4, "num_steps": 10})
    paths = bounds.exact_paths(problem, 0, 4_000, torch.Generator().manual_seed(0))
    assert paths.shape == (4_000, 11, 4)
    error = (paths[:, -1].mean(0) - problem.exact[0].mean).abs() / (problem.exact[0].variance / 4_000).sqrt()
    assert float(error.max()) < 4.5


def test_the_density_of_a_prior_without_one_is_reported_as_unknown(network_prior):
    problem = make_problem("gaussian-linear", {"dim": 4, "measurement_dim": 2, "num_steps": 5})
    problem = dataclasses.replace(problem, prior=network_prior, exact=())
    assert bounds.path_discretisation(problem, torch.zeros(2, 7, 3)) is None


def test_bad_weights_and_groups_are_refused():
    with pytest.raises(ValueError, match=r"float64 vector, got torch\.float32"):
        bounds.elbo(torch.zeros(4))
    with pytest.raises(ValueError, match=r"float64 vector, got torch\.float64 of shape \(2, 2\)"):
        bounds.effective_sample_size(torch.zeros(2, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"within 1\.\.4, the number of weights, got 5"):
        bounds.iw_log_partition(torch.zeros(4, dtype=torch.float64), 5)


def test_the_bridge_estimate_of_two_gaussians_is_their_evidence(generator):
    """q = N(0, 1), posterior = N(1, 0.5^2), log Z = 3: lw is the log ratio of densities plus 3, on draws of either."""

    def log_weight(value):
        posterior = -0.5 * ((value - 1) / 0.5).square() - math.log(0.5)
        return posterior + 0.5 * value.square() + 3.0

    errors = []
    for _ in range(50):
        drawn = torch.randn(1000, generator=generator, dtype=torch.float64)
        exact = 1 + 0.5 * torch.randn(400, generator=generator, dtype=torch.float64)
        errors.append(bounds.bridge_log_partition(log_weight(drawn), log_weight(exact)) - 3.0)
    error = torch.tensor(errors)
    assert abs(float(error.mean())) < 4 * float(error.std()) / math.sqrt(50)
    assert float(error.std()) < 0.08


@pytest.mark.parametrize("distance", [0.5, 2.0])
def test_the_variance_of_the_bridge_estimate_is_the_one_that_theory_says(generator, distance):
    """q = N(0, 1), posterior = N(distance, 1): log pi / q = distance (x - distance / 2)."""
    errors, variances = [], []
    for _ in range(400):
        noise = torch.randn(2, 200, generator=generator, dtype=torch.float64)
        drawn, exact = distance * (noise[0] - distance / 2), distance * (noise[1] + distance / 2)
        errors.append(bounds.bridge_log_partition(drawn, exact))
        variances.append(bounds.bridge_variance(drawn, exact, errors[-1]))
    assert float(np.mean(variances)) == pytest.approx(np.var(errors), rel=4 * math.sqrt(2 / 400))


def test_the_bridge_estimate_is_exact_where_q_is_the_posterior():
    weights = torch.full((7,), -2.5, dtype=torch.float64)
    assert bounds.bridge_log_partition(weights, weights[:3]) == pytest.approx(-2.5, abs=1e-8)


def test_proposed_paths_of_zero_likelihood_count_in_the_bridge_estimate(generator):
    """q = N(0, 1), the posterior its positive half: Z = 1/2, and half of the proposed weights are zero."""
    drawn = torch.randn(4000, generator=generator, dtype=torch.float64)
    weight = torch.where(drawn > 0, 0.0, -math.inf).double()
    assert bounds.bridge_log_partition(weight, torch.zeros(2000, dtype=torch.float64)) == pytest.approx(
        math.log(float((drawn > 0).double().mean())), abs=1e-6
    )
