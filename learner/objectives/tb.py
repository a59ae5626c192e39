r"""`tb`: trajectory balance with the noising process as the backward policy (Malkin et al. 2022, arXiv 2201.13259; for
diffusion samplers Sendera et al. 2024, 2402.05098, eq. 9).

    delta(tau) = log Z + log b(s_0) + sum_k log q(s_k+1 | s_k) - sum_k log n(s_k | s_k+1) - log p(x) - beta log p(y | x)

where the prior has a density p(x): an energy's base process, a Gaussian, a mixture. It asks for the posterior of p(x)
itself. Relative trajectory balance asks for that of the prior's chain, and delta is its residual less

    log p(x) + sum_k log n(s_k | s_k+1) - log b(s_0) - sum_k log p(s_k+1 | s_k),

which has no parameters: zero if the chain is the reverse of the noising, and small for many steps.
"""

from __future__ import annotations

from torch import Tensor

from diffusion.box_denoiser import BoxDenoiser
from diffusion.denoiser import Density
from diffusion.path import density_over_chain
from diffusion.prior import Prior
from learner.batch import PathBatch
from learner.log_partition import LogPartition
from learner.loss import Loss
from learner.objectives.rtb import RelativeTrajectoryBalance

__all__ = ["TrajectoryBalance"]


class TrajectoryBalance(RelativeTrajectoryBalance):
    """delta of the density, not of the chain."""

    sees_paths = True

    def __init__(self, shape: Loss, log_partition: LogPartition, prior: Prior) -> None:
        """Balances against the density of `prior`.

        Raises:
            ValueError: the prior's denoiser does not know its density, or it is zero somewhere.
        """
        super().__init__(shape, log_partition)
        if isinstance(prior.denoiser, BoxDenoiser):
            raise ValueError(
                "objective tb needs a prior whose density is nowhere zero, as its chain leaves a box at times; take "
                "rtb or vargrad, which need the prior's chain alone"
            )
        if not isinstance(prior.denoiser, Density):
            raise ValueError(
                f"objective tb needs a prior with a density p(x), which {type(prior.denoiser).__name__} does not know; "
                "take rtb or vargrad, which need the prior's chain alone"
            )
        self._prior = (prior,)  # out of the module tree, as it is not trained

    def residual(self, log_ratio: Tensor, batch: PathBatch, beta: float) -> Tensor:
        """See `Balance.residual`."""
        relative = super().residual(log_ratio, batch, beta)
        return relative - density_over_chain(self._prior[0], batch.states.double(), batch.denoised.double())
