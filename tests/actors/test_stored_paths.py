"""Kinds of exploration that go on from stored paths: they leave the posterior invariant, and weights what they were."""

import dataclasses

import numpy as np
import pytest
import torch

from actors import EXPLORATIONS, ActorConfig, langevin, path_search
from actors.exploration import FromStored
from actors.guided_kernel import GuidedKernel
from actors.langevin import LARGEST
from actors.path_searcher import PathSearchConfig
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
    forms += [{"path_search": {"start_by": "age", "sweeps": 12}}]
    for section in forms:
        yield next(iter(section)).replace("_", "-"), section
    for name, factory in EXPLORATIONS.items():
        if isinstance(factory(ActorConfig(), problem), FromStored):
            yield name, {}


@pytest.fixture(params=range(5))
def kind(request, gaussian_problem):
    """(name, kind of exploration)."""
    name, sections = list(_from_stored(gaussian_problem))[request.param]
    options = {section: type(getattr(ActorConfig(), section))(**values) for section, values in sections.items()}
    exploration = EXPLORATIONS[name](ActorConfig(**options), gaussian_problem)
    if name == "langevin":
        exploration._size = LARGEST  # short steps are nearly right even where all are taken
    return name, exploration


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
    stored, (_, exploration) = stored_paths["exact"], kind
    made = exploration.explore_from(gaussian_problem, _posterior(gaussian_problem), stored, 0.5, generator)
    assert _moments(gaussian_problem, made.states[:, -1].numpy(), np.ones(COUNT)) > 10


@pytest.mark.parametrize("sweeps", [1, 3])
def test_path_search_from_replay_learns_from_turn_to_turn_and_goes_on_bit_for_bit(
    gaussian_problem, stored_paths, sweeps
):
    """The guided kernel, at first the prior, is fitted to earlier paths: more suffixes are accepted."""
    problem, posterior = gaussian_problem, _posterior(gaussian_problem, 1.0)
    config = ActorConfig(path_search=PathSearchConfig(start_by="age", sweeps=sweeps))
    kind, stored = EXPLORATIONS["path-search"](config, problem), stored_paths["exact"].take(slice(0, 500))
    first, again = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    for turn in range(40):
        if turn == 7:
            resumed = EXPLORATIONS["path-search"](config, problem)
            arrays, scalars = kind.state_dict()
            again.set_state(first.get_state())
            resumed.load_state_dict(problem, arrays, scalars, again)
        made = kind.explore_from(problem, posterior, stored, 0.0, first)
        if turn >= 7:
            other = resumed.explore_from(problem, posterior, stored, 0.0, again)
            assert (made.states == other.states).all() and made.acceptance == other.acceptance
    assert kind.state_dict()[0]["sweeps"].tolist() == [40 * sweeps]
    gains, guide = kind.state_dict()[0]["gain"], GuidedKernel(problem)
    paths = StoredPaths(problem, stored, generator=first, guided=True)
    fitted = paths.experience()
    shares = []
    for gain in (torch.zeros_like(guide.gain), torch.from_numpy(gains)):
        paths.take_experience(fitted | {"gain": gain})
        shares.append(float(paths.redraw_suffix(0, paths.kernels()["guided"]).double().mean()))
    assert shares[1] > 1.5 * shares[0]


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
