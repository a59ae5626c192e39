"""Langevin steps: detailed balance in one dimension, one gradient a step, a step size that settles."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from actors import Actor, ActorConfig
from actors.langevin import FIRST, LARGEST, SMALLEST, TARGET, Langevin, LangevinConfig, Point, log_step_weight
from actors.path_weights import log_acceptance
from actors.stored_paths import StoredPaths
from diffusion.posterior import ControlPosterior
from envs import make_problem


class Bumps:
    """A density on the line with two modes, and its gradient, in closed form."""

    def __init__(self):
        self.grid = torch.linspace(-4, 4, 161, dtype=torch.float64)
        self.log_density = torch.logaddexp(-2 * (self.grid - 1).square(), -0.5 * (self.grid + 1.5).square())
        near = torch.exp(-2 * (self.grid - 1).square() - self.log_density)
        self.gradient = -4 * (self.grid - 1) * near - (self.grid + 1.5) * (1 - near)

    def flow(self, size, acceptance):
        """[161, 161] log of the probability flow between any two points, the proposal from its textbook form."""
        old, new = (index.flatten() for index in torch.meshgrid(*[torch.arange(161)] * 2, indexing="ij"))

        def points(index):
            return Point(self.grid[index, None], self.log_density[index], self.gradient[index, None])

        weights = log_step_weight(points(new), points(old), size), log_step_weight(points(old), points(new), size)
        drift = self.grid[old] + 0.5 * size * self.gradient[old]
        proposal = torch.distributions.Normal(drift, math.sqrt(size)).log_prob(self.grid[new])
        return (self.log_density[old] + proposal + acceptance(*weights)).reshape(161, 161)


@pytest.mark.parametrize("size", [0.01, 0.3, 2.0])
def test_the_flow_there_equals_the_flow_back(size):
    flow = Bumps().flow(size, log_acceptance)
    assert ((flow - flow.T).abs() / flow.abs().clamp_min(1)).max() < 1e-12


@pytest.mark.parametrize(
    "wrong",
    [
        lambda new, old: log_acceptance(old, new),
        lambda new, old: torch.zeros_like(new),
        lambda new, old: 0.5 * log_acceptance(new, old),
    ],
    ids=["sign", "always", "root"],
)
def test_a_wrong_acceptance_is_out_of_balance(wrong):
    flow = Bumps().flow(0.3, wrong)
    assert (flow.exp() - flow.T.exp()).abs().max() > 1e-3


class Counted:
    """A likelihood that counts how often it is asked."""

    def __init__(self, likelihood):
        self.likelihood, self.measurement_shape = likelihood, likelihood.measurement_shape
        self.values = self.gradients = 0

    def log_prob(self, value, measurement):
        self.values += 1
        return self.likelihood.log_prob(value, measurement)

    def gradient(self, value, measurement):
        self.gradients += 1
        return self.likelihood.gradient(value, measurement)


def _posterior(problem):
    return ControlPosterior(problem.prior, problem.measurements.shape[1:], None, hidden=8, depth=1)


def test_a_step_costs_one_likelihood_and_one_gradient(gaussian_problem, exact_starts, generator):
    counted = Counted(gaussian_problem.likelihood)
    problem = dataclasses.replace(gaussian_problem, likelihood=counted)
    kind = Langevin(LangevinConfig(steps=7, rounds=4), problem)
    kind.explore_from(problem, _posterior(problem), exact_starts(64, "age"), 0.0, generator)
    assert (counted.values, counted.gradients) == (28, 28 + 1)


def test_after_a_step_gradients_and_densities_are_those_of_where_the_paths_are(
    gaussian_problem, exact_starts, generator
):
    """Of paths that took their proposal and of those that did not."""
    problem = gaussian_problem
    kind, measurement = Langevin(LangevinConfig(), problem), problem.measurements.expand(200, -1)
    kind._size = 2.0
    paths = StoredPaths(problem, exact_starts(200, "age"), generator=generator, guided=False)
    taken, pull = kind._step(paths, problem.gradient(paths.samples, measurement), measurement, generator)
    assert 20 < int(taken.sum()) < 180
    assert pull.numpy() == pytest.approx(problem.gradient(paths.samples, measurement).numpy(), rel=1e-5, abs=1e-6)
    noising = problem.prior.noising.path_log_prob(paths.states)
    assert paths.log_noising.numpy() == pytest.approx(noising.numpy(), abs=1e-4)
    assert paths.log_likelihood.numpy() == pytest.approx(
        problem.log_likelihood(paths.samples, paths.measurement_id).numpy(), rel=1e-5
    )


def test_each_step_starts_from_the_gradient_where_the_last_one_ended(gaussian_problem, exact_starts, generator):
    """By the steps of one round, one by one, with the same random numbers."""
    problem, measurement = gaussian_problem, gaussian_problem.measurements.expand(200, -1)
    starts = exact_starts(200, "age")
    kind = Langevin(LangevinConfig(rounds=1, steps=3), problem)
    kind._size = 2.0
    explored = kind.explore_from(problem, _posterior(problem), starts, 0.0, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    paths = StoredPaths(problem, starts, generator=generator, guided=False)
    again = Langevin(LangevinConfig(), problem)
    again._size = 2.0
    for _ in range(3):
        pull = problem.gradient(paths.samples, measurement)  # anew
        again._step(paths, pull, measurement, generator)
    assert explored.states[:, -1].numpy() == pytest.approx(paths.samples.numpy(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("first", [1e-6, 4.0])
def test_the_step_size_settles_where_the_acceptance_is_the_best(exact_paths, generator, first):
    """With a measurement more precise than the last transition, so that a long step is refused."""
    options = {"dim": 4, "measurement_dim": 2, "num_steps": 10, "noise_std": 0.02}
    narrow = make_problem("gaussian-linear", options)
    starts, kind = exact_paths(narrow, 500), Langevin(LangevinConfig(steps=5, rounds=1), narrow)
    kind._size = first
    acceptance = [kind.explore_from(narrow, _posterior(narrow), starts, 0.0, generator).acceptance for _ in range(80)]
    assert np.mean(acceptance[-20:]) == pytest.approx(TARGET, abs=0.03)
    assert abs(acceptance[0] - TARGET) > 0.2
    assert SMALLEST < kind._size < LARGEST and kind._size != FIRST


def test_stored_samples_climb_to_where_the_likelihood_wants_them(gaussian_problem, stored_paths, generator):
    """From prior paths, in few turns, to the mean log-likelihood of the posterior, which rollouts of the prior miss."""
    kind, posterior = Langevin(LangevinConfig(rounds=10), gaussian_problem), _posterior(gaussian_problem)
    stored = stored_paths["prior"].take(slice(0, 2000))
    expected = stored_paths["exact"].log_likelihood.mean()
    assert stored.log_likelihood.mean() < expected - 1.5
    for _ in range(12):
        made = kind.explore_from(gaussian_problem, posterior, stored, 0.0, generator)
        stored = made.trajectory(stored.uid, 0, kind.origin)
    assert stored.log_likelihood.mean() == pytest.approx(expected, abs=0.1)


def test_a_gradient_or_value_that_is_not_finite_is_never_taken(gaussian_problem, exact_starts, generator):
    class Fragile(Counted):
        def log_prob(self, value, measurement):
            return torch.where(value[:, 0] > 0, torch.nan, super().log_prob(value, measurement))

        def gradient(self, value, measurement):
            return torch.where(value[:, 1:2] > 0, torch.inf, super().gradient(value, measurement))

    problem = dataclasses.replace(gaussian_problem, likelihood=Fragile(gaussian_problem.likelihood))
    starts = exact_starts(4000, "age")
    sound = (starts.samples[:, :2] < 0).all(1)
    assert sound.sum() > 100
    made = Langevin(LangevinConfig(), problem).explore_from(
        problem, _posterior(problem), starts.take(np.flatnonzero(sound)), 0.0, generator
    )
    assert bool((made.states[:, -1, :2] <= 0).all()) and bool(torch.isfinite(made.states).all())
    assert (made.states[:, -1].numpy() != starts.samples[sound]).any(1).mean() > 0.5


def test_a_likelihood_without_a_gradient_is_refused_at_the_start(gaussian_problem):
    class Blind:
        def __init__(self, likelihood):
            self.log_prob, self.measurement_shape = likelihood.log_prob, likelihood.measurement_shape

    problem = dataclasses.replace(gaussian_problem, likelihood=Blind(gaussian_problem.likelihood))
    only = {"mixture": {"langevin": 1.0}, "final_mixture": {"langevin": 1.0}}
    with pytest.raises(ValueError, match=r"that of problem 'gaussian-linear', Blind, has no method `gradient`"):
        Actor(problem, _posterior(problem), ActorConfig(**only), seed=0)


def test_images_move_as_vectors_do(generator):
    """x of shape [8, 8]: broadcasting of step, mean and choice over the event dimensions."""
    problem = make_problem("digits-half", {"num_steps": 10})
    kind = Langevin(LangevinConfig(steps=2, rounds=1), problem)
    starts = Actor(
        problem,
        _posterior(problem),
        ActorConfig(batch_size=6, mixture={"prior": 1.0}, final_mixture={"prior": 1.0}),
        seed=0,
    ).act()
    made = kind.explore_from(problem, _posterior(problem), starts, 0.0, generator)
    assert made.states.shape == starts.states.shape and made.log_behaviour_ratio.shape == (6,)


@pytest.mark.parametrize("name", ["steps", "rounds"])
def test_a_setting_that_cannot_be_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"actor.langevin.{name} must be at least 1, got 0"):
        LangevinConfig(**{name: 0})
