"""End points of trajectories: x without the path to it, and paths drawn anew by noising it.

    s_T = x,   s_k ~ q(s_k | s_k+1)  for k = T-1 .. 0      (`diffusion.kernel`)

Residuals are valid on any path, so a learner may take another path to the same x each time. Where x is an exact sample
of the posterior, the noised path is one of the posterior path measure as far as the prior's denoising chain is the
reverse of the noising: up to the error of its discretisation. The density that the noised path was drawn from is not
known. Its `log_behaviour_ratio` is that of the path which led to x, so that its weight p(tau) p(y | x) / b(tau) is the
one of that path: a proper importance weight for x, and with it for the noised path up to the same error.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion.path import denoise_path, path_log_prior
from diffusion.prior import Prior
from diffusion.trajectory import Trajectory

__all__ = ["EndPoints"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EndPoints:
    """The clean ends of B trajectories in the event shape ``*D``; fields are those of `Trajectory`."""

    uid: NDArray[np.uint64]
    """[B] of the trajectory."""
    samples: NDArray[np.float32]
    """[B, *D] x."""
    log_behaviour_ratio: NDArray[np.float32]
    """[B] of the path that led to x, nats."""
    log_likelihood: NDArray[np.float32]
    """[B] log p(y | x), nats."""
    measurement_id: NDArray[np.int64]
    """[B]."""
    policy_version: NDArray[np.int64]
    """[B]."""
    origin: NDArray[np.uint8]
    """[B]."""

    def __post_init__(self) -> None:
        for name, value in self.arrays().items():
            if name != "samples" and value.shape != (len(self.samples),):
                raise ValueError(f"{name} must be [{len(self.samples)}] to match samples, got {value.shape}")

    @classmethod
    def of(cls, trajectory: Trajectory) -> EndPoints:
        """The ends of `trajectory`, all of which have a row of the problem's measurements."""
        if trajectory.measurement is not None:
            raise ValueError("end points have rows of the problem's measurements, got paths with their own")
        return cls(**{field.name: getattr(trajectory, field.name) for field in fields(cls)})

    def __len__(self) -> int:
        return len(self.uid)

    @property
    def log_importance(self) -> NDArray[np.float64]:
        """See `Trajectory`."""
        return self.log_likelihood.astype(np.float64) - self.log_behaviour_ratio

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def take(self, rows: NDArray[np.integer] | slice) -> EndPoints:
        """The end points at `rows`."""
        return EndPoints(**{name: value[rows] for name, value in self.arrays().items()})

    @torch.no_grad()
    def noised(self, prior: Prior, generator: torch.Generator | None = None) -> Trajectory:
        """A path to each x, drawn with the noising kernel, with the prior's estimates along it."""
        clean = torch.from_numpy(np.array(self.samples)).to(prior.std.device)
        states = prior.noising.sample_path(clean, generator)
        denoised = denoise_path(prior, states)
        log_prior = path_log_prior(prior, states, denoised)
        own = {name: value for name, value in self.arrays().items() if name != "samples"}
        return Trajectory(
            **own,
            states=states.cpu().numpy(),
            log_prior=log_prior.float().cpu().numpy(),
            denoised=denoised.cpu().numpy(),
        )
