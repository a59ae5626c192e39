"""The inverse problem as a gymnasium environment of one chain, and every problem's entry in gymnasium's registry.

    gymnasium.make("rtb/gaussian-linear", dim=2)                       -> DenoisingEnv, one chain
    gymnasium.make_vec("rtb/gaussian-linear", num_envs=64, dim=2)      -> DenoisingVectorEnv, 64 chains in one batch

Dynamics, observation, rewards and the bound on the return: `envs.vector_environment`.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from envs.problem import InverseProblem
from envs.vector_environment import DenoisingVectorEnv, Observation, checked_control

__all__ = ["NAMESPACE", "DenoisingEnv", "DenoisingVectorEnv", "register_environment"]

NAMESPACE = "rtb"


class DenoisingEnv(gymnasium.Env[Observation, np.ndarray]):
    """One chain: `DenoisingVectorEnv` without the batch axis, for libraries that batch environments themselves."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        problem: str | InverseProblem,
        *,
        reward: str = "likelihood-kl",
        measurement_id: int | None = None,
        control_bound: float = 10.0,
        render_mode: str | None = None,
        **problem_options: object,
    ) -> None:
        """See `DenoisingVectorEnv`. Nothing is rendered; `render_mode` must be None."""
        if render_mode is not None:
            # A TypeError with these words, as callers that try a render mode first fall back on exactly that.
            raise TypeError(f"got an unexpected keyword argument 'render_mode' = {render_mode!r}; nothing is rendered")
        self.chains = DenoisingVectorEnv(
            problem,
            num_envs=1,
            reward=reward,
            measurement_id=measurement_id,
            control_bound=control_bound,
            autoreset_mode=AutoresetMode.DISABLED,
            **problem_options,
        )
        self.problem = self.chains.problem
        self.observation_space = self.chains.single_observation_space
        self.action_space = self.chains.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts the chain from the base distribution; with `seed`, the random stream too."""
        super().reset(seed=seed)
        observation, info = self.chains.reset(seed=seed)
        return _first(observation), _first(info)

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One transition under the control `action` [*D]; see `DenoisingVectorEnv.step`."""
        control = checked_control(action, self.problem.event_shape)
        observation, reward, terminated, _, info = self.chains.step(control[None])
        return _first(observation), float(reward[0]), bool(terminated[0]), False, _first(info)


def register_environment(name: str) -> None:
    """Makes the problem called `name` known to gymnasium, as "rtb/<name>"; a second time changes nothing."""
    identity = f"{NAMESPACE}/{name}"
    if identity not in gymnasium.registry:
        gymnasium.register(
            identity,
            entry_point="envs.environment:DenoisingEnv",
            vector_entry_point="envs.environment:DenoisingVectorEnv",
            kwargs={"problem": name},
        )


def _first(batch: dict[str, Any]) -> dict[str, Any]:
    """The first chain of a batched observation or info, without the masks of the latter."""
    return {key: value[0] for key, value in batch.items() if not key.startswith("_")}
