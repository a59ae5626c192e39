"""The learner: trajectories in, residuals out, better weights behind it."""

from __future__ import annotations

import logging
import math
import os
import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.denoiser import DataSampler
from diffusion.network import CheckpointsActivations
from diffusion.path import denoise_path
from diffusion.posterior import Posterior
from diffusion.trajectory import Origin, Trajectory
from envs.problem import InverseProblem
from learner.annealing import Annealing
from learner.batch import PathBatch
from learner.config import LearnerConfig
from learner.gradient import PROBED, GradientPlan, RowLimits, row_limits
from learner.guard import Guard, Verdict
from learner.objectives import OBJECTIVES
from learner.pretraining import accumulate_denoising_gradient, accumulate_simulated_gradient
from learner.ranks import ONE_RANK, Ranks, own_rows
from learner.subset import StepSubset
from learner.weights import Snapshot, Weights

__all__ = ["Learner", "Update", "multiplies_bfloat16"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Update:
    """What one optimiser step leaves behind."""

    loss: float
    """Mean loss of the batch: nats squared, in pretraining nats."""
    residual: NDArray[np.float32] | None
    """[B] residual of each trajectory, for its priority; None in pretraining, and where the objective makes its own."""
    gradient_norm: float
    """Norm of the gradient before clipping."""
    verdict: Verdict
    """Whether the step was taken, and if not, what was done."""
    beta: float
    """Reward temperature that the residual has."""
    joint_log_weight: float | None = None
    """Mean of log p(tau) + log p(y' | x) - log q(tau | y') over exact paths of simulated measurements y', nats: an
    upper bound of the mean of log p(y'), by as much as q is off (EUBO). None where the batch has no such path."""
    residual_std: float | None = None
    """Standard deviation of the residuals of those trajectories that have one, nats; None where there are none."""


class Learner:
    """Optimises a posterior on trajectories of any origin.

    learner = Learner(problem, posterior, LearnerConfig())
    update = learner.update(trajectory, progress=0.1)
    learner.weights()  # one flat float32 vector for the actors
    """

    def __init__(
        self, problem: InverseProblem, posterior: Posterior, config: LearnerConfig, ranks: Ranks = ONE_RANK
    ) -> None:
        """Of several `ranks` each is given its part of every batch, all parts of one size."""
        if config.pretraining.fresh_measurements and not (problem.simulable and posterior.sees_measurement):
            lacks = "posterior does not see y" if problem.simulable else "likelihood has no method `sample`"
            raise ValueError(f"pretraining.fresh_measurements draws y for a posterior that sees it, but the {lacks}")
        self.problem = problem
        self.ranks = ranks
        self.posterior = posterior.to(problem.device)
        posterior.compute_dtype = torch.bfloat16 if config.precision == "bfloat16" else None
        if config.precision == "bfloat16" and problem.device.type == "cpu" and not multiplies_bfloat16():
            _log.warning("this processor has no units for bfloat16, which is then about ten times slower than float32")
        if config.checkpoint_activations:
            blocks = [module for module in posterior.modules() if isinstance(module, CheckpointsActivations)]
            if not blocks:
                raise ValueError("checkpoint_activations is for a network of blocks (unet); this posterior has none")
            for network in blocks:
                network.checkpoint_activations()
        if config.compile:
            _check_compiler(problem.measurements.device)
            posterior.compile_networks()
        ranks.distribute(posterior)
        self.config = config
        self.updates = 0
        self.guard = Guard(config.guard)
        self.annealing = Annealing(config.beta_start, config.beta_until, config.beta_ess)
        self.reinitialised = 0
        self.objective = OBJECTIVES[config.objective](config, problem, posterior).to(problem.device)
        gains = [value for name, value in posterior.named_parameters() if name == "gain"]
        weights = [value for name, value in posterior.named_parameters() if name != "gain"]
        # What an objective learns beside the posterior: log Z, a number a measurement, and networks (flows).
        scalars = [value for value in self.objective.parameters() if value.dtype == torch.float64]
        networks = [value for value in self.objective.parameters() if value.dtype != torch.float64]
        groups = [
            {"params": weights, "lr": config.learning_rate},
            {"params": gains, "lr": config.gain_learning_rate},
            {"params": scalars, "lr": config.log_partition_learning_rate},
            {"params": networks, "lr": config.learning_rate},
        ]
        self._groups = [group for group in groups if group["params"]]
        self.optimizer = torch.optim.Adam(self._groups, betas=(0.9, 0.99))
        self._peak = [float(group["lr"]) for group in self.optimizer.param_groups]
        self._weights = Weights(posterior, self.objective, self.optimizer, config.ema_decay, ranks)
        self._warm_from = 0  # update at which the warm-up began
        self._snapshots = [self._weights.snapshot()]  # at most two, the older first
        self._limits: RowLimits | None = None  # known with the first batch

    def update(self, trajectory: Trajectory, progress: float, *, versions_hold: bool = False) -> Update:
        """One optimiser step on `trajectory`; `progress` (0 to 1) is the fraction of the run that is done.

        `versions_hold` says that a trajectory of as many updates as there are was drawn with these very weights. It is
        so where actors, replay and learner are restored together; else there may be two weights of one number.
        """
        with self.problem.placement():
            return self._update(trajectory, progress, versions_hold)

    def _update(self, trajectory: Trajectory, progress: float, versions_hold: bool) -> Update:
        config = self.config
        unchanged = sum(progress >= at for at in config.reinitialise_at) == self.reinitialised
        if not unchanged:
            self._reinitialise()
        self.optimizer.zero_grad(set_to_none=True)
        residual = joint_log_weight = residual_std = None
        beta = self.annealing.beta(progress)
        if config.pretrains(progress):
            loss = self._pretrain(trajectory)
        else:
            batch = self._batch(trajectory)
            output = self.objective.accumulate(
                self.posterior, batch, beta, self._plan(trajectory, versions_hold and unchanged)
            )
            loss, joint_log_weight = output.loss, _joint_log_weight(batch, output.log_ratio)
            if output.residual is not None:
                residual = output.residual.float().cpu().numpy()
                own = own_rows(self.ranks, batch)
                known = output.residual[own][self.objective.known(batch)]
                residual_std = float(known.std(correction=0)) if len(known) else None
        self.ranks.add_gradients(self.posterior.parameters())
        norm = self.ranks.clip_gradients(self.posterior.parameters(), config.gradient_clip)
        verdict = self.guard.examine(float(loss), norm, residual)
        self.annealing.learn(progress, residual)
        self.updates += 1
        if verdict is Verdict.TAKE:
            factor = self.learning_rate_factor(progress)
            for param_group, peak in zip(self.optimizer.param_groups, self._peak, strict=True):
                param_group["lr"] = factor * peak
            self.optimizer.step()
            self._weights.average.update(self.posterior)
            if self.guard.wants_snapshot:
                self._snapshots = [self._snapshots[-1], self._weights.snapshot()]
        elif verdict is Verdict.ROLL_BACK:
            self._roll_back()
        return Update(
            loss=float(loss),
            residual=None if residual is None else residual[own],
            gradient_norm=norm,
            verdict=verdict,
            beta=beta,
            joint_log_weight=joint_log_weight,
            residual_std=residual_std,
        )

    def _pretrain(self, trajectory: Trajectory) -> Tensor:
        """Adds the gradient of maximum likelihood; the loss."""
        problem, config, seed = self.problem, self.config.pretraining, self._seed
        rows = self._row_limits(trajectory).network
        if not config.fresh_measurements:
            return accumulate_denoising_gradient(
                self.posterior, self._batch(trajectory), config, seed, max_rows=rows, ranks=self.ranks
            )
        generator, counted = problem.generator(seed), True
        if isinstance(problem.prior.denoiser, DataSampler):
            samples = problem.prior.denoiser.sample(len(trajectory), generator).float()
        else:
            of_prior = np.flatnonzero(np.isin(trajectory.origin, (Origin.JOINT, Origin.PRIOR)))
            # As many on every rank, so that all run the network equally often; where there are none they do not count.
            samples, counted = self._tensor(trajectory.samples[np.resize(of_prior, len(trajectory))]), len(of_prior) > 0
        return accumulate_simulated_gradient(
            problem, self.posterior, samples, config, generator, counted=counted, max_rows=rows, ranks=self.ranks
        )

    def limit_rows(self, max_rows: int) -> None:
        """Holds at most `max_rows` transitions in a graph, whatever `graph_bytes` says."""
        self._limits = RowLimits(max_rows, max_rows)

    def _plan(self, trajectory: Trajectory, versions_hold: bool) -> GradientPlan:
        """How the gradient is made."""
        config = self.config
        subset = None
        if config.steps_per_path is not None:
            subset = StepSubset(config.steps_per_path, config.steps_by, seed=self._seed)
        fresh = (trajectory.origin == Origin.ON_POLICY) & (trajectory.policy_version == self.updates)
        return GradientPlan(
            limits=self._row_limits(trajectory),
            forward_kl=config.forward_kl,
            subset=subset,
            fresh=torch.from_numpy(fresh).to(self.problem.device) if versions_hold and fresh.any() else None,
            seed=self._seed,
            ranks=self.ranks,
        )

    def _row_limits(self, trajectory: Trajectory) -> RowLimits:
        if self._limits is None:
            batch = self._batch(trajectory.take(np.arange(min(len(trajectory), 2 * PROBED))))
            denoises = self.config.forward_kl > 0 or self.config.pretraining.until > 0
            self._limits = row_limits(self.posterior, batch, self.config.graph_bytes, denoises)
        return self._limits

    @property
    def _seed(self) -> int:
        """Another one for every update and rank."""
        return self.updates * self.ranks.size + self.ranks.rank

    def _roll_back(self) -> None:
        """To the older snapshot: the newer may be from when it began to go wrong."""
        self._weights.restore(self._snapshots[0])
        self._snapshots = self._snapshots[:1]
        self._warm_from = self.updates
        _log.warning(
            "the learner rolled back at update %d, number %d (%s); step size times %g from now on",
            self.updates,
            self.guard.rollbacks,
            self.guard.reason,
            self.guard.step_factor,
        )

    def _reinitialise(self) -> None:
        """Back to the first weights, with optimiser, average and guard anew; log Z and the clock of beta stay."""
        self._weights.reinitialise()
        self.guard.forget()
        self._snapshots = [self._weights.snapshot()]
        self._warm_from = self.updates
        self.reinitialised += 1
        _log.info("the network was re-initialised at update %d, number %d", self.updates, self.reinitialised)

    def learning_rate_factor(self, progress: float) -> float:
        """Warm-up times cosine decay, relative to the configured step size."""
        config = self.config
        warmup = min(1.0, (self.updates - self._warm_from) / max(config.warmup_updates, 1)) * self.guard.step_factor
        cosine = 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
        return warmup * (config.final_learning_rate + (1 - config.final_learning_rate) * cosine)

    def weights(self, *, averaged: bool = False) -> NDArray[np.float32]:
        """All parameters of the posterior as one flat vector: the current ones, or their moving average.

        Ranks that share weights out have to ask for it together, as for `state_dict`.
        """
        return self._weights.flat(averaged=averaged)

    def _batch(self, trajectory: Trajectory) -> PathBatch:
        problem, rows = self.problem, self._tensor(trajectory.measurement_id)
        states, guidance = self._tensor(trajectory.states), None
        if trajectory.guidance is not None and self.posterior.uses_guidance:
            guidance = self._tensor(trajectory.guidance)
        seen = trajectory.measurement
        return PathBatch(
            states=states,
            denoised=denoise_path(problem.prior, states)
            if trajectory.denoised is None
            else self._tensor(trajectory.denoised),
            measurement=problem.measurements[rows] if seen is None else self._tensor(seen),
            measurement_id=rows,
            log_likelihood=self._tensor(trajectory.log_likelihood),
            log_behaviour_ratio=self._tensor(trajectory.log_behaviour_ratio),
            exact=self._tensor(np.isin(trajectory.origin, (Origin.JOINT, Origin.EXACT))),
            guidance=guidance,
        )

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        """A copy on the learner's device: arrays that come through shared memory are read-only.

        To a GPU it goes by way of memory that does not move, so that the next thing can be done meanwhile.
        """
        copied = torch.from_numpy(np.array(array))
        if self.problem.device.type != "cuda":
            return copied.to(self.problem.device)
        return copied.pin_memory().to(self.problem.device, non_blocking=True)

    def state_dict(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """(arrays, scalars) that `load_state_dict` restores bit for bit, snapshots to roll back to included."""
        now = self._weights.snapshot()
        arrays = self._weights.whole(now.arrays)
        scalars: dict[str, Any] = {"updates": self.updates, "average_updates": now.average_updates}
        scalars |= {"warm_from": self._warm_from, "guard": self.guard.state_dict()}
        scalars |= {"annealing": self.annealing.state_dict(), "reinitialised": self.reinitialised}
        for index, saved in enumerate(self._snapshots):
            whole = self._weights.whole(saved.arrays)
            arrays |= {f"snapshot.{index}.{name}": value for name, value in whole.items()}
        scalars["snapshots"] = [saved.average_updates for saved in self._snapshots]
        return arrays, scalars

    def load_state_dict(self, arrays: dict[str, NDArray[Any]], scalars: dict[str, Any]) -> None:
        """Restores `state_dict`.

        Raises:
            ValueError: an array is missing or has another shape; the message names the first.
        """
        self._weights.check(arrays)

        def saved(prefix: str, average_updates: int) -> Snapshot:
            whole = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
            return Snapshot(self._weights.own(whole), average_updates)

        self._weights.restore(saved("", int(scalars["average_updates"])))
        self._snapshots = [saved(f"snapshot.{index}.", count) for index, count in enumerate(scalars["snapshots"])]
        self.updates, self._warm_from = int(scalars["updates"]), int(scalars["warm_from"])
        self.guard.load_state_dict(scalars["guard"])
        self.annealing.load_state_dict(scalars["annealing"])
        self.reinitialised = int(scalars["reinitialised"])


def multiplies_bfloat16() -> bool:
    """Whether this processor has units for products of bfloat16; where it has none they are emulated."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(unit, False) for unit in ("avx512_bf16", "amx_bf16", "bf16"))


def _check_compiler(device: torch.device) -> None:
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ValueError(f"compile needs a C++ compiler, but there is no {compiler!r}; install one, or set CXX to it")


def _joint_log_weight(batch: PathBatch, log_ratio: Tensor | None) -> float | None:
    """Mean log-weight of the exact paths of simulated measurements, None where there are none."""
    own = batch.exact & (batch.measurement_id < 0)
    if log_ratio is None or not bool(own.any()):
        return None
    return float((batch.log_likelihood.double() - log_ratio)[own].mean())
