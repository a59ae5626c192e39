"""Posterior forms: networks that turn the prior's chain into q(s_k+1 | s_k, y). All equal the prior at initialisation.

(One with an `initial_gain` equals its guide.) A form is one file and one branch of `make_posterior`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from diffusion.posterior.base import (
    GuidanceForm,
    Guide,
    LikelihoodGradient,
    MarginalGradient,
    Posterior,
    bounded,
    log_ratio,
)
from diffusion.posterior.control import ControlPosterior
from diffusion.posterior.finetune import FinetunePosterior
from diffusion.prior import Prior

__all__ = [
    "ControlPosterior",
    "FinetunePosterior",
    "GuidanceForm",
    "Guide",
    "LikelihoodGradient",
    "MarginalGradient",
    "Posterior",
    "PosteriorConfig",
    "bounded",
    "log_ratio",
    "make_posterior",
]


GRADIENT_FREE = ("none", "covariance", "repeated-covariance", "variational")  # features without the gradient at x^


@dataclass(frozen=True, slots=True, kw_only=True)
class PosteriorConfig:
    """Form and size of the posterior network."""

    form: Literal["control", "finetune", "lora"] = "control"
    """control (small network beside the prior), finetune (trainable copy of the prior's network) or lora (copy of the
    prior's network with trainable low-rank additions)."""
    rank: int = 8
    """lora only: rank of the additions."""
    network: str = "mlp"
    """control only: mlp, or unet for images [C, H, W]."""
    hidden: int = 256
    """control only: width of the MLP, or first channel count of the U-Net."""
    depth: int = 3
    """control only: hidden layers of the MLP."""
    elementwise: int = 0
    """control with an mlp only: width of a network that every element of x goes through by itself, 0 for none. It pays
    where the elements of x hardly depend on each other, as in many energies."""
    likelihood_gradient: Literal[
        "none", "estimate", "state", "pseudoinverse", "covariance", "repeated", "repeated-covariance", "variational"
    ] = "state"
    """control only: features from grad log p(y | x) at the denoised estimate x^, where the likelihood has one: none;
    estimate (the gradient with respect to x^); state (that, and the one with respect to the state, which goes back
    through the denoiser: it costs the actor more and reaches what y does not see); pseudoinverse (the same, but the
    first allows for the error of x^: for Gaussian noise behind a linear operator of which one gain cannot suit all that
    it sees, as a blur); covariance (how far y moves x^, allowing for the covariance of x given the state,
    by eight products with it: the best guide where the prior's denoiser knows its covariance and one mode is left, as
    mixtures do); repeated (the gradient with respect to x^, and how far x^ moves when the state is moved towards y and
    estimated anew, three times over: the best guide for many measurements, at three passes of the denoiser);
    repeated-covariance (both, twice over: where y bends too much for one step and modes are many, as of a galaxy and
    its lens; three times as dear as covariance, and no better where that does); variational (how far x^ moves under an
    approximation of the posterior, the best Gaussian for each component of the prior that y speaks for, the prior being
    a Gaussian mixture or stood in for by one of its draws: usually the best guide of all where x has at most some
    hundred elements; it takes some seconds to a minute at the start, and next to nothing later; with initial_gain 1,
    and for the problem's own measurements only: no actor.mixture joint, and learner.pretraining.until 0). Covariance,
    repeated, repeated-covariance and variational need a likelihood with residuals."""
    initial_gain: float = 0.0
    """control with likelihood_gradient covariance, repeated, repeated-covariance or variational: the gain on how far x^
    moves that training starts from. 0 is the prior, 1 what the guide says: better where there is time for few
    updates."""

    @property
    def guidance(self) -> GuidanceForm:
        """What the problem's `guide` has to give to a posterior of this form."""
        moves: dict[str, GuidanceForm] = {
            "covariance": "shift",
            "repeated": "repeated",
            "repeated-covariance": "repeated-shift",
            "variational": "variational",
        }
        return moves.get(self.likelihood_gradient, "gradient") if self.form == "control" else "gradient"


def make_posterior(
    config: PosteriorConfig,
    prior: Prior,
    measurement_shape: tuple[int, ...],
    gradient: LikelihoodGradient | None,
    marginal_gradient: MarginalGradient | None = None,
    shift: Guide | None = None,
) -> Posterior:
    """The posterior of `config` on `prior`; `gradient` is None for a likelihood that cannot be differentiated.

    `marginal_gradient` is what `likelihood_gradient` pseudoinverse takes, and `shift` (the guide of a problem whose
    guidance is that) what covariance does; None where the likelihood has none.
    """
    moves = config.guidance != "gradient"
    if not math.isfinite(config.initial_gain) or (config.initial_gain and not moves):
        raise ValueError(
            "initial_gain must be finite, and zero but for form control with likelihood_gradient covariance, "
            f"repeated, repeated-covariance or variational, got {config.initial_gain} for {config.form} with "
            f"{config.likelihood_gradient}"
        )
    if config.form == "control":
        inverts = config.likelihood_gradient == "pseudoinverse"
        if inverts and marginal_gradient is None:
            raise ValueError(
                "likelihood_gradient pseudoinverse needs a linear operator with Gaussian noise, and this "
                "likelihood is another; use state"
            )
        if moves and shift is None:
            raise ValueError(
                f"likelihood_gradient {config.likelihood_gradient} needs `shift`, the guide of a problem whose "
                "likelihood has a gradient and residuals in standard deviations of its noise (`standardised`): "
                "problem.guide if problem.shiftable, with that `guidance`; where the likelihood lacks them use state"
            )
        return ControlPosterior(
            prior,
            measurement_shape,
            None if config.likelihood_gradient in GRADIENT_FREE else gradient,
            config.network,
            config.hidden,
            config.depth,
            config.elementwise,
            guided=config.likelihood_gradient in ("state", "pseudoinverse"),
            marginal_gradient=marginal_gradient if inverts else None,
            shift=shift if moves else None,
            initial_gain=config.initial_gain,
        )
    if config.form == "finetune":
        return FinetunePosterior(prior, measurement_shape)
    if config.form == "lora":
        if config.rank < 1:
            raise ValueError(f"posterior.rank must be at least 1, got {config.rank}")
        return FinetunePosterior(prior, measurement_shape, config.rank)
    raise ValueError(f"unknown posterior form {config.form!r}; expected 'control', 'finetune' or 'lora'")
