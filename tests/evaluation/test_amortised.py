"""Many measurements at once: the same numbers as one at a time, and exact samples as the yardstick."""

import numpy as np
import pytest
import torch

from actors.rollout import rollout
from envs import make_problem
from evaluation import bounds
from evaluation.amortised import evaluate_amortised
from evaluation.distance import class_l1


@pytest.fixture(scope="module")
def judged():
    problem = make_problem("digits-half", {"digit": 0, "count": 3, "num_steps": 10})
    rows = torch.arange(3).repeat_interleave(40)
    made = rollout(problem, None, rows, generator=torch.Generator().manual_seed(0))
    samples, log_weight = made.states[:, -1].reshape(3, 40, 1, 8, 8), made.log_weight.reshape(3, 40)
    return problem, samples, log_weight, evaluate_amortised(problem, samples, log_weight)


def test_every_measurement_is_judged_by_its_own_samples_and_its_own_exact_posterior(judged):
    problem, samples, log_weight, result = judged
    for row in range(3):
        assert result.elbo[row] == bounds.elbo(log_weight[row])
        assert result.iw_log_partition[row] == bounds.iw_log_partition(log_weight[row])
        assert result.effective_sample_size[row] == bounds.effective_sample_size(log_weight[row])
        assert result.exact_log_partition[row] == problem.exact[row].log_partition
        learned = problem.classes.probabilities(samples[row]).mean(0)
        assert result.class_l1[row] == pytest.approx(class_l1(learned, problem.class_probabilities(row)))
    assert len(set(result.exact_log_partition)) == 3


def test_the_summary_is_of_gaps_errors_and_a_floor_below_what_prior_samples_score(judged):
    *_, result = judged
    summary = result.summary()
    assert summary["elbo_gap"] == pytest.approx(float(np.mean(result.exact_log_partition - result.elbo)))
    errors = sorted(abs(result.iw_log_partition - result.exact_log_partition))
    assert summary["log_partition_error"] == pytest.approx(errors[1])
    assert summary["class_l1_floor"] < 0.5 * summary["class_l1"]


def test_samples_of_another_number_of_measurements_are_refused(judged):
    problem, samples, log_weight, _ = judged
    with pytest.raises(ValueError, match=r"expected samples \[3, S, 1, 8, 8\] and log weights \[3, S\]"):
        evaluate_amortised(problem, samples[:2], log_weight[:2])
