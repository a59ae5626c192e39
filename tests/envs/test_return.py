import gymnasium
import numpy as np
import pytest
import torch

import envs
from actors.rollout import rollout
from envs.environment import DenoisingVectorEnv

SMALL = {"dim": 2, "measurement_dim": 2, "num_steps": 10, "seed": 2}


def roll(env, policy, seed):
    """Returns [B] and the last info of one episode of `policy` (observation, info) -> u."""
    (observation, info), total = env.reset(seed=seed), np.zeros(env.num_envs)
    ended = np.zeros(env.num_envs, dtype=bool)
    while not ended.any():
        observation, reward, ended, truncated, info = env.step(policy(observation, info))
        assert not truncated.any() and ended.all() == ended.any()
        total += reward
    return total, info


def nothing(observation, info):
    return np.zeros_like(observation["state"])


def optimal(env):
    """Mean of the exact posterior's transition minus the prior's, over std, as a policy."""
    prior, exact = env.problem.prior, env.problem.exact[0]

    def policy(observation, info):
        index = round(float(observation["step"][0, 0]) * prior.num_steps)
        step = torch.full((env.num_envs,), index)
        state, denoised = (torch.from_numpy(array).double() for array in (observation["state"], info["denoised"]))
        mean, variance = prior.mean(state, step, denoised), exact.std[index] ** 2
        shifted = (mean / variance + exact.shifts[index]) @ exact.covariances[index]
        return ((shifted - mean) / exact.std[index]).numpy()

    return policy


@pytest.mark.parametrize("name", ["gaussian-linear", "gmm-linear", "digits-half"])
def test_stepping_gives_the_trajectories_of_the_fused_rollout_bit_for_bit(name):
    problem = envs.make_problem(name, {"num_steps": 12})

    def control(state, step, denoised, measurement):
        return 0.3 * torch.tanh(denoised - state) + 0.1 * step[0] / 12 + 0.01 * measurement.flatten(1)[:, :1].mean()

    fused = rollout(problem, control, torch.zeros(5, dtype=torch.int64), generator=torch.Generator().manual_seed(7))
    env = DenoisingVectorEnv(problem, 5)
    states = []

    def policy(observation, info):
        states.append(observation["state"])
        state, denoised, measurement = map(
            torch.from_numpy, (observation["state"], info["denoised"], observation["measurement"])
        )
        assert torch.equal(denoised, fused.denoised[:, len(states) - 1])
        return control(state, torch.full((5,), len(states) - 1), denoised, measurement).numpy()

    total, info = roll(env, policy, seed=7)
    assert torch.equal(torch.from_numpy(np.stack(states, 1)), fused.states[:, :-1])
    assert torch.equal(torch.from_numpy(info["denoised"]), fused.states[:, -1])
    assert torch.equal(torch.from_numpy(info["log_likelihood"]), fused.log_likelihood)
    # The cost |u|^2 / 2 is the log-ratio z . u - |u|^2 / 2 less a martingale: equal only in expectation.
    assert (total < fused.log_likelihood.numpy()).all()


def test_reward_likelihood_is_the_log_likelihood_at_the_end_and_nothing_before():
    env = gymnasium.make_vec("rtb/gaussian-linear", num_envs=2, reward="likelihood", **SMALL)
    env.reset(seed=0)
    rewards = []
    for _ in range(10):
        *_, info = outcome = env.step(np.full((2, 2), 0.5))
        rewards.append(outcome[1])
    assert (np.array(rewards[:-1]) == 0).all() and rewards[-1] == pytest.approx(info["log_likelihood"])


def test_return_without_control_is_the_priors_expected_log_likelihood():
    env = DenoisingVectorEnv("gaussian-linear", 20_000, **SMALL)
    total, _ = roll(env, nothing, seed=0)
    exact, prior, likelihood = env.problem.exact[0], env.problem.prior, env.problem.likelihood
    mean, covariance = (
        torch.zeros(2, dtype=torch.float64),
        torch.eye(2, dtype=torch.float64) * float(prior.sigma[0]) ** 2,
    )
    for step in range(10):  # moments of x under the prior's chain
        transition = exact.transitions[step]
        mean = transition @ mean + exact.offsets[step]
        covariance = transition @ covariance @ transition.T + exact.std[step] ** 2 * torch.eye(2)
    matrix, noise = likelihood.operator.matrix, likelihood.noise_std
    expected = likelihood.log_prob(mean[None], env.problem.measurements)
    expected = float(expected - 0.5 * torch.trace(matrix @ covariance @ matrix.T) / noise**2)
    assert expected == pytest.approx(-8.59, abs=0.01)
    assert total.mean() == pytest.approx(expected, abs=4 * total.std() / len(total) ** 0.5)


@pytest.mark.parametrize("options", [SMALL, {"num_steps": 20}, {}])
def test_return_of_the_exact_posteriors_control_is_close_below_log_z_and_no_other_control_has_more(options):
    env = DenoisingVectorEnv("gaussian-linear", 4_000, **options)
    exact, policy = env.problem.exact[0], optimal(env)
    total, _ = roll(env, policy, seed=0)
    error = total.std() / len(total) ** 0.5
    # Linear-quadratic control: log Z - 1/2 sum_k [tr(std^2 L) - log det(I + std^2 L)], see the example's docstring.
    scaled = exact.std[:, None, None] ** 2 * exact.precisions
    best = exact.log_partition - float(0.5 * scaled.diagonal(dim1=1, dim2=2).sum() - exact.half_log_det.sum())
    assert total.mean() == pytest.approx(best, abs=4 * error)
    assert exact.log_partition - 0.4 < best < exact.log_partition
    assert total.mean() < exact.log_partition + 3 * error
    for factor in (0.8, 1.2):
        worse, _ = roll(env, lambda seen, info, factor=factor: factor * policy(seen, info), seed=0)
        assert worse.mean() < total.mean() - 2 * (total - worse).std() / len(total) ** 0.5
