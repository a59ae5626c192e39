"""Settings of the learner."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from learner.guard import GuardConfig
from learner.log_partition import LogPartitionForm
from learner.loss import Loss, LossShape
from learner.objectives import OBJECTIVES
from learner.pretraining import PretrainingConfig
from learner.subset import DrawBy

__all__ = ["LearnerConfig"]

_POSITIVE = (
    "learning_rate",
    "log_partition_learning_rate",
    "gain_learning_rate",
    "gradient_clip",
    "loss_scale",
    "subtb_decay",
    "importance_cap",
    "clip_range",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerConfig:
    """Objective, batch and optimiser."""

    objective: str = "vargrad"
    """vargrad (residual centred per measurement), rtb (learned log Z), tb, subtb, trust_pcl, reinforce_kl, ppo_kl,
    path_kl, adjoint_matching or mle."""
    log_partition: LogPartitionForm = "table"
    """The learned log Z (rtb, tb, subtb, trust_pcl): table (a number for each of the problem's measurements) or network
    (of y, for measurements drawn by simulation too)."""
    loss: LossShape = "huber"
    """Of a residual, for vargrad, rtb, tb, subtb and trust_pcl: square, huber, clipped or shifted-cosh."""
    loss_scale: float = 30.0
    """Nats of residual beyond which huber grows linearly and shifted-cosh exponentially, and within which clipped is
    zero."""
    subtb_decay: float = 0.9
    """Weight of a part of a trajectory, per transition of its length (subtb)."""
    importance_cap: float = 10.0
    """Largest importance weight of a trajectory (reinforce_kl)."""
    clip_range: float = 0.2
    """How far the ratio of a trajectory's densities, new to old, may go from one (ppo_kl)."""
    batch_size: int = 64
    """Trajectories per update."""
    learning_rate: float = 1e-3
    """Adam's step size after warm-up."""
    log_partition_learning_rate: float = 1e-1
    """Step size of the learned log Z (rtb, tb, subtb, trust_pcl)."""
    gain_learning_rate: float = 1e-2
    """Step size of the control form's per-step gains on the likelihood gradient."""
    warmup_updates: int = 100
    """Updates over which the step size rises linearly from 0."""
    final_learning_rate: float = 0.02
    """Fraction of the step size left at the end of the run (cosine decay)."""
    gradient_clip: float = 10.0
    """Largest norm of the gradient; a longer one is scaled down."""
    forward_kl: float = 0.0
    """Weight of a denoising term beside the loss: u is drawn towards the x that each path ended in. On paths drawn by
    importance, and on exact paths of simulated measurements, it follows the gradient of KL(posterior || q), which keeps
    modes that are not yet fitted well; let the actors' mixture end on-policy, as other newest paths bias it."""
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    """Maximum likelihood on paths drawn by importance, or exact, before relative trajectory balance."""
    beta_start: float = 1.0
    """Reward temperature at the start; it rises linearly to 1."""
    beta_until: float = 0.0
    """Fraction of the run at which beta reaches 1."""
    beta_ess: float = 0.0
    """Effective sample size of exp(-delta), as a fraction of a batch, below which beta rises more slowly, in proportion
    to it; 0: beta keeps to its schedule."""
    reinitialise_at: tuple[float, ...] = ()
    """Fractions of the run at which the network goes back to its first weights, while replay stays: what it learned
    from poor early data is forgotten, what was found is not (primacy bias: Nikishin et al. 2022, arXiv 2205.07802)."""
    ema_decay: float = 0.998
    """Decay per update of the averaged weights that are evaluated and saved for sampling."""
    guard: GuardConfig = field(default_factory=GuardConfig)
    """What is done about batches and weights that have gone wrong."""
    steps_per_path: int | None = None
    """Transitions of each trajectory that the gradient is taken at, weighted so that it is right on average; null is
    all of them. The residual is that of the whole trajectory in any case."""
    steps_by: DrawBy = "uniform"
    """How these are drawn: uniform (equally spaced), or share (those at which q and p differ most)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the network multiplies in while it learns: bfloat16 is several times faster on GPUs, and on CPUs that have
    it, for three digits of u. Likelihoods, the prior, log-densities, weights and actors keep float32."""
    checkpoint_activations: bool = False
    """Keep of a network of blocks (unet) what goes into each block alone and compute the rest again for the gradient: a
    third of the memory a transition for a fifth more time. Where one transition's graph fits, it is not needed."""
    compile: bool = False
    """Have torch.compile fuse the network's operations: an update of an MLP takes a CPU a sixth less, after a minute of
    compiling at the start, for which it needs a C++ compiler; the U-Net's takes it ten. On a GPU it makes an MLP's
    several times slower. The actors' networks stay as they are: batches of a rollout are too small to gain."""
    graph_bytes: int = 512 * 2**20
    """Memory for the graph of the gradient: transitions that do not fit it are scored in two passes and chunks."""

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"learner.objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}")
        if self.batch_size < 2:
            raise ValueError(f"learner.batch_size must be at least 2, got {self.batch_size}")
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"learner.{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.final_learning_rate <= 1:
            raise ValueError(f"learner.final_learning_rate must be within [0, 1], got {self.final_learning_rate}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"learner.ema_decay must be within [0, 1), got {self.ema_decay}")
        if not self.forward_kl >= 0:
            raise ValueError(f"learner.forward_kl must be >= 0, got {self.forward_kl}")
        if not 0 < self.beta_start <= 1 or not 0 <= self.beta_until <= 1:
            raise ValueError(
                f"learner.beta_start must be within (0, 1] and beta_until within [0, 1], "
                f"got {self.beta_start} and {self.beta_until}"
            )
        if not 0 <= self.beta_ess < 1:
            raise ValueError(f"learner.beta_ess must be within [0, 1), got {self.beta_ess}")
        if self.beta_ess > 0 and self.objective == "trust_pcl":
            raise ValueError(
                "learner.beta_ess weighs paths by exp(-residual), which that of trust_pcl, in units of reward, is not "
                f"for: set it to 0, or take objective rtb, got {self.beta_ess}"
            )
        if any(not 0 < at < 1 for at in self.reinitialise_at):
            raise ValueError(f"learner.reinitialise_at must lie within (0, 1), got {list(self.reinitialise_at)}")
        if self.warmup_updates < 0 or self.graph_bytes < 1:
            raise ValueError(
                "learner.warmup_updates must be >= 0 and graph_bytes >= 1, "
                f"got {self.warmup_updates} and {self.graph_bytes}"
            )
        if self.steps_per_path is not None and self.steps_per_path < 1:
            raise ValueError(f"learner.steps_per_path must be at least 1 or null, got {self.steps_per_path}")

    @property
    def shape(self) -> Loss:
        """The loss of a residual."""
        return Loss(self.loss, self.loss_scale)

    def pretrains(self, progress: float) -> bool:
        """Whether updates at `progress` (0 to 1) of the run are those of the pretraining."""
        return progress < self.pretraining.until

    def draw_size(self, progress: float) -> int:
        """Trajectories that an update at `progress` learns from."""
        return self.pretraining.batch_size if self.pretrains(progress) else self.batch_size
