r"""The `finetune` form: a trainable copy of the prior's network.

    u_k = b_k (x^_q(s_k) - x^_p(s_k)) / std_k,

b_k being the coefficient of the estimate in the transition mean. A copy gives the same estimate to the last bit, so
u = 0 at the start. The network does not see y: one measurement per posterior.
"""

from __future__ import annotations

import copy

from torch import Tensor

from diffusion.kernel import expand
from diffusion.posterior.base import Posterior
from diffusion.prior import Prior

__all__ = ["FinetunePosterior"]


class FinetunePosterior(Posterior):
    """Fine-tunes the prior's own denoiser to one measurement."""

    def __init__(self, prior: Prior) -> None:
        """Copies the denoiser of `prior`.

        Raises:
            ValueError: the denoiser has no parameters to train (an exact denoiser, say).
        """
        super().__init__(prior)
        self.denoiser = copy.deepcopy(prior.denoiser).requires_grad_(True)
        if not any(True for _ in self.denoiser.parameters()):
            raise ValueError(
                f"the finetune form trains a copy of the prior's network, but {type(prior.denoiser).__name__} has no "
                "parameters; use the control form"
            )

    @property
    def sees_measurement(self) -> bool:
        """See `Posterior.sees_measurement`."""
        return False

    def control(
        self, state: Tensor, step: Tensor, denoised: Tensor, measurement: Tensor, guidance: Tensor | None = None
    ) -> Tensor:
        """See `Posterior.control`."""
        prior = self.prior
        estimate = self.denoiser(state, prior.alpha[step], prior.sigma[step])
        scale = prior.denoised_coefficient[step] / prior.std[step]
        return expand(scale, state) * (estimate - denoised)
