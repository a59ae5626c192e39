r"""A public RL library finds the posterior: PPO of stable-baselines3, unmodified, on `rtb/gaussian-linear`.

With reward "likelihood-kl" the expected return of a policy is an evidence lower bound, so the exact log Z is a ceiling
that no run can pierce. Held at the prior's variance, the best control is that of the exact posterior transitions, and

    best return = log Z - 1/2 sum_k [tr(std_k^2 L_k+1) - log det(I + std_k^2 L_k+1)],

L_k+1 being the precision of the backward message (`envs.exact.chain`): a linear-quadratic control problem has the same
Riccati recursion as the posterior, and differs from it only in that constant. The gap falls as 1 / T.

    python examples/ppo_gaussian_linear.py [--steps 300000] [--figure docs/figures/ppo_gaussian_linear.png]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import matplotlib
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from envs import DenoisingVectorEnv, InverseProblem
from envs.exact.chain import ChainPosterior

OPTIONS = {"dim": 2, "measurement_dim": 2, "num_steps": 10, "seed": 2}
Policy = Callable[[dict[str, np.ndarray]], np.ndarray]


class Chains(VecEnv):
    """Stable-baselines3's own interface to batched environments, over one of gymnasium's."""

    def __init__(self, num_envs: int) -> None:
        env = gymnasium.make_vec("rtb/gaussian-linear", num_envs=num_envs, autoreset_mode="Disabled", **OPTIONS)
        assert isinstance(env, DenoisingVectorEnv)
        self.env = env
        super().__init__(num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> dict[str, np.ndarray]:  # noqa: D102
        return self.env.reset(seed=self._seeds[0])[0]

    def step_async(self, actions: np.ndarray) -> None:  # noqa: D102
        self._actions = actions

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:  # noqa: D102
        observation, reward, ended, _, _ = self.env.step(self._actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if ended.all():  # this interface restarts in the same step and keeps the last observation aside
            for row, info in enumerate(infos):
                info["terminal_observation"] = {key: value[row] for key, value in observation.items()}
            observation, _ = self.env.reset()
        return observation, reward, ended, infos

    def close(self) -> None:  # noqa: D102
        self.env.close()

    def get_attr(self, attr_name: str, indices: object = None) -> list[Any]:  # noqa: D102
        return [getattr(self.env, attr_name)] * self.num_envs

    def set_attr(self, attr_name: str, value: object, indices: object = None) -> None:  # noqa: D102
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *args: object, indices: object = None, **kwargs: object) -> list[Any]:  # noqa: D102
        return [getattr(self.env, method_name)(*args, **kwargs)]

    def env_is_wrapped(self, wrapper_class: type, indices: object = None) -> list[bool]:  # noqa: D102
        return [False] * self.num_envs


class Curve(BaseCallback):
    """Records the return of the policy's mean action on fresh chains, before training and every `every` steps."""

    def __init__(self, every: int, count: int = 2_000) -> None:
        super().__init__()
        self.every = every
        self.count = count
        self.steps: list[int] = []
        self.returns: list[tuple[float, float]] = []  # mean, standard error

    def record(self) -> None:
        """One more point."""
        model = self.model
        self.steps.append(self.num_timesteps)
        self.returns.append(mean_return(lambda seen: model.predict(seen, deterministic=True)[0], self.count))

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if not self.steps or self.num_timesteps >= self.steps[-1] + self.every:
            self.record()


def mean_return(policy: Policy, count: int, seed: int = 1) -> tuple[float, float]:
    """Mean return of `policy` over `count` chains, and its standard error."""
    env = gymnasium.make_vec("rtb/gaussian-linear", num_envs=count, **OPTIONS)
    observation, _ = env.reset(seed=seed)
    total = np.zeros(count)
    for _ in range(OPTIONS["num_steps"]):
        observation, reward, _, _, _ = env.step(policy(observation))
        total += reward
    return float(total.mean()), float(total.std(ddof=1) / count**0.5)


def best_return(exact: ChainPosterior) -> float:
    """The return of the exact posterior's control; see the module's docstring."""
    scaled = exact.std[:, None, None] ** 2 * exact.precisions
    trace = scaled.diagonal(dim1=1, dim2=2).sum()
    return float(exact.log_partition - 0.5 * trace + exact.half_log_det.sum())


def train(steps: int, *, seed: int = 0, every: int = 10_000) -> tuple[PPO, Curve]:
    """Trains PPO for `steps` transitions."""
    torch.set_num_threads(1)
    chains = VecMonitor(Chains(64))
    model = PPO(
        "MultiInputPolicy",
        chains,
        n_steps=4 * OPTIONS["num_steps"],
        batch_size=1_280,
        learning_rate=lambda left: 3e-3 * left,  # to zero at the end
        gamma=1.0,  # the bound is on the plain sum of rewards
        policy_kwargs={"log_std_init": -1.0},  # exploration costs its variance at every step, like any control
        seed=seed,
        device="cpu",
    )
    curve = Curve(every)
    model.learn(steps, callback=curve)
    curve.record()
    return model, curve


def draw(curve: Curve, problem: InverseProblem, prior: float, path: Path) -> None:
    """The learning curve between the prior's bound and log Z."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    exact = problem.exact[0]
    assert isinstance(exact, ChainPosterior)
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    mean, error = np.array(curve.returns).T
    thousands = np.array(curve.steps) / 1_000
    axes.fill_between(thousands, mean - 2 * error, mean + 2 * error, alpha=0.3, linewidth=0)
    axes.plot(thousands, mean, marker=".", label="PPO, return of the mean action (± 2 standard errors)")
    axes.axhline(exact.log_partition, color="black", label=f"exact log Z = {exact.log_partition:.2f}")
    best = best_return(exact)
    axes.axhline(best, color="black", linestyle="--", linewidth=1, label=f"best control = {best:.2f}")
    axes.axhline(prior, color="grey", linestyle=":", label=f"the prior, u = 0: {prior:.2f}")
    axes.set(xlabel="thousand transitions", ylabel="return [nats]", title="rtb/gaussian-linear, reward likelihood-kl")
    axes.legend(loc="center right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, prints and draws."""
    parser = argparse.ArgumentParser(description="PPO on rtb/gaussian-linear against the exact log Z")
    parser.add_argument("--steps", type=int, default=300_000)
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/ppo_gaussian_linear.png"))
    options = parser.parse_args(arguments)
    _, curve = train(options.steps)
    problem = Chains(1).env.problem
    exact = problem.exact[0]
    assert isinstance(exact, ChainPosterior)
    prior, _ = mean_return(lambda seen: np.zeros_like(seen["state"]), 20_000)
    print("transitions   return ± standard error")
    for steps, (mean, error) in zip(curve.steps, curve.returns, strict=True):
        print(f"{steps:11,d}   {mean:.3f} ± {error:.3f}")
    print(f"prior {prior:.3f}, best control {best_return(exact):.3f}, exact log Z {exact.log_partition:.3f}")
    draw(curve, problem, prior, options.figure)


if __name__ == "__main__":
    main()
