import dataclasses

import pytest
import torch

import envs.problems  # noqa: F401  registers them
from envs.registry import make_problem
from evaluation import bounds, evaluate


@pytest.fixture(scope="module")
def chain():
    """Gaussian problem with samples and log weights of its exact chain posterior."""
    problem = make_problem("gaussian-linear", {"dim": 4, "measurement_dim": 2, "num_steps": 10})
    samples = problem.exact[0].sample(500, torch.Generator().manual_seed(3)).float()
    return problem, samples, torch.full((500,), problem.exact[0].log_partition, dtype=torch.float64)


@pytest.fixture(scope="module")
def mixture():
    problem = make_problem("gmm-linear", {"dim": 4, "num_steps": 10})
    samples = problem.exact[0].sample(2_000, torch.Generator().manual_seed(3)).float()
    return problem, samples, torch.zeros(2_000, dtype=torch.float64)


def test_the_exact_posterior_scores_log_z_on_every_bound_and_the_floor_on_every_distance(chain):
    problem, samples, log_weight = chain
    result = evaluate(problem, 0, samples, log_weight, problem.exact[0])
    log_partition = problem.exact[0].log_partition
    assert result.exact_log_partition == log_partition
    assert result.elbo == pytest.approx(log_partition, abs=1e-9)
    assert result.eubo == pytest.approx(log_partition, abs=1e-5)  # paths in float32, as a network takes them
    assert result.gap == pytest.approx(0.0, abs=1e-5)
    assert result.effective_sample_size == pytest.approx(1.0)
    assert result.w2 == pytest.approx(result.w2_floor, rel=0.2)
    assert result.sliced_w2 == pytest.approx(result.sliced_w2_floor, abs=0.06)
    assert result.mean_error < 3 / 500**0.5
    assert result.discretisation == 0.0


def test_a_shift_by_half_is_measured_as_a_half(chain):
    problem, samples, log_weight = chain
    result = evaluate(problem, 0, samples + 0.5, log_weight)
    assert result.mean_error == pytest.approx(0.5, abs=0.05)
    assert result.std_error < 0.1
    assert result.sliced_w2 == pytest.approx(0.5, abs=0.06)  # |shift| / sqrt(d)
    assert result.w2 == pytest.approx(1.0, abs=0.15)  # |shift|


def test_a_scale_of_two_is_seen_in_the_standard_deviation(chain):
    problem, samples, log_weight = chain
    exact = problem.exact[0]
    wide = (exact.mean + 2 * (samples - exact.mean)).float()
    expected = float(exact.variance.mean().sqrt())
    assert evaluate(problem, 0, wide, log_weight).std_error == pytest.approx(expected, rel=0.1)


def test_class_probabilities_of_exact_samples_match_the_exact_ones(mixture):
    problem, samples, log_weight = mixture
    result = evaluate(problem, 0, samples, log_weight, quick=True)
    assert sum(result.class_probabilities) == pytest.approx(1.0, abs=1e-6)
    assert result.exact_class_probabilities == pytest.approx(problem.class_probabilities(0).tolist())
    assert result.class_l1 < 0.1


def test_samples_in_a_mode_that_the_posterior_does_not_have_are_two_apart_from_it():
    problem = make_problem("gmm-25-to-9", {"num_steps": 2})
    corner = torch.tensor([[10.0, 10.0]]).repeat(50, 1)
    result = evaluate(problem, 0, corner, torch.zeros(50, dtype=torch.float64), quick=True)
    assert result.class_probabilities[result.class_names.index("(10, 10)")] == pytest.approx(1.0)
    assert result.class_l1 == pytest.approx(2.0)


class PriorAsPosterior:
    def log_ratio(self, next_state, state, step, denoised, measurement):
        return torch.zeros(len(next_state))


def test_eubo_of_the_prior_on_a_mixture_exceeds_log_z_and_counts_the_discretisation(mixture):
    problem, samples, log_weight = mixture
    result = evaluate(problem, 0, samples, log_weight, PriorAsPosterior(), quick=True)
    assert result.eubo > result.exact_log_partition
    assert result.discretisation > 0.02
    likelihood = problem.log_likelihood(samples, torch.zeros(2_000, dtype=torch.int64)).double()
    expected = float(likelihood.mean()) + result.discretisation
    assert result.eubo == pytest.approx(expected, abs=5 * result.eubo_standard_error)


