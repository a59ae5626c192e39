"""Configuration of a run: nested frozen dataclasses, whose sections and whole refuse values that do not go together.

Read from a file and the command line by `system.config_file`. The resolved configuration is written into the run's
directory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import yaml

from actors import ActorConfig
from diffusion.posterior import PosteriorConfig
from learner import LearnerConfig
from system.replay.config import ReplayConfig

__all__ = [
    "CheckpointConfig",
    "EvaluationConfig",
    "ProblemConfig",
    "RayConfig",
    "RunConfig",
    "config_yaml",
    "require",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemConfig:
    """Which inverse problem."""

    name: str = "digits-half"
    """Registered name; `rtb problems` lists them."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the problem's factory; in YAML and on the command line they stand beside the name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """What is measured while training, and at its end."""

    interval_seconds: float = 10.0
    """Time between evaluations while training."""
    trajectories: int = 512
    """Trajectories of an evaluation while training."""
    final_trajectories: int = 4096
    """Trajectories of the last evaluation."""
    corrected: int = 256
    """Samples that the last evaluation corrects, at most as many as its trajectories: drawn among them by importance
    weight, and moved by a Markov chain that leaves the posterior as it is, at the cost of about four rollouts each; 0:
    none."""
    per_measurement: int = 64
    """Trajectories of each measurement in the last evaluation, where there are several."""
    calibration_pairs: int = 0
    """Simulated pairs (x, y) that the last evaluation tests the calibration with, for a posterior of any y; 0: none."""
    calibration_trajectories: int = 32
    """Trajectories of each of these y."""

    def __post_init__(self) -> None:
        least = {
            "interval_seconds": 0,
            "trajectories": 2,
            "final_trajectories": 2,
            "corrected": 0,
            "per_measurement": 2,
        }
        require(self, "evaluation", at_least=least | {"calibration_pairs": 0, "calibration_trajectories": 1})
        if self.corrected == 1:
            raise ValueError("evaluation.corrected must be 0 or at least 2, got 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """When the run is saved."""

    interval_seconds: float = 60.0
    """Time between checkpoints."""
    keep: int = 2
    """How many are kept."""

    def __post_init__(self) -> None:
        require(self, "checkpoint", at_least={"interval_seconds": 0, "keep": 1})


@dataclass(frozen=True, slots=True, kw_only=True)
class RayConfig:
    """The distributed runner."""

    address: str | None = None
    """Address of a running cluster; null starts Ray on this machine. `--cluster ADDRESS` sets it."""
    num_actors: int = 2
    """Rollout actors."""
    num_shards: int = 1
    """Replay shards."""
    num_learners: int = 1
    """Learner ranks: each learns from a part of every batch, and all take the same step."""
    shard_weights: bool = False
    """Each learner rank keeps a part of the network's weights, gradients and moments, and gathers a block's when it
    runs (FSDP2): for a network that is too large for one GPU. All ranks have to be there for every pass."""
    cpus_per_actor: float = 1.0
    """CPUs that Ray reserves for an actor."""
    gpus_per_actor: float = 0.0
    """GPUs that Ray reserves for an actor; with a fraction, as 0.25, several share one."""
    cpus_per_learner: float = 1.0
    """CPUs that Ray reserves for a learner rank."""
    gpus_per_learner: float = 0.0
    """GPUs that Ray reserves for a learner rank."""
    publish_interval: int = 5
    """Updates between two versions of the weights."""
    prefetch: int = 2
    """Batches under way to the learner."""
    slice_seconds: float = 2.0
    """How long a worker works between two reports to the driver."""
    timeout_seconds: float = 60.0
    """How long a worker may stay silent before it is taken for hung and replaced."""
    start_timeout_seconds: float = 180.0
    """How long the start of all processes may take."""
    max_restarts: int = 20
    """Restarts of one actor before the run goes on without it."""

    def __post_init__(self) -> None:
        counts = ("num_actors", "num_shards", "num_learners", "publish_interval", "prefetch")
        amounts = ("cpus_per_actor", "gpus_per_actor", "cpus_per_learner", "gpus_per_learner", "max_restarts")
        require(self, "ray", at_least=dict.fromkeys(counts, 1) | dict.fromkeys(amounts, 0))
        require(self, "ray", above=dict.fromkeys(("slice_seconds", "timeout_seconds", "start_timeout_seconds"), 0))
        if self.shard_weights and self.num_learners == 1:
            raise ValueError("ray.shard_weights shares the network out to several ranks: ray.num_learners is 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """A run."""

    PROGRAM: ClassVar = "rtb train CONFIG"
    PLACE: ClassVar = "configs/experiments/"

    name: str = "run"
    """Name of the run's directory under `runs/`."""
    runner: Literal["local", "ray"] = "local"
    """local (one process, reproducible bit for bit) or ray (actors, shards and learner in processes)."""
    seed: int = 0
    """Seed of every random stream."""
    device: str = "auto"
    """Where networks run: cpu, a device of torch as cuda or cuda:1, or auto, which is cuda in every process that has a
    GPU. On Ray a process has those that are reserved for it (ray.gpus_per_learner, ray.gpus_per_actor)."""
    updates: int = 2_000
    """Optimiser steps; schedules run over them."""
    max_seconds: float | None = None
    """Training time after which the run ends early; schedules then follow whichever is further on. Evaluations come on
    top, and the update that is under way is finished."""
    clock: Literal["wall", "cpu"] = "wall"
    """What max_seconds counts: wall-clock time, or processor time (cpu, of the local runner), which work beside the run
    on a busy machine does not change."""
    max_likelihood_calls: int | None = None
    """x that training may ask the likelihood about, for one that is a slow simulator; density, gradient and simulation
    each count. The run ends with the turn of an actor that spends them (on Ray one turn of each); schedules then follow
    what is furthest on. Evaluations, which go by the clock, are counted apart: about twice `evaluation.trajectories`
    each (chi square asks again; where exact samples are known several times), and at the end `final_trajectories` and
    five times `evaluation.corrected`."""
    plugins: tuple[str, ...] = ()
    """Modules to import first, which register problems of yours."""
    problem: ProblemConfig = field(default_factory=ProblemConfig)
    """The inverse problem."""
    measurement: str | None = None
    """File (.npy, or .npz with one array) of the measurement to train at, in the place of the problem's own."""
    posterior: PosteriorConfig = field(default_factory=PosteriorConfig)
    """The posterior network."""
    init: str | None = None
    """Run of the same problem and posterior, whose averaged weights training starts from; `rtb train --init RUN`
    without a configuration takes that run's, for training at the problem's measurement (see `fine_tuning`)."""
    actor: ActorConfig = field(default_factory=ActorConfig)
    """Exploration."""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    """Replay."""
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    """Objective and optimiser."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Evaluation."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""
    ray: RayConfig = field(default_factory=RayConfig)
    """The distributed runner."""

    def __post_init__(self) -> None:
        if self.updates < 1:
            raise ValueError(f"updates must be at least 1, got {self.updates}")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds must be positive or null, got {self.max_seconds}")
        least = max(self.actor.batch_size, self.replay.min_size)
        if self.max_likelihood_calls is not None and self.max_likelihood_calls < least:
            raise ValueError(
                f"max_likelihood_calls must be null or at least {least}, to make one rollout (actor.batch_size = "
                f"{self.actor.batch_size}) and learn from it (replay.min_size = {self.replay.min_size}), got "
                f"{self.max_likelihood_calls}"
            )
        if self.clock == "cpu" and self.runner != "local":
            raise ValueError(f"clock cpu is the processor time of one process: runner must be local, got {self.runner}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.ray.shard_weights and self.learner.compile:
            raise ValueError("ray.shard_weights and learner.compile cannot be had together: set one of them to false")
        parts = self.replay.group_size * (self.ray.num_learners if self.runner == "ray" else 1)
        sizes = {"batch_size": self.learner.batch_size}
        if self.learner.pretraining.until > 0:
            sizes["pretraining.batch_size"] = self.learner.pretraining.batch_size
        for key, size in sizes.items():
            if size % parts:
                ranks = "" if parts == self.replay.group_size else f" times ray.num_learners = {self.ray.num_learners}"
                of = f"replay.group_size = {self.replay.group_size}{ranks}"
                raise ValueError(f"learner.{key} must be a multiple of {of}, got {size}")
        exact = self.actor.simulated_measurements > 0 or set(self.actor.kinds) == {"joint"}
        # Exact paths stand for the posterior by themselves, so all have to be drawn alike (their importance is one).
        fitting = {"uniform", "reshuffled", "importance"} if exact else {"importance"}
        pretraining = self.learner.pretraining.until
        if self.learner.pretraining.fresh_measurements:
            if pretraining > 0 and not set(self.replay.priorities) <= {"uniform", "reshuffled"}:
                raise ValueError(
                    "learner.pretraining.fresh_measurements needs x as the prior has them: replay.priority must be "
                    f"uniform or reshuffled, got {self.replay.priority}"
                )
            pretraining = 0.0
        for key, value in (("forward_kl", self.learner.forward_kl), ("pretraining", pretraining)):
            if value > 0 and not set(self.replay.priorities) <= fitting:
                raise ValueError(
                    f"learner.{key} needs draws that stand for the posterior: replay.priority must be "
                    f"{' or '.join(sorted(fitting))}, got {self.replay.priority}"
                )
            if value > 0 and self.replay.store == "endpoints":
                raise ValueError(
                    f"learner.{key} needs draws that stand for the posterior's paths, but paths noised anew from end "
                    "points are not exactly those of the prior's chain; set replay.store to paths"
                )
        self._check_objective()
        self._check_own_measurements()
        self._check_simulated()
        self.shard_config()

    def _check_own_measurements(self) -> None:
        """A guide that is worked out for each measurement must not meet others."""
        others = [f"actor.mixture {name}" for name in ("joint", "annealed-measurement") if name in self.actor.kinds]
        if self.actor.simulated_measurements:
            others.append("actor.simulated_measurements")
        if self.learner.pretraining.until > 0 and self.learner.pretraining.fresh_measurements:
            others.append("learner.pretraining.fresh_measurements")
        if self.evaluation.calibration_pairs:
            others.append("evaluation.calibration_pairs")
        if self.posterior.guidance == "variational" and others:
            raise ValueError(
                "posterior.likelihood_gradient variational is for the problem's own measurements: turn off what makes "
                f"others ({', '.join(others)}), or take the guide repeated"
            )

    def _check_simulated(self) -> None:
        """What measurements drawn by simulation allow."""
        learner, replay = self.learner, self.replay
        network = learner.log_partition == "network" and learner.objective in ("rtb", "tb", "subtb", "trust_pcl")
        pretraining = learner.pretraining
        learns = learner.forward_kl > 0 or pretraining.until == 1 or network
        if pretraining.until > 0 and pretraining.fresh_measurements:
            learns = True
            if not self.actor.simulated_measurements and not {"joint", "prior"} & {*self.actor.kinds}:
                raise ValueError(
                    "learner.pretraining.fresh_measurements are of x of the prior: give actor.mixture a share of joint "
                    f"or prior, got {', '.join(self.actor.kinds)}"
                )
        if "joint" in self.actor.kinds and not learns and learner.objective not in ("mle", "path_kl"):
            raise ValueError(
                "paths of actor.mixture joint have no residual and are learned from by learner.forward_kl alone, "
                "which is 0; raise it, or leave joint out of the mixture"
            )
        if not self.actor.simulated_measurements and "joint" not in self.actor.kinds:
            return
        if replay.evict_by == "likelihood" or replay.store == "endpoints":
            raise ValueError(
                "simulated measurements need replay.evict_by age, as likelihoods of different measurements do not "
                f"compare, and replay.store paths, as end points are of the problem's own, got {replay.evict_by} and "
                f"{replay.store}"
            )
        if not self.actor.simulated_measurements:
            return
        compared = set(replay.priorities) & {"importance", "likelihood", "rank"}
        if compared:
            raise ValueError(
                f"replay.priority {sorted(compared)[0]} compares many trajectories of one measurement, of which "
                "actor.simulated_measurements make few: take uniform, residual or reshuffled"
            )
        group = self.actor.batch_size // self.actor.simulated_measurements
        if learner.objective == "vargrad" and not 2 <= replay.group_size <= group:
            raise ValueError(
                f"objective vargrad compares trajectories of one measurement, and simulated ones have {group} each: "
                f"replay.group_size must be within 2..{group}, got {replay.group_size}"
            )
        if learner.objective in ("reinforce_kl", "ppo_kl", "adjoint_matching"):
            raise ValueError(
                f"objective {learner.objective} needs the density that trajectories were drawn from, which that of the "
                "exact ones of simulated measurements is not but for a constant; take vargrad, or rtb with a network"
            )
        if learner.objective in ("rtb", "tb", "subtb", "trust_pcl") and not network:
            raise ValueError(
                f"objective {learner.objective} needs log Z of simulated measurements: set learner.log_partition to "
                "network, or take objective vargrad"
            )

    def _check_objective(self) -> None:
        """Objectives that are right for trajectories of some sorts only."""
        name, kinds = self.learner.objective, set(self.actor.kinds)
        if name in ("mle", "path_kl", "adjoint_matching") and self.learner.forward_kl > 0:
            raise ValueError(
                f"learner.forward_kl has no part in objective {name}: set it to 0, got {self.learner.forward_kl}"
            )
        if name in ("path_kl", "adjoint_matching") and self.learner.steps_per_path is not None:
            raise ValueError(
                f"learner.steps_per_path has no part in objective {name}, which takes all transitions: set it to null, "
                f"got {self.learner.steps_per_path}"
            )
        if name == "adjoint_matching" and kinds != {"on-policy"}:
            raise ValueError(
                "objective adjoint_matching is right on trajectories of the posterior itself: actor.mixture and "
                f"final_mixture must be on-policy alone, got {', '.join(sorted(kinds))}"
            )
        drawn = set(self.replay.priorities)
        by_importance = drawn == {"importance"} and self.replay.newest_share == 0
        alike = kinds == {"joint"} and drawn <= {"uniform", "reshuffled", "importance"}
        if name == "mle" and not (alike or by_importance):
            raise ValueError(
                "objective mle needs paths that stand for the posterior: replay.priority importance and newest_share "
                "0, or actor mixtures of joint alone and priority uniform; got "
                f"{self.replay.priority}, {self.replay.newest_share} and {', '.join(sorted(kinds))}"
            )

    def fine_tuning(self, run: str) -> RunConfig:
        """The configuration for going on from `run`, which has this one, at the problem's own measurement.

        On-policy vargrad with a tenth of the run's budget and of its step size, at the default pace of replay; nothing
        is simulated any more.
        """
        alone, pace = {"on-policy": 1.0}, ReplayConfig()
        least = max(self.actor.batch_size, self.replay.min_size)
        return dataclasses.replace(
            self,
            init=run,
            name=f"{self.name}-tuned",
            updates=max(self.updates // 10, 1),
            max_seconds=self.max_seconds and self.max_seconds / 10,
            max_likelihood_calls=self.max_likelihood_calls and max(self.max_likelihood_calls // 10, least),
            actor=dataclasses.replace(self.actor, simulated_measurements=0, mixture=alone, final_mixture=alone),
            replay=dataclasses.replace(
                self.replay,
                group_size=1,
                newest_share=pace.newest_share,
                samples_per_insert=pace.samples_per_insert,
            ),
            evaluation=dataclasses.replace(self.evaluation, calibration_pairs=0),
            learner=dataclasses.replace(
                self.learner,
                objective="vargrad",
                learning_rate=self.learner.learning_rate / 10,
                forward_kl=0.0,
                pretraining=dataclasses.replace(self.learner.pretraining, until=0.0),
            ),
        )

    def shard_config(self) -> ReplayConfig:
        """The replay settings of one shard, with the batch sizes that actors and learner use."""
        return dataclasses.replace(
            self.replay,
            insert_batch=self.replay.insert_batch or self.actor.batch_size,
            sample_batch=self.replay.sample_batch or self.learner.batch_size,
        )

    def to_yaml(self) -> str:
        """The whole configuration, problem options beside the problem's name."""
        return config_yaml(self)


def config_yaml(config: Any) -> str:  # noqa: ANN401 - a dataclass, of which typing has no name
    """A configuration as YAML, the options of a section beside what they are the options of."""
    tree = dataclasses.asdict(config)
    for section in tree.values():
        if isinstance(section, dict) and "options" in section:
            section |= section.pop("options")
    text: str = yaml.safe_dump(_plain(tree), sort_keys=False)
    return text


def _plain(value: Any) -> Any:  # noqa: ANN401 - any configuration value
    """`value` with tuples as lists, which YAML has."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple | list) else value


def require(
    section: object, name: str, *, at_least: Mapping[str, float] | None = None, above: Mapping[str, float] | None = None
) -> None:
    """ValueError for the first key of `section` that is not at least, or not above, its limit."""
    for limits, word in ((at_least or {}, "at least"), (above or {}, "above")):
        for key, limit in limits.items():
            value = getattr(section, key)
            if not (value > limit or (word == "at least" and value == limit)):
                raise ValueError(f"{name and name + '.'}{key} must be {word} {limit}, got {value}")
