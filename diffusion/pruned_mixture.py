r"""A mixture of very many Gaussians of one variance, as the kernel density of a whole data set is, made affordable.

Most components do not matter to a state once its noise is low. Which ones is found out in few dimensions: let P be the
projection onto the r directions in which the means vary most. Given P s alone component i has the probability

    w'_i  ~  w_i N(P s; alpha P mu_i, (alpha^2 h^2 + sigma^2) I),

and for a state s of the noised mixture w'_i = E[w_i(s) | P s]: what is left out of the responsibilities is, in
expectation over s, the sum of the w'_i that are left out, at most C e^-m if each is below e^-m of the largest. m is 40
nats, so of 60,000 components less than 3e-13. The others take part as they are. The cost is r / D of a full evaluation,
and one with those that matter to any state in the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.denoiser import MixtureDenoiser

__all__ = ["PrunedMixtureDenoiser"]

NEGLIGIBLE_NATS = 40.0
DIRECTIONS = 64


class PrunedMixtureDenoiser(MixtureDenoiser):
    """A `MixtureDenoiser` of components with one variance that leaves out those that do not matter."""

    projection: Tensor
    projected: Tensor

    def __init__(
        self,
        means: Tensor,
        variance: float,
        log_weights: Tensor | None = None,
        event_shape: tuple[int, ...] | None = None,
        directions: int = DIRECTIONS,
    ) -> None:
        """`means` [C, D], float32 to save memory; the rest as for `MixtureDenoiser`, r = `directions`."""
        super().__init__(means, variance, log_weights, event_shape)
        centred = self.means - self.means.mean(0)
        _, vectors = torch.linalg.eigh((centred.T @ centred).double())
        projection = vectors[:, -directions:].to(self.means)
        self.register_buffer("projection", projection, persistent=False)
        self.register_buffer("projected", self.means @ projection, persistent=False)

    def _weights(self, flat: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `MixtureDenoiser`: of the components that are kept."""
        means, squares, eigenvalues, log_weights = self._constants(flat)
        scaled = alpha / (alpha * alpha * eigenvalues[:1] + sigma * sigma)  # [N, 1]
        projected = self.projected.to(flat)
        norm = torch.addmm(log_weights, alpha * scaled, -0.5 * projected.square().sum(1)[None])
        kept = _that_matter(torch.addmm(norm, scaled * (flat @ self.projection.to(flat)), projected.T))
        if kept is not None:
            means, squares, log_weights = means[kept], squares[:, kept], log_weights[kept]
        logits = torch.addmm(torch.addmm(log_weights, alpha * scaled, squares), scaled * flat, means.T)
        kept = _that_matter(logits)
        if kept is not None:
            means, logits = means[kept], logits[:, kept]
        return logits.softmax(1), flat, means


def _that_matter(logits: Tensor) -> Tensor | None:
    """Those of C components that matter to any state, given `logits` [N, C]; None if they are most."""
    kept = (logits > logits.amax(1, keepdim=True) - NEGLIGIBLE_NATS).any(0).nonzero().squeeze(1)
    return kept if 2 * len(kept) < logits.shape[1] else None
