r"""The inverse problem as a batched gymnasium environment: a step is a denoising transition, the action the control u.

    s_k+1 = m_k(s_k) + std_k (u_k + xi_k),   xi_k ~ N(0, I),   k = 0..T-1,   x = s_T.

Reward "likelihood": log p(y | x) at the end, 0 before. Reward "likelihood-kl": also -|u_k|^2 / 2 at every step, and
then the expected return J of any policy, random or not, is an evidence lower bound. Proof: let q be the law of states
and controls under the policy, r the law with the same policy but transitions that ignore it, s_k+1 = m_k + std_k xi_k.

    E_q[log q - log r] = sum_k E_q[(u_k + xi_k) . u_k - |u_k|^2 / 2] = sum_k E_q |u_k|^2 / 2,   so that
    J = E_q[log p(y | x) + log r - log q] <= log E_q[p(y | x) r / q] = log E_r[p(y | x)] = log Z   (Jensen),

because x is a draw of the prior under r. Equality holds where q is the posterior of the path; as the policy cannot
change the variance of a transition, that is approached as T grows. (Control with this cost: Kappen 2005, arXiv
physics/0411119.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from diffusion.registry import nearest
from envs.problem import InverseProblem
from envs.registry import make_problem

__all__ = ["REWARDS", "DenoisingVectorEnv", "Observation", "checked_control"]

REWARDS = ("likelihood", "likelihood-kl")
AUTORESET_MODES = (AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED)

Observation = dict[str, np.ndarray]


class DenoisingVectorEnv(VectorEnv[Observation, np.ndarray, np.ndarray]):
    """B chains of one problem, stepped together with one call of the prior per step; torch inside, numpy outside.

    Observation: `state` s_k [B, *D], `step` k / T [B, 1] and `measurement` y [B, *Y], all float32. Action: u [B, *D].
    Info: `denoised` [B, *D], the prior's estimate of x (x itself at the end), `measurement_id` [B], and at the end
    `log_likelihood` [B], nats. `reset(seed=...)` seeds one stream that all noise comes from, in the order of
    `actors.rollout.rollout`: the same seed gives the same noise.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        problem: str | InverseProblem,
        num_envs: int = 1,
        *,
        reward: str = "likelihood-kl",
        measurement_id: int | None = None,
        control_bound: float = 10.0,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **problem_options: object,
    ) -> None:
        """`num_envs` chains of `problem`, an object or a registered name with `problem_options`.

        `measurement_id` fixes the measurement; None draws one for every chain at each reset, uniformly.
        `control_bound` is the half-width of the action space. Algorithms want it finite and clip or scale by it; the
        environment takes any finite control, so that the bound is never part of the mathematics.
        All chains end together. Mode "NextStep", gymnasium's default: the step after the end ignores its action and
        starts again, with reward 0. "Disabled": `reset` must be called.
        """
        if isinstance(problem, str):
            problem = make_problem(problem, problem_options)
        elif problem_options:
            raise ValueError(f"options go with the name of a problem, got an object and {sorted(problem_options)}")
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        if reward not in REWARDS:
            raise ValueError(f"unknown reward {reward!r}; {nearest(reward, REWARDS)}")
        if measurement_id is not None and not 0 <= measurement_id < len(problem.measurements):
            raise ValueError(f"measurement_id must be within 0..{len(problem.measurements) - 1}, got {measurement_id}")
        if not 0 < control_bound < float("inf"):
            raise ValueError(f"control_bound must be positive and finite, got {control_bound}")
        mode = AutoresetMode(autoreset_mode)
        if mode not in AUTORESET_MODES:
            raise ValueError(f"autoreset_mode must be one of {[m.value for m in AUTORESET_MODES]}, got {mode.value!r}")
        self.problem = problem
        self.num_envs = num_envs
        self.reward = reward
        self.measurement_id = measurement_id
        self.metadata = {**self.metadata, "autoreset_mode": mode}
        measured = tuple(problem.measurements.shape[1:])
        self.single_observation_space = spaces.Dict(
            {
                "state": spaces.Box(-np.inf, np.inf, problem.event_shape, np.float32),
                "step": spaces.Box(0.0, 1.0, (1,), np.float32),
                "measurement": spaces.Box(-np.inf, np.inf, measured, np.float32),
            }
        )
        self.single_action_space = spaces.Box(-control_bound, control_bound, problem.event_shape, np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generator = torch.Generator(problem.prior.std.device)
        self._generator.seed()
        self._index: int | None = None  # k, None before the first reset
        self._state = self._denoised = self._rows = torch.empty(0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts all chains from the base distribution; with `seed`, the random stream too.

        Raises:
            ValueError: `options` has a `reset_mask` that leaves chains out; they all end together.
        """
        if options and not np.all(options.get("reset_mask", True)):
            raise ValueError(f"all {self.num_envs} chains are reset together, got reset_mask {options['reset_mask']}")
        super().reset(seed=seed)
        if seed is not None:
            self._generator.manual_seed(seed)
        # Measurements come from numpy's stream: the torch stream is then that of a rollout with the same seed.
        chosen = self.measurement_id
        count = len(self.problem.measurements)
        rows = self.np_random.integers(count, size=self.num_envs) if chosen is None else [chosen] * self.num_envs
        self._rows = torch.as_tensor(rows, dtype=torch.int64, device=self._generator.device)
        self._index = 0
        self._state = self.problem.prior.sample_base(self.num_envs, self._generator)
        return self._observe()

    @torch.no_grad()
    def step(self, actions: np.ndarray) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One transition of every chain under the controls `actions` [B, *D].

        Raises:
            ValueError: `actions` has the wrong shape, or values that are not finite numbers.
            RuntimeError: called before `reset`, or after the end where autoreset is disabled.
        """
        prior, never = self.problem.prior, np.zeros(self.num_envs, dtype=bool)
        if self._index is None:
            raise RuntimeError("call reset before the first step")
        if self._index == prior.num_steps:
            if self.metadata["autoreset_mode"] is AutoresetMode.DISABLED:
                raise RuntimeError(f"all chains ended after {prior.num_steps} steps; call reset")
            observation, info = self.reset()
            return observation, np.zeros(self.num_envs), never, never.copy(), info
        control = torch.from_numpy(checked_control(actions, tuple(self._state.shape))).to(self._state)
        noise = torch.randn(
            control.shape, generator=self._generator, dtype=self._state.dtype, device=self._state.device
        )
        mean = prior.mean(self._state, self._step(), self._denoised)
        self._state = mean + float(prior.std[self._index]) * (control + noise)
        self._index += 1
        reward = torch.zeros(self.num_envs, dtype=torch.float64, device=control.device)
        if self.reward == "likelihood-kl":
            reward -= 0.5 * control.double().flatten(1).square().sum(1)
        observation, info = self._observe()
        ended = self._index == prior.num_steps
        if ended:
            log_likelihood = self.problem.log_likelihood(self._state, self._rows)
            info["log_likelihood"], info["_log_likelihood"] = _numpy(log_likelihood), ~never
            reward += log_likelihood
        return observation, _numpy(reward), np.full(self.num_envs, ended), never, info

    def _step(self) -> Tensor:
        """[B] the index k."""
        return torch.full((self.num_envs,), self._index or 0, device=self._state.device)

    def _observe(self) -> tuple[Observation, dict[str, Any]]:
        """Observation and info of the present state; the prior is called here, once, for the next transition too."""
        index, steps = self._index or 0, self.problem.num_steps
        self._denoised = self.problem.prior.denoised(self._state, self._step()) if index < steps else self._state
        observation = {
            "state": _numpy(self._state),
            "step": np.full((self.num_envs, 1), index / steps, dtype=np.float32),
            "measurement": _numpy(self.problem.measurements[self._rows].float()),
        }
        info = {"denoised": _numpy(self._denoised), "measurement_id": _numpy(self._rows)}
        # A mask beside every entry says which chains have it: gymnasium's convention for batched infos.
        return observation, info | {f"_{key}": np.ones(self.num_envs, dtype=bool) for key in info}


def checked_control(control: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`control` as finite float32 of `shape`.

    Raises:
        ValueError: it is not.
    """
    try:
        values = np.asarray(control, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the action must be a control of shape {shape}, got {control!r}") from error
    if values.shape != shape:
        raise ValueError(f"the action must be a control of shape {shape}, got shape {values.shape}")
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise ValueError(f"the action must be finite, got {count} NaN or infinite of {values.size} values")
    return values


def _numpy(value: Tensor) -> np.ndarray:
    """A copy: what a caller does to an observation must not reach the chain."""
    return value.cpu().numpy().copy()
