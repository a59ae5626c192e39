"""Settings of the training of a prior."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PriorTrainingConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorTrainingConfig:
    """Denoising score matching."""

    batch_size: int = 256
    """Draws of x an update, each at a noise level of its own."""
    learning_rate: float = 1e-3
    """Adam's step size after warm-up."""
    warmup_updates: int = 200
    """Updates over which the step size rises linearly from 0."""
    decay_after: int = 2_000
    """Updates after which the step size falls as one over the square root of their number."""
    ema_decay: float = 0.999
    """Of the moving average of the weights, which is what is stored."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient."""
    bandwidth: float = 0.0
    """Standard deviation of Gaussian noise that every draw of x gets, in its units: the prior is then the kernel
    density of the data."""
    log_snr_mean: float = 0.5
    """Mean of lambda = log(alpha d / sigma), normal over the draws; d is the standard deviation of x."""
    log_snr_std: float = 1.2
    """Standard deviation of lambda."""
    uniform_share: float = 0.25
    """Share of a batch whose lambda is uniform in [-10, 7] instead, so that no level is new to the network."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"training.batch_size must be at least 1, got {self.batch_size}")
        for key in ("learning_rate", "gradient_clip", "log_snr_std"):
            if not getattr(self, key) > 0:
                raise ValueError(f"training.{key} must be positive, got {getattr(self, key)}")
        for key in ("warmup_updates", "bandwidth", "decay_after"):
            if not getattr(self, key) >= 0:
                raise ValueError(f"training.{key} must not be negative, got {getattr(self, key)}")
        for key in ("ema_decay", "uniform_share"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"training.{key} must be within [0, 1], got {getattr(self, key)}")
