import dataclasses
import math

import numpy as np
import pytest
import torch

from actors.rollout import rollout
from diffusion.kernel import normal_log_prob
from diffusion.path import denoise_path, path_log_prior, path_log_ratio
from diffusion.posterior import ControlPosterior
from diffusion.trajectory import Origin
from envs import make_problem


def _rows(count):
    return torch.zeros(count, dtype=torch.int64)


@pytest.fixture
def posterior(gaussian_problem):
    """A control with weights moved away from zero."""
    torch.manual_seed(0)
    posterior = ControlPosterior(gaussian_problem.prior, (2,), gaussian_problem.gradient, hidden=8, depth=1)
    torch.nn.init.normal_(posterior.network.head.weight, std=0.5)
    posterior.gain.data.fill_(0.2)
    return posterior


def _behaviour_ratio(problem, control, states, measurement, inflation):
    """log b - log p of every path by two normal densities in float64."""
    prior, total = problem.prior, 0.0
    for index in range(prior.num_steps):
        state, following = states[:, index], states[:, index + 1].double()
        step = torch.full((len(states),), index)
        denoised = prior.denoised(state, step)
        mean, std = prior.mean(state, step, denoised).double(), prior.std[step]
        shift = 0.0 if control is None else std[:, None] * control(state, step, denoised, measurement).double()
        total += normal_log_prob(following, mean + shift, inflation * std) - normal_log_prob(following, mean, std)
    return total


@pytest.mark.parametrize("inflation", [1.0, 1.3])
@pytest.mark.parametrize("controlled", [False, True])
def test_scores_made_on_the_way_are_those_of_the_finished_paths(
    gaussian_problem, posterior, controlled, inflation, generator
):
    control = posterior.control if controlled else None
    made = rollout(gaussian_problem, control, _rows(30), inflation=inflation, generator=generator)
    measurement = gaussian_problem.measurements.expand(30, 2)
    denoised = denoise_path(gaussian_problem.prior, made.states)
    log_prior = path_log_prior(gaussian_problem.prior, made.states, denoised)
    assert made.states.shape == (30, 11, 4)
    assert made.log_prior.shape == made.log_ratio.shape == (30, 10)
    assert made.log_behaviour_ratio.shape == made.log_likelihood.shape == made.log_weight.shape == (30,)
    assert made.denoised.numpy() == pytest.approx(denoised.numpy(), abs=1e-5)
    assert made.log_prior.numpy() == pytest.approx(log_prior.numpy(), abs=2e-4)
    if controlled:
        ratio = path_log_ratio(posterior, made.states, denoised, measurement)
        assert float(ratio.abs().max()) > 0.1
        assert made.log_ratio.numpy() == pytest.approx(ratio.numpy(), abs=2e-4)
    else:
        assert torch.equal(made.log_ratio, torch.zeros(30, 10))
    with torch.no_grad():
        behaviour = _behaviour_ratio(gaussian_problem, control, made.states, measurement, inflation)
    assert made.log_behaviour_ratio.numpy() == pytest.approx(behaviour.numpy(), abs=2e-4)
    expected = gaussian_problem.likelihood.log_prob(made.states[:, -1], measurement)
    assert made.log_likelihood.numpy() == pytest.approx(expected.numpy(), rel=1e-6)


def test_the_last_transition_is_drawn_with_the_noise_it_is_scored_with(gaussian_problem, generator):
    made = rollout(gaussian_problem, None, _rows(5_000), generator=generator)
    prior, last = gaussian_problem.prior, torch.full((5_000,), 9)
    mean = prior.mean(made.states[:, -2], last, made.denoised[:, -1])
    spread = (made.states[:, -1] - mean).std()
    assert float(spread) == pytest.approx(float(prior.std[-1]), rel=4 / math.sqrt(2 * 20_000))
    assert float(prior.std[-1]) > 0


def test_without_control_or_inflation_the_behaviour_is_the_prior(gaussian_problem, generator):
    made = rollout(gaussian_problem, None, _rows(10), generator=generator)
    assert torch.equal(made.log_behaviour_ratio, torch.zeros(10, dtype=torch.float64))


def test_without_inflation_the_behaviour_is_the_posterior(gaussian_problem, posterior, generator):
    made = rollout(gaussian_problem, posterior.control, _rows(50), generator=generator)
    assert made.log_behaviour_ratio.dtype == torch.float64
    assert made.log_behaviour_ratio.numpy() == pytest.approx(made.log_ratio.double().sum(1).numpy(), abs=1e-4)