def test_the_discretisation_is_added_to_the_eubo(mixture, monkeypatch):
    problem, samples, log_weight = mixture
    found = {}
    for value in (0.0, 7.0):
        constant = lambda problem, states, denoised, value=value: states.new_full((len(states),), value).double()  # noqa: E731
        monkeypatch.setattr(bounds, "path_discretisation", constant)
        found[value] = evaluate(problem, 0, samples, log_weight, PriorAsPosterior(), quick=True)
    assert found[7.0].eubo - found[0.0].eubo == pytest.approx(7.0) and found[7.0].discretisation == 7.0


def test_equal_seeds_give_equal_numbers_and_other_seeds_do_not(chain):
    problem, samples, log_weight = chain
    first, second, other = (
        evaluate(problem, 0, samples, log_weight, problem.exact[0], seed=seed) for seed in (0, 0, 1)
    )
    assert first == second
    assert first.sliced_w2 != other.sliced_w2


def test_quick_leaves_out_exact_transport_only(chain):
    problem, samples, log_weight = chain
    full, quick = (evaluate(problem, 0, samples, log_weight, problem.exact[0], quick=quick) for quick in (False, True))
    assert full.as_metrics().keys() - quick.as_metrics().keys() == {"eval/w2", "eval/w2_floor"}
    assert quick.sliced_w2 == full.sliced_w2


def test_metrics_are_the_known_numbers_under_eval(chain):
    problem, samples, log_weight = chain
    metrics = evaluate(problem, 0, samples, log_weight, problem.exact[0]).as_metrics()
    assert {"eval/elbo", "eval/iw_log_partition", "eval/effective_sample_size", "eval/eubo", "eval/gap"} <= set(metrics)
    assert all(isinstance(value, int | float) for value in metrics.values())
    assert "eval/class_l1" not in metrics  # the problem has no classes


def test_without_an_exact_posterior_the_bounds_of_q_remain(chain):
    problem, samples, log_weight = chain
    unknown = dataclasses.replace(problem, exact=())
    result = evaluate(unknown, 0, samples, log_weight, problem.exact[0])
    assert result.elbo == pytest.approx(problem.exact[0].log_partition)
    assert (result.eubo, result.gap, result.exact_log_partition, result.w2, result.mean_error) == (None,) * 5


def test_exact_transport_is_left_out_in_many_dimensions():
    problem = make_problem("gaussian-linear", {"dim": 33, "num_steps": 2})
    samples = problem.exact[0].sample(50)
    result = evaluate(problem, 0, samples, torch.zeros(50, dtype=torch.float64))
    assert result.w2 is None
    assert result.sliced_w2 > 0


def test_what_does_not_fit_the_problem_is_refused(chain):
    problem, samples, log_weight = chain
    with pytest.raises(ValueError, match=r"got \[500, 3\] and \[500\]"):
        evaluate(problem, 0, samples[:, :3], log_weight)
    with pytest.raises(ValueError, match=r"got \[500, 4\] and \[499\]"):
        evaluate(problem, 0, samples, log_weight[:-1])
    with pytest.raises(ValueError, match=r"within 0\.\.0, got 1"):
        evaluate(problem, 1, samples, log_weight)


def test_the_class_error_is_the_largest_of_all_classes():
    problem = make_problem("gmm-25-to-9", {"num_steps": 2})
    samples = problem.exact[0].sample(4000, torch.Generator().manual_seed(0))
    result = evaluate(problem, 0, samples, torch.zeros(4000, dtype=torch.float64), quick=True)
    errors = [abs(p - q) for p, q in zip(result.class_probabilities, result.exact_class_probabilities, strict=True)]
    assert result.class_error == max(errors) and 0 < result.class_error < 4 * 0.5 / 4000**0.5
    assert result.as_metrics()["eval/class_error"] == result.class_error
