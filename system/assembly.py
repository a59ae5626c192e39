"""Builds the parts of a run from its configuration, the same way in every process."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from actors import Actor
from diffusion.posterior import Posterior, make_posterior
from envs import InverseProblem, make_problem
from envs.likelihoods.base import raised
from learner import Learner
from learner.ranks import ONE_RANK, Ranks
from system.config import RunConfig
from system.config_file import import_plugins
from system.errors import ConfigError
from system.init import start_from
from system.measurement import read_measurement
from system.prior_config import PriorConfig
from system.replay.shard import ReplayShard

__all__ = [
    "build_actor",
    "build_learner",
    "build_posterior",
    "build_problem",
    "build_shard",
    "find_device",
    "noising_generator",
    "on_device_at_hand",
    "stream_seed",
]


def stream_seed(config: RunConfig | PriorConfig, role: str, index: int = 0) -> int:
    """A 63-bit seed for the random stream of one part, from the run's seed, the part's role and its index."""
    key = int.from_bytes(role.encode(), "big")
    word = np.random.SeedSequence((config.seed, key, index)).generate_state(1, np.uint64)[0]
    return int(word) & (2**63 - 1)


def find_device(config: RunConfig | PriorConfig) -> torch.device:
    """The device that `config` means in this process."""
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(config.device)
        torch.empty(0, device=device)
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # what torch raises for a word it does not know, or a GPU it has not
        raise ConfigError(
            f"device must be auto, or one that this process has, as cpu or cuda, got {config.device!r}: "
            f"{str(error).splitlines()[0]}"
        ) from None
    return device


def on_device_at_hand(config: RunConfig) -> RunConfig:
    """`config` on its device, or on the one at hand: what a GPU has trained is looked at on a laptop too."""
    try:
        find_device(config)
    except ConfigError:
        return dataclasses.replace(config, device="auto")
    return config


def build_problem(config: RunConfig) -> InverseProblem:
    """The inverse problem, on its device; a value that its factory refuses is a `ConfigError`."""
    import_plugins(config.plugins)
    name = config.problem.name
    try:
        problem = make_problem(name, config.problem.options)
        limit = config.actor.likelihood_timeout_seconds
        problem = dataclasses.replace(problem, time_limit=limit, guidance=config.posterior.guidance)
        if config.measurement is not None:
            problem = problem.at(read_measurement(Path(config.measurement), problem)[None]).solved()
        return problem.to(find_device(config))
    except ConfigError:
        raise
    except ValueError as error:
        text = " ".join(str(error).split()).removeprefix(f"problem {name!r}: ")
        raise ConfigError(f"problem {name!r}: {text}") from None
    except Exception as error:  # whatever a plug-in's factory does
        raise ConfigError(f"problem {name!r} cannot be made: {raised(error)}") from error


def build_posterior(config: RunConfig, problem: InverseProblem) -> Posterior:
    """The posterior at its initial weights, which depend on the run's seed alone, or are those of `config.init`."""
    shape = tuple(problem.measurements.shape[1:])
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(stream_seed(config, "posterior"))
        try:
            posterior = make_posterior(
                config.posterior,
                problem.prior,
                shape,
                problem.gradient,
                problem.marginal_gradient,
                problem.guide if problem.shiftable else None,
            )
        except ValueError as error:
            raise ConfigError(f"posterior: {error}") from None
    if config.init is not None:
        start_from(posterior, Path(config.init))
    if len(problem.measurements) > 1 and not posterior.sees_measurement:
        raise ConfigError(
            f"posterior: the {config.posterior.form} form as configured does not see y, but the problem has "
            f"{len(problem.measurements)} measurements; use form control with network mlp, or give it one measurement"
        )
    return posterior


def build_actor(config: RunConfig, problem: InverseProblem, index: int = 0, restarts: int = 0) -> Actor:
    """Actor number `index` in its life number `restarts`."""
    seed = stream_seed(config, "actor")
    posterior = build_posterior(config, problem)
    try:
        return Actor(problem, posterior, config.actor, seed=seed, index=index, restarts=restarts)
    except ValueError as error:
        raise ConfigError(f"actor: {error}") from None


def build_learner(config: RunConfig, problem: InverseProblem, ranks: Ranks = ONE_RANK) -> Learner:
    """The learner at the start of the run; an objective that cannot be had here is a `ConfigError`."""
    _check_groups(config, len(problem.measurements))
    posterior = build_posterior(config, problem)
    with torch.random.fork_rng(devices=()):  # for the networks of the objective
        torch.manual_seed(stream_seed(config, "objective"))
        try:
            return Learner(problem, posterior, config.learner, ranks)
        except ValueError as error:
            raise ConfigError(f"learner: {error}") from None


def _check_groups(config: RunConfig, measurements: int) -> None:
    """Objectives that compare trajectories of one measurement need batches with several of each."""
    compares = config.learner.objective in ("vargrad", "reinforce_kl", "ppo_kl", "adjoint_matching")
    simulated = config.actor.simulated_measurements > 0 or config.actor.kinds == ("joint",)
    each = max(config.replay.group_size, config.learner.batch_size / measurements)
    if compares and not simulated and config.learner.pretraining.until < 1 and each < 2:
        raise ConfigError(
            f"learner: objective {config.learner.objective} compares trajectories of one measurement, and a batch of "
            f"{config.learner.batch_size} has {each:.2g} of each of the problem's {measurements}: raise "
            "replay.group_size, or train at one of them (`--measurement FILE`)"
        )


def noising_generator(config: RunConfig, problem: InverseProblem, updates: int) -> torch.Generator:
    """The random stream of the paths for update number `updates`: of the number alone, so there is none to save."""
    return problem.generator(stream_seed(config, "noising", updates))


def build_shard(config: RunConfig, index: int = 0) -> ReplayShard:
    """Replay shard number `index`, empty."""
    return ReplayShard(config.shard_config(), index, stream_seed(config, "replay", index))
