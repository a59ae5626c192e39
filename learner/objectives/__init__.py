"""Objectives: losses of trajectories whose minimum is the posterior. Each is one file and one line of `OBJECTIVES`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from diffusion.posterior import Posterior
from envs.problem import InverseProblem
from learner.log_partition import LogPartition
from learner.objectives.adjoint_matching import AdjointMatching
from learner.objectives.base import Balance, Objective, RatioObjective
from learner.objectives.mle import MaximumLikelihood
from learner.objectives.path_kl import PathKL
from learner.objectives.ppo_kl import ProximalPolicyKL
from learner.objectives.reinforce_kl import ReinforceKL
from learner.objectives.rtb import RelativeTrajectoryBalance
from learner.objectives.subtb import SubTrajectoryBalance
from learner.objectives.tb import TrajectoryBalance
from learner.objectives.trust_pcl import TrustPCL
from learner.objectives.vargrad import VarGrad

if TYPE_CHECKING:
    from learner.config import LearnerConfig

__all__ = ["OBJECTIVES", "Balance", "Factory", "Objective", "RatioObjective"]

Factory = Callable[["LearnerConfig", InverseProblem, Posterior], Objective]
"""Makes an objective for a posterior on a problem; a ValueError says why there is none."""

OBJECTIVES: dict[str, Factory] = {
    "rtb": lambda config, problem, posterior: RelativeTrajectoryBalance(config.shape, _log_partition(config, problem)),
    "vargrad": lambda config, problem, posterior: VarGrad(config.shape),
    "tb": lambda config, problem, posterior: TrajectoryBalance(
        config.shape, _log_partition(config, problem), problem.prior
    ),
    "subtb": lambda config, problem, posterior: SubTrajectoryBalance(
        config.shape,
        _log_partition(config, problem),
        problem.prior,
        tuple(problem.measurements.shape[1:]),
        config.subtb_decay,
    ),
    "trust_pcl": lambda config, problem, posterior: TrustPCL(config.shape, _log_partition(config, problem)),
    "reinforce_kl": lambda config, problem, posterior: ReinforceKL(config.importance_cap),
    "ppo_kl": lambda config, problem, posterior: ProximalPolicyKL(config.clip_range),
    "path_kl": lambda config, problem, posterior: PathKL(problem, posterior),
    "adjoint_matching": lambda config, problem, posterior: AdjointMatching(problem),
    "mle": lambda config, problem, posterior: MaximumLikelihood(),
}


def _log_partition(config: LearnerConfig, problem: InverseProblem) -> LogPartition:
    count, *shape = problem.measurements.shape
    return LogPartition(config.log_partition, count, tuple(shape))
