"""The actor: holds a copy of the posterior and turns it into trajectories, one kind of exploration a batch."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from actors.annealed_measurement import AnnealedMeasurement, AnnealedMeasurementConfig
from actors.backtracking import Backtracking, BacktrackingConfig
from actors.exploration import Exploration, FromStored, SeesPosterior, Starts, Stateful
from actors.guidance import DiffusionPosteriorSampling, GuidanceConfig, GuidedProposal, PseudoinverseGuidance
from actors.joint_simulation import JointSimulation
from actors.langevin import Langevin, LangevinConfig
from actors.noise_inflated import NoiseInflated
from actors.on_policy import OnPolicy
from actors.path_searcher import PathSearchConfig, path_searcher
from actors.prior_rollout import PriorRollout
from actors.rollout import Rollout
from actors.simulated import explore_from_stored, explore_simulated
from actors.teacher import Teacher, TeacherConfig
from diffusion.posterior import Posterior
from diffusion.trajectory import Origin, Trajectory
from envs.problem import InverseProblem

__all__ = ["EXPLORATIONS", "Actor", "ActorConfig"]

COUNTER_BITS, RESTART_BITS = 36, 12  # the rest of a 63-bit uid is the actor's index
MAX_ACTORS = 2 ** (63 - COUNTER_BITS - RESTART_BITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorConfig:
    """How trajectories are made."""

    batch_size: int = 64
    """Trajectories a rollout."""
    simulated_measurements: int = 0
    """Measurements drawn by simulation for every rollout, with batch_size / this many trajectories of each, one of them
    exact; 0: trajectories are of the problem's own measurements."""
    mixture: dict[str, float] = field(default_factory=lambda: {"on-policy": 0.8, "noise-inflated": 0.1, "prior": 0.1})
    """Share of every kind of exploration at the start of the run."""
    final_mixture: dict[str, float] = field(
        default_factory=lambda: {"on-policy": 1.0, "noise-inflated": 0.0, "prior": 0.0}
    )
    """Shares at the end of the run; in between they change linearly."""
    noise_inflation: float = 1.3
    """Factor on the noise of noise-inflated rollouts at the start of the run; it falls to 1."""
    path_search: PathSearchConfig = field(default_factory=PathSearchConfig)
    """Exact search in path space."""
    backtracking: BacktrackingConfig = field(default_factory=BacktrackingConfig)
    """Stored samples noised and denoised again."""
    langevin: LangevinConfig = field(default_factory=LangevinConfig)
    """Stored samples moved along the likelihood's gradient."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """A second sampler that goes where the posterior errs."""
    likelihood_timeout_seconds: float | None = 600.0
    """Time that one call of the likelihood may take, in evaluations too; null for none. A local run then ends with a
    message; on Ray the actor is replaced (and its limit is half of `ray.timeout_seconds` at most)."""
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    """Training-free guidance as behaviour."""
    annealed_measurement: AnnealedMeasurementConfig = field(default_factory=AnnealedMeasurementConfig)
    """The posterior shown a noisy measurement early in the chain."""
    weights: Literal["latest", "averaged"] = "latest"
    """Of the posterior that they roll out: the newest, or their running average (learner.ema_decay), which is steadier
    and a little behind."""
    store_denoised: bool = True
    """Send the prior's denoised estimates and the guidance along: more bytes, and the learner never runs the prior."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"actor.batch_size must be at least 1, got {self.batch_size}")
        population = self.path_search.population
        if population is not None and (population < self.batch_size or population % self.batch_size):
            raise ValueError(
                f"actor.path_search.population must be a multiple of actor.batch_size = {self.batch_size}, "
                f"got {population}"
            )
        if self.batch_size < 2 and "path-search" in self.kinds:
            raise ValueError(
                f"actor.batch_size must be at least 2 for path-search, whose population it is, got {self.batch_size}"
            )
        self._check_simulated_measurements()
        if not self.noise_inflation >= 1:
            raise ValueError(f"actor.noise_inflation must be at least 1, got {self.noise_inflation}")
        if self.likelihood_timeout_seconds is not None and not self.likelihood_timeout_seconds > 0:
            raise ValueError(
                f"actor.likelihood_timeout_seconds must be positive or null, got {self.likelihood_timeout_seconds}"
            )
        for name in ("mixture", "final_mixture"):
            shares: dict[str, float] = getattr(self, name)
            unknown = set(shares) - set(EXPLORATIONS)
            if unknown:
                raise ValueError(f"actor.{name} may hold {', '.join(EXPLORATIONS)}, got {', '.join(sorted(unknown))}")
            if any(not share >= 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
                raise ValueError(f"the shares of actor.{name} must be non-negative and sum to 1, got {shares}")

    def _check_simulated_measurements(self) -> None:
        number, size = self.simulated_measurements, self.batch_size
        if number < 0 or (number and (size % number or size < 2 * number)):
            raise ValueError(
                "actor.simulated_measurements must be 0, or divide actor.batch_size into two or more trajectories of "
                f"each, got {number} and {size}"
            )
        starts = {"path-search": self.path_search.start_by, "teacher": None}
        starts |= {"backtracking": self.backtracking.start_by, "langevin": self.langevin.start_by}
        unfit = [name for name in self.kinds if starts.get(name, "age") != "age"]
        if number and unfit:
            raise ValueError(
                f"{unfit[0]} goes by many trajectories of one measurement, of which simulated ones have a few: set "
                f"actor.simulated_measurements to 0, or the start_by of {unfit[0]} to age if it has one, got {number}"
            )

    def shares(self, progress: float) -> dict[str, float]:
        """Share of every kind at `progress` (0 to 1) of the run."""
        return {
            name: (1 - progress) * self.mixture.get(name, 0.0) + progress * self.final_mixture.get(name, 0.0)
            for name in EXPLORATIONS
        }

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that have a share at some time."""
        return tuple(name for name in EXPLORATIONS if self.mixture.get(name, 0) or self.final_mixture.get(name, 0))


Factory = Callable[[ActorConfig, InverseProblem], Exploration | FromStored]
"""Makes a kind of exploration; a ValueError says why this problem does not allow it."""

EXPLORATIONS: dict[str, Factory] = {
    "on-policy": lambda config, problem: OnPolicy(),
    "noise-inflated": lambda config, problem: NoiseInflated(config.noise_inflation),
    "prior": lambda config, problem: PriorRollout(),
    "path-search": lambda config, problem: path_searcher(config.path_search),
    "backtracking": lambda config, problem: Backtracking(config.backtracking, problem.num_steps),
    "langevin": lambda config, problem: Langevin(config.langevin, problem),
    "teacher": lambda config, problem: Teacher(config.teacher, problem),
    "dps": lambda config, problem: GuidedProposal(DiffusionPosteriorSampling(problem, config.guidance.scale)),
    "dps-cla": lambda config, problem: GuidedProposal(
        DiffusionPosteriorSampling(problem, config.guidance.scale, noised=True)
    ),
    "pigdm": lambda config, problem: GuidedProposal(PseudoinverseGuidance(problem)),
    "joint": lambda config, problem: JointSimulation(problem, guided=config.store_denoised),
    "annealed-measurement": lambda config, problem: AnnealedMeasurement(config.annealed_measurement, problem),
}


class Actor:
    """Makes trajectories.

        actor = Actor(problem, posterior, ActorConfig(), seed=0)
        actor.load_weights(learner.weights(), version=learner.updates, progress=0.1)
        trajectory = actor.act()

    Its random stream follows from (seed, index, restarts): a restarted actor does not repeat old noise.
    """

    def __init__(
        self,
        problem: InverseProblem,
        posterior: Posterior,
        config: ActorConfig,
        *,
        seed: int,
        index: int = 0,
        restarts: int = 0,
    ) -> None:
        self.problem = problem
        self.posterior = posterior.requires_grad_(False).to(problem.device)
        self.config = config
        self.version = 0
        self.progress = 0.0
        if not 0 <= index < MAX_ACTORS:
            raise ValueError(f"an actor's index must be within 0..{MAX_ACTORS - 1}, got {index}")
        self._uid_base = ((index << RESTART_BITS) + restarts) << COUNTER_BITS
        self._made = 0
        self._batches = dict.fromkeys(EXPLORATIONS, 0.0)
        self._wanted = dict.fromkeys(EXPLORATIONS, 0.0)
        self._counters: defaultdict[str, float] = defaultdict(float)
        with problem.placement():
            self._explorations = {name: EXPLORATIONS[name](config, problem) for name in config.kinds}
            for exploration in self._explorations.values():
                if isinstance(exploration, SeesPosterior):
                    exploration.prepare(self.posterior)
        # Items of one replay have the same fields, so if one kind brings measurements the others send theirs along.
        self._simulation: JointSimulation | None = None
        if config.simulated_measurements:
            self._simulation = JointSimulation(problem)
            self._simulation.prepare(posterior)
        joint = any(isinstance(kind, JointSimulation) for kind in self._explorations.values())
        self._send_measurement = joint or self._simulation is not None
        entropy = np.random.SeedSequence((seed, index, restarts)).generate_state(1, np.uint64)
        self.generator = problem.generator(int(entropy[0]) & (2**63 - 1))

    def load_weights(self, weights: NDArray[np.float32], version: int, progress: float) -> None:
        """Takes the flat parameter vector of `version`; `progress` (0 to 1) drives the exploration schedule."""
        vector = torch.from_numpy(np.array(weights)).to(self.problem.device)
        expected = sum(parameter.numel() for parameter in self.posterior.parameters())
        if len(vector) != expected:
            raise ValueError(f"the posterior has {expected} parameters, got a vector of {len(vector)}")
        nn.utils.vector_to_parameters(vector, self.posterior.parameters())
        self.version, self.progress = version, progress

    def act(self, starts: Starts | None = None) -> Trajectory:
        """One batch of trajectories of the kind that is furthest behind its share.

        Kinds that go on from stored trajectories get them from `starts`; while it has none they wait, and the turn
        is an on-policy one.
        """
        with self.problem.placement():
            return self._act(starts)

    def _act(self, starts: Starts | None) -> Trajectory:
        for name, share in self.config.shares(self.progress).items():
            self._wanted[name] += share
        name = max(EXPLORATIONS, key=lambda kind: self._wanted[kind] - self._batches[kind])
        self._batches[name] += 1
        exploration: Exploration | FromStored = self._explorations[name]
        count, began = self.config.batch_size, time.perf_counter()
        stored = None
        if isinstance(exploration, FromStored):
            stored = starts(count, exploration.start_by) if starts is not None else None
            if stored is None:
                name, exploration = "on-policy", OnPolicy()
        origin: NDArray[np.uint8] = np.full(count, exploration.origin, dtype=np.uint8)
        if isinstance(exploration, FromStored):
            assert stored is not None
            rollout = explore_from_stored(
                exploration, self.problem, self.posterior, stored, self.progress, self.generator
            )
        elif self._simulation is not None and not isinstance(exploration, JointSimulation):
            number = self.config.simulated_measurements
            rollout = explore_simulated(
                exploration,
                self._simulation,
                self.problem,
                self.posterior,
                number,
                count,
                self.progress,
                self.generator,
            )
            rollout = self._renumbered(rollout)
            origin[:number] = Origin.JOINT
        else:
            measurement_id = torch.randint(len(self.problem.measurements), (count,), generator=self.generator)
            rollout = exploration.explore(self.problem, self.posterior, measurement_id, self.progress, self.generator)
            if isinstance(exploration, JointSimulation):
                rollout = self._renumbered(rollout)
        if self._send_measurement and rollout.measurement is None:
            rollout = dataclasses.replace(rollout, measurement=self.problem.measurements[rollout.measurement_id])
        self._count(name, rollout, time.perf_counter() - began)
        uid = np.arange(self._made, self._made + count, dtype=np.uint64) + np.uint64(self._uid_base)
        self._made += count
        return rollout.trajectory(uid, self.version, origin, keep_denoised=self.config.store_denoised)

    def _renumbered(self, rollout: Rollout) -> Rollout:
        """Measurements -1, -2, ... that were simulated for `rollout` get numbers that no other rollout has."""
        return dataclasses.replace(rollout, measurement_id=rollout.measurement_id - self._uid_base - self._made)

    def _count(self, name: str, rollout: Rollout, seconds: float) -> None:
        finite = rollout.log_likelihood[torch.isfinite(rollout.log_likelihood)]
        invalid = ~(rollout.log_likelihood < torch.inf)  # NaN or +inf; a likelihood of zero is a number
        counts: dict[str, float] = {"trajectories": len(rollout.states), "seconds": seconds}
        counts |= {"invalid": int(invalid.sum()), "finite": len(finite), "log_likelihood": float(finite.double().sum())}
        if rollout.acceptance is not None:
            counts |= {"proposals": 1, "accepted": rollout.acceptance}
        for key, value in counts.items():
            self._counters[f"{name}/{key}"] += value

    def take_counters(self) -> dict[str, float]:
        """What every kind has made since this was last asked, as sums: see `system.runner.exploration_metrics`."""
        counters, self._counters = dict(self._counters), defaultdict(float)
        return counters

    def state_dict(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """(arrays, scalars) that `load_state_dict` restores: the random stream and the counters, not the weights."""
        arrays = {"generator": self.generator.get_state().numpy()}
        scalars: dict[str, Any] = {"made": self._made, "batches": dict(self._batches), "wanted": dict(self._wanted)}
        for name, exploration in self._explorations.items():
            if isinstance(exploration, Stateful):
                own, scalars[name] = exploration.state_dict()
                arrays |= {f"{name}.{key}": value for key, value in own.items()}
        return arrays, scalars

    def load_state_dict(self, arrays: dict[str, NDArray[Any]], scalars: dict[str, Any]) -> None:
        """Restores `state_dict`."""
        self.generator.set_state(torch.from_numpy(np.array(arrays["generator"])))
        self._made = int(scalars["made"])
        self._batches.update(scalars["batches"])
        self._wanted.update(scalars["wanted"])
        for name, exploration in self._explorations.items():
            if isinstance(exploration, Stateful) and name in scalars:
                own = {
                    key.removeprefix(f"{name}."): value for key, value in arrays.items() if key.startswith(f"{name}.")
                }
                with self.problem.placement():
                    exploration.load_state_dict(self.problem, own, scalars[name], self.generator)
