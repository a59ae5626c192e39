r"""The exact denoiser of a Gaussian mixture whose components each have a covariance of their own.

The noised component is N(alpha mu_i, alpha^2 S_i + sigma^2 I), so with responsibilities w_i(s)

    x^(s) = sum_i w_i(s) [mu_i + alpha S_i (alpha^2 S_i + sigma^2 I)^-1 (s - alpha mu_i)].

A state goes through the eigenvectors of every component, at D^2 each: for tens of components, where a
`diffusion.denoiser.MixtureDenoiser`, whose components share one covariance, has thousands.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffusion.denoiser import of_means

__all__ = ["UntiedMixtureDenoiser"]

NEGLIGIBLE = 1e-12  # a responsibility that changes no digit of a float32


class UntiedMixtureDenoiser(nn.Module):
    """Exact denoiser of sum_i w_i N(mu_i, S_i); x of shape `event_shape`."""

    means: Tensor
    log_weights: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor

    def __init__(
        self,
        means: Tensor,
        covariances: Tensor,
        log_weights: Tensor | None = None,
        event_shape: tuple[int, ...] | None = None,
    ) -> None:
        """`means` [C, D], `covariances` [C, D, D] symmetric and positive; `log_weights` [C], equal if None."""
        super().__init__()
        self.event_shape, weights = of_means(means, log_weights, event_shape)
        count, dim = means.shape
        if covariances.shape != (count, dim, dim):
            raise ValueError(f"covariances must be [{count}, {dim}, {dim}], got {tuple(covariances.shape)}")
        eigenvalues, eigenvectors = torch.linalg.eigh(covariances.double())
        if not float(eigenvalues.min()) > 0:
            raise ValueError(
                f"covariances must be positive definite, got smallest eigenvalue {float(eigenvalues.min())}"
            )
        # In float32, as the states are: of many dimensions the eigenvectors are what is large.
        self.register_buffer("means", torch.einsum("cd,cde->ce", means.double(), eigenvectors).float())
        self.register_buffer("log_weights", weights.float())
        self.register_buffer("eigenvalues", eigenvalues.float())
        self.register_buffer("eigenvectors", eigenvectors.float())

    def forward(self, state: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """See `diffusion.denoiser.Denoiser`."""
        flat = state.flatten(1)
        level, noise = alpha.to(flat)[:, None, None], sigma.to(flat)[:, None, None].square()
        means, eigenvalues, basis = (part.to(flat) for part in (self.means, self.eigenvalues, self.eigenvectors))
        precision = 1 / (level.square() * eigenvalues + noise)  # [N, C, D]
        away = torch.einsum("nd,cde->nce", flat, basis) - level * means
        logits = self.log_weights.to(flat) - 0.5 * (away.square() * precision - precision.log()).sum(2)
        weights = logits.softmax(1)
        kept = (weights > NEGLIGIBLE).any(0)  # late in a chain one component, or a few
        each = means[kept] + level * eigenvalues[kept] * precision[:, kept] * away[:, kept]
        denoised = torch.einsum("nce,cde->nd", weights[:, kept, None] * each, basis[kept])
        return denoised.reshape(state.shape)
