import math

import pytest
import torch

from diffusion.path import denoise_path, guide_path, path_log_prior, path_log_ratio, stacked_transitions
from diffusion.posterior import ControlPosterior


@pytest.fixture
def scorer(network_prior):
    torch.manual_seed(1)
    posterior = ControlPosterior(network_prior, (2,), None, hidden=8, depth=1)
    torch.nn.init.normal_(posterior.network.head.weight)
    return posterior


@pytest.fixture
def paths(network_prior, generator):
    """Five random paths, the prior's estimates and measurements, each row its own."""
    states = torch.randn(5, 7, 3, generator=generator)
    return states, denoise_path(network_prior, states), torch.randn(5, 2, generator=generator)


@pytest.mark.parametrize(("batch", "steps", "max_rows"), [(5, 6, 4), (5, 6, 30), (5, 6, 1), (1, 1, 100), (3, 7, 20)])
def test_chunks_cover_every_pair_once_and_respect_the_bound(batch, steps, max_rows):
    chunks = list(stacked_transitions(batch, steps, max_rows))
    assert all(1 <= len(row) == len(step) <= max_rows for row, step in chunks)
    sizes = [len(row) for row, _ in chunks]
    assert len(sizes) == math.ceil(batch * steps / max_rows) and max(sizes) - min(sizes) <= 1
    pairs = [pair for row, step in chunks for pair in zip(row.tolist(), step.tolist(), strict=True)]
    assert pairs == [(row, step) for row in range(batch) for step in range(steps)]


def test_stacked_scores_are_those_of_a_loop_over_trajectories_and_steps(network_prior, scorer, paths):
    states, denoised, measurement = paths
    log_prior = path_log_prior(network_prior, states, denoised)
    ratio = path_log_ratio(scorer, states, denoised, measurement)
    assert denoised.shape == (5, 6, 3)
    assert log_prior.shape == ratio.shape == (5, 6)
    for row in range(5):
        for step in range(6):
            here, there, index = states[row, step][None], states[row, step + 1][None], torch.tensor([step])
            estimate = network_prior.denoised(here, index)
            expected = network_prior.log_prob(there, here, index, estimate)
            assert denoised[row, step].tolist() == pytest.approx(estimate[0].tolist(), abs=1e-5)
            assert float(log_prior[row, step]) == pytest.approx(float(expected), rel=1e-4, abs=1e-4)
            expected = scorer.log_ratio(there, here, index, estimate, measurement[row][None]).detach()
            assert float(ratio[row, step]) == pytest.approx(float(expected), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("max_rows", [1, 7, 29])
def test_the_chunk_size_bounds_memory_and_not_results(network_prior, scorer, paths, max_rows):
    states, denoised, measurement = paths
    assert torch.allclose(denoise_path(network_prior, states, max_rows), denoised, atol=1e-5)
    whole = path_log_prior(network_prior, states, denoised)
    assert torch.allclose(path_log_prior(network_prior, states, denoised, max_rows), whole, rtol=1e-5, atol=1e-5)
    whole = path_log_ratio(scorer, states, denoised, measurement)
    assert torch.allclose(path_log_ratio(scorer, states, denoised, measurement, max_rows), whole, atol=1e-4)


@pytest.mark.parametrize("max_rows", [4, 30])
def test_the_guidance_of_paths_is_that_of_a_loop_at_each_path_s_own_measurement(network_prior, paths, max_rows):
    states, denoised, measurement = paths
    target = torch.cat([measurement, measurement[:, :1]], dim=1)

    def gradient(value, target):
        return target - value

    def guide(state, step, target):
        return network_prior.pull_back(state, step, lambda value: gradient(value, target))

    guidance = guide_path(guide, states, target, max_rows)
    assert guidance.shape == denoised.shape and not guidance.requires_grad
    for step in range(6):
        index, leaf = torch.full((5,), step), states[:, step].clone().requires_grad_(True)
        estimate = network_prior.denoiser(leaf, network_prior.alpha[index], network_prior.sigma[index])
        (expected,) = torch.autograd.grad(-0.5 * (target - estimate).square().sum(), leaf)
        assert guidance[:, step].numpy() == pytest.approx(expected.numpy(), abs=1e-4)


def test_scores_carry_no_graph(network_prior, scorer, paths):
    states, denoised, measurement = paths
    states = states.clone().requires_grad_(True)
    scores = (
        denoise_path(network_prior, states),
        path_log_prior(network_prior, states, denoised),
        path_log_ratio(scorer, states, denoised, measurement),
    )
    assert not any(score.requires_grad for score in scores)


def test_each_trajectory_is_scored_with_its_own_measurement(scorer, paths):
    states, denoised, measurement = paths
    ratio = path_log_ratio(scorer, states, denoised, measurement)
    changed = measurement.clone()
    changed[2] += 1
    difference = (path_log_ratio(scorer, states, denoised, changed) - ratio).abs().amax(1)
    assert (difference > 1e-4).tolist() == [False, False, True, False, False]
