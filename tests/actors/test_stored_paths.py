"""Kinds of exploration that go on from stored paths: they leave the posterior invariant, and weights what they were."""

import dataclasses

import numpy as np
import pytest
import torch

from actors import EXPLORATIONS, ActorConfig, langevin, path_search
from actors.exploration import FromStored
from actors.stored_paths import StoredPaths
from diffusion.path import denoise_path, path_log_prior
from diffusion.posterior import ControlPosterior

COUNT = 20_000


def _posterior(problem, std=0.15):
    torch.manual_seed(0)
    posterior = ControlPosterior(problem.prior, (2,), problem.gradient, hidden=8, depth=1)
    torch.nn.init.normal_(posterior.network.head.weight, std=std)
    return posterior


def _from_stored(problem):
    """Name and settings of every kind, in every form, that goes on from stored trajectories."""
    forms = [{"backtracking": {"form": "fixed", "depth": 0.6}}, {"backtracking": {"form": "restart", "rounds": 3}}]
    for section in forms:
        yield next(iter(section)), section
    for name, factory in EXPLORATIONS.items():
        if isinstance(factory(ActorConfig(), problem), FromStored):
            yield name, {}


@pytest.fixture(params=range(4))
def kind(request, gaussian_problem):
    """(name, kind of exploration)."""
    name, sections = list(_from_stored(gaussian_problem))[request.param]
    options = {section: type(getattr(ActorConfig(), section))(**values) for section, values in sections.items()}
    return name, EXPLORATIONS[name](ActorConfig(**options), gaussian_problem)


def _moments(problem, samples, weight):
    """Deviation of the weighted mean and variance of x from the exact ones, in standard errors."""
    exact = problem.exact[0]
    white = (torch.from_numpy(samples).double() - exact.mean) / exact.variance.sqrt()
    weight = torch.from_numpy(weight)[:, None]
    errors = []
    for value in (white, white.square() - 1):
        errors.append((weight * value).mean(0) / ((weight * value).std(0) / len(samples) ** 0.5))
    return torch.cat(errors).abs().max()


@pytest.mark.parametrize("start", ["exact", "prior"])
def test_paths_that_stand_for_the_posterior_stand_for_it_with_the_same_weights_after_the_move(
    gaussian_problem, stored_paths, generator, kind, start
):
    """From exact starts a sample of the posterior comes out; prior paths are one under their weights, p(y | x)."""
    name, exploration = kind
    stored, posterior = stored_paths[start], _posterior(gaussian_problem)
    made = exploration.explore_from(gaussian_problem, posterior, stored, 0.5, generator)
    made = made.trajectory(stored.uid, 0, exploration.origin)
    assert (made.samples != stored.samples).any(1).mean() > 0.03, f"{name} moves next to nothing"
    assert (made.states[:, 0] != stored.states[:, 0]).any(1).mean() > 0.3
    assert made.log_importance == pytest.approx(stored.log_importance, abs=1e-4)
    weight = np.exp(made.log_importance - gaussian_problem.exact[0].log_partition)
    assert _moments(gaussian_problem, made.samples, weight) < 4.5  # the largest of eight


def test_a_move_that_accepts_everything_is_seen(gaussian_problem, stored_paths, generator, kind, monkeypatch):
    for module in (path_search, langevin):
        monkeypatch.setattr(module, "log_acceptance", lambda new, old: torch.zeros_like(new))
    stored, (name, exploration) = stored_paths["exact"], kind
    if name == "langevin":  # whose short steps are hardly ever refused
        exploration._size = 4.0
    made = exploration.explore_from(gaussian_problem, _posterior(gaussian_problem), stored, 0.5, generator)
    assert _moments(gaussian_problem, made.states[:, -1].numpy(), np.ones(COUNT)) > 10


def test_what_is_handed_on_belongs_to_its_states(gaussian_problem, stored_paths, generator, kind):
    problem, stored = gaussian_problem, stored_paths["exact"].take(slice(0, 200))
    made = kind[1].explore_from(problem, _posterior(problem), stored, 0.5, generator)
    denoised = denoise_path(problem.prior, made.states)
    assert made.denoised.numpy() == pytest.approx(denoised.numpy(), abs=1e-4)
    log_prior = path_log_prior(problem.prior, made.states, denoised)
    assert made.log_prior.numpy() == pytest.approx(log_prior.numpy(), abs=2e-3)
    log_likelihood = problem.log_likelihood(made.states[:, -1], made.measurement_id)
    assert made.log_likelihood.numpy() == pytest.approx(log_likelihood.numpy(), rel=1e-5, abs=1e-5)
    pulled = torch.stack(
        [
            problem.prior.pull_back(
                made.states[:, index],
                torch.full((200,), index),
                lambda value: problem.gradient(value, problem.measurements[made.measurement_id]),
            )[1]
            for index in range(problem.num_steps)
        ],
        1,
    )
    assert made.guidance.numpy() == pytest.approx(pulled.numpy(), abs=1e-3)
    assert 0 <= made.acceptance <= 1


def test_a_start_of_zero_likelihood_keeps_its_weight_of_zero(gaussian_problem, stored_paths, generator):
    stored = stored_paths["exact"].take(slice(0, 4))
    possible = np.arange(4) > 0
    stored = dataclasses.replace(stored, log_likelihood=np.where(possible, stored.log_likelihood, -np.inf))
    paths = StoredPaths(gaussian_problem, stored, generator=generator, guided=False)
    paths.redraw_suffix(0)
    made = paths.paths().trajectory(stored.uid, 0, 0)
    assert np.isfinite(made.log_likelihood[0]) and made.log_importance[0] == -np.inf
    assert np.isfinite(made.log_importance[1:]).all()
