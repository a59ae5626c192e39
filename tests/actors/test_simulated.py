"""Measurements drawn by simulation: numbers, exact members, and what belongs together."""

import dataclasses

import numpy as np
import pytest
import torch

from actors import Actor, ActorConfig
from diffusion.posterior import ControlPosterior
from diffusion.trajectory import Origin
from envs import make_problem


def _actor(problem, measurements=3, size=12, index=0, **options):
    torch.manual_seed(0)
    posterior = ControlPosterior(problem.prior, (2,), problem.gradient, hidden=8, depth=1)
    torch.nn.init.normal_(posterior.network.head.weight, std=0.3)
    mixture = options.pop("mixture", {"on-policy": 1.0})
    config = ActorConfig(
        batch_size=size, simulated_measurements=measurements, mixture=mixture, final_mixture=mixture, **options
    )
    return Actor(problem, posterior, config, seed=0, index=index)


def test_a_rollout_is_of_new_measurements_each_with_an_exact_path_and_equally_many_others(gaussian_problem):
    actor, seen = _actor(gaussian_problem), set()
    for _ in range(4):
        made = actor.act()
        numbers, counts = np.unique(made.measurement_id, return_counts=True)
        assert (numbers < 0).all() and counts.tolist() == [4, 4, 4]
        assert not seen & set(numbers.tolist())
        seen |= set(numbers.tolist())
        for number in numbers:
            own = made.take(made.measurement_id == number)
            assert (own.measurement == own.measurement[0]).all()
            assert sorted(own.origin.tolist()) == [Origin.ON_POLICY] * 3 + [Origin.JOINT]
        assert len(set(made.measurement[:, 0].tolist())) == 3
    others = _actor(gaussian_problem, index=1).act().measurement_id
    assert not seen & set(others.tolist()) and others.dtype == np.int64


def test_likelihood_guidance_and_ratio_are_those_at_the_measurement_that_comes_along(gaussian_problem):
    problem, actor = gaussian_problem, _actor(gaussian_problem)
    made = actor.act()
    states, measurement = torch.from_numpy(made.states), torch.from_numpy(made.measurement)
    expected = problem.likelihood.log_prob(states[:, -1], measurement)
    assert made.log_likelihood == pytest.approx(expected.numpy(), abs=1e-4)
    ratio = torch.zeros(12)
    for index in range(problem.num_steps):
        step = torch.full((12,), index)
        denoised, guidance = problem.prior.pull_back(
            states[:, index], step, lambda value: problem.gradient(value, measurement)
        )
        assert made.denoised[:, index] == pytest.approx(denoised.numpy(), abs=1e-4)
        assert made.guidance[:, index] == pytest.approx(guidance.numpy(), abs=1e-3)
        ratio += actor.posterior.log_ratio(states[:, index + 1], states[:, index], step, denoised, measurement)
    on_policy = made.origin == Origin.ON_POLICY
    assert made.log_behaviour_ratio[on_policy] == pytest.approx(ratio.numpy()[on_policy], abs=1e-2)


def test_measurements_are_simulated_from_the_exact_paths_that_come_with_them_not_from_the_problem_s(gaussian_problem):
    problem = dataclasses.replace(gaussian_problem, measurements=gaussian_problem.measurements + 50, exact=())
    made = _actor(problem, measurements=10_000, size=20_000, mixture={"prior": 1.0}).act()
    exact = made.take(made.origin == Origin.JOINT)
    noise_std, matrix = problem.likelihood.noise_std, problem.likelihood.operator.matrix.float()
    noise = torch.from_numpy(exact.measurement) - torch.from_numpy(exact.samples) @ matrix.T
    assert noise.std(0).numpy() == pytest.approx(np.full(2, noise_std), rel=0.05)
    assert float(noise.mean(0).abs().max()) < 5 * noise_std / 100


@pytest.mark.parametrize("kind", ["noise-inflated", "prior", "pigdm", "dps", "annealed-measurement", "langevin"])
def test_every_kind_that_allows_it_explores_simulated_measurements(gaussian_problem, kind):
    actor = _actor(
        gaussian_problem, mixture={kind: 1.0}, langevin=dataclasses.replace(ActorConfig().langevin, start_by="age")
    )
    first = _actor(gaussian_problem).act()
    made = actor.act(lambda count, by: first.take(np.arange(count)))
    expected = gaussian_problem.likelihood.log_prob(torch.from_numpy(made.samples), torch.from_numpy(made.measurement))
    assert made.log_likelihood == pytest.approx(expected.numpy(), abs=1e-3)
    for number in np.unique(made.measurement_id):
        own = made.measurement[made.measurement_id == number]
        assert number < 0 and (own == own[0]).all()


def test_trajectories_that_go_on_from_stored_ones_keep_number_and_measurement_of_their_start(gaussian_problem):
    options = {"backtracking": dataclasses.replace(ActorConfig().backtracking, start_by="age")}
    actor = _actor(gaussian_problem, mixture={"backtracking": 1.0}, **options)
    stored = _actor(gaussian_problem, index=3).act()
    made = actor.act(lambda count, by: stored)
    assert made.measurement_id.tolist() == stored.measurement_id.tolist()
    np.testing.assert_array_equal(made.measurement, stored.measurement)
    assert set(made.origin.tolist()) == {Origin.BACKTRACKING}


@pytest.mark.parametrize(("number", "size"), [(-1, 12), (5, 12), (12, 12), (7, 12)])
def test_a_number_of_measurements_that_does_not_give_each_two_trajectories_is_refused(number, size):
    with pytest.raises(ValueError, match=f"must be 0, or divide actor.batch_size into two .* got {number} and {size}"):
        ActorConfig(simulated_measurements=number, batch_size=size)


@pytest.mark.parametrize("kind", ["teacher", "path-search", "backtracking", "langevin"])
def test_a_kind_that_compares_trajectories_of_one_measurement_is_refused(kind):
    with pytest.raises(ValueError, match=f"{kind} goes by many trajectories of one measurement"):
        ActorConfig(simulated_measurements=4, batch_size=8, mixture={kind: 1.0}, final_mixture={kind: 1.0})


def test_a_likelihood_without_simulation_and_an_index_beyond_the_numbers_are_refused(gaussian_problem):
    with pytest.raises(ValueError, match="needs a likelihood that measurements can be drawn from"):
        problem = make_problem("funnel")
        posterior = ControlPosterior(problem.prior, tuple(problem.measurements.shape[1:]), problem.gradient, hidden=8)
        Actor(problem, posterior, ActorConfig(simulated_measurements=4), seed=0)
    with pytest.raises(ValueError, match=r"an actor's index must be within 0\.\.32767, got 32768"):
        _actor(gaussian_problem, index=32768)