@pytest.mark.parametrize("controlled", [False, True])
def test_importance_weights_of_inflated_paths_average_to_one(controlled, generator):
    problem = make_problem("gaussian-linear", {"dim": 2, "measurement_dim": 1, "num_steps": 4})
    control = (lambda state, step, denoised, measurement: 0.2 * torch.tanh(state)) if controlled else None
    made = rollout(problem, control, _rows(40_000), inflation=1.25, generator=generator)
    weight = (-made.log_behaviour_ratio).exp()  # p / b
    error = float(weight.std()) / 200
    assert error < 0.02
    assert float(weight.mean()) == pytest.approx(1.0, abs=4 * error)
    # E_b[q / b] = 1 as well: the log-ratio is that of the uninflated posterior.
    weight = (made.log_ratio.double().sum(1) - made.log_behaviour_ratio).exp()
    assert float(weight.mean()) == pytest.approx(1.0, abs=4 * float(weight.std()) / 200)


def test_importance_weighted_paths_give_the_exact_evidence(generator):
    problem = make_problem("gaussian-linear", {"dim": 2, "measurement_dim": 1, "num_steps": 4})
    for control in (None, lambda state, step, denoised, measurement: 0.2 * torch.tanh(state)):
        made = rollout(problem, control, _rows(40_000), generator=generator)
        weight = made.log_weight.exp()
        error = float(weight.std() / weight.mean()) / 200
        assert error < 0.02
        assert float(weight.mean().log()) == pytest.approx(problem.exact[0].log_partition, abs=4 * error)


def test_each_trajectory_is_guided_and_scored_by_its_own_measurement(gaussian_problem, generator):
    measurements = torch.tensor([[0.0, 0.0], [5.0, -5.0]])
    problem = dataclasses.replace(gaussian_problem, measurements=measurements, exact=())
    seen = []

    def control(state, step, denoised, measurement):
        seen.append(measurement)
        return torch.zeros_like(state)

    rows = torch.tensor([1, 0, 1])
    made = rollout(problem, control, rows, generator=generator)
    assert all(torch.equal(measurement, measurements[rows]) for measurement in seen)
    expected = problem.likelihood.log_prob(made.states[:, -1], measurements[rows])
    assert torch.equal(made.log_likelihood, expected)
    assert torch.equal(made.measurement_id, rows)


def test_the_same_seed_makes_the_same_paths(gaussian_problem):
    first, again, other = (
        rollout(gaussian_problem, None, _rows(3), generator=torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first.states, again.states)
    assert not torch.equal(first.states, other.states)


def test_a_zero_control_draws_the_paths_of_the_prior_to_the_last_bit(gaussian_problem):
    fresh = ControlPosterior(gaussian_problem.prior, (2,), gaussian_problem.gradient, hidden=8)
    prior, posterior = (
        rollout(gaussian_problem, control, _rows(4), generator=torch.Generator().manual_seed(1))
        for control in (None, fresh.control)
    )
    assert torch.equal(prior.states, posterior.states)
    assert torch.equal(posterior.log_ratio, torch.zeros(4, 10))


def test_rolling_out_builds_no_graph(gaussian_problem, posterior, generator):
    made = rollout(gaussian_problem, posterior.control, _rows(2), generator=generator)
    assert not any(value.requires_grad for value in (made.states, made.denoised, made.log_ratio, made.log_weight))


@pytest.mark.parametrize("keep", [True, False])
def test_the_message_carries_the_tensors_and_says_who_made_them(gaussian_problem, posterior, keep, generator):
    made = rollout(gaussian_problem, posterior.control, _rows(3), inflation=1.2, generator=generator)
    uid = np.array([7, 8, 9], dtype=np.uint64)
    message = made.trajectory(uid, 42, Origin.NOISE_INFLATED, keep_denoised=keep)
    assert message.uid.tolist() == [7, 8, 9]
    assert message.policy_version.tolist() == [42] * 3
    assert message.origin.tolist() == [1] * 3
    assert np.array_equal(message.states, made.states.numpy())
    assert np.array_equal(message.log_prior, made.log_prior.numpy())
    expected = made.log_likelihood.double() - made.log_behaviour_ratio
    assert message.log_importance == pytest.approx(expected.numpy(), abs=1e-5)
    assert (message.denoised is not None) == keep
    dtypes = {name: value.dtype.name for name, value in message.arrays().items() if name != "denoised"}
    assert dtypes == {
        "uid": "uint64",
        "states": "float32",
        "log_prior": "float32",
        "log_behaviour_ratio": "float32",
        "log_likelihood": "float32",
        "measurement_id": "int64",
        "policy_version": "int64",
        "origin": "uint8",
    }


@pytest.mark.parametrize("inflation", [0.0, -1.0, math.nan])
def test_an_inflation_that_leaves_no_density_is_refused(gaussian_problem, inflation):
    with pytest.raises(ValueError, match=f"inflation must be positive, got {inflation}"):
        rollout(gaussian_problem, None, _rows(2), inflation=inflation)


def test_noise_without_saying_where_it_is_renewed_is_refused(gaussian_problem):
    noise = torch.zeros(2, gaussian_problem.num_steps, *gaussian_problem.prior.event_shape)
    with pytest.raises(ValueError, match="noise and renewed say together what is drawn anew: give both or neither"):
        rollout(gaussian_problem, None, _rows(2), noise=noise)
