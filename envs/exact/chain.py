r"""Everything exact for a linear Gaussian denoising chain and a linear Gaussian measurement.

With an affine denoiser the prior's chain is s_k+1 = F_k s_k + g_k + std_k xi, xi ~ N(0, I). The likelihood runs
backward as a message h_k(s) = E[p(y | x) | s_k = s] = exp(c_k + b_k . s - s . L_k s / 2):

    h_T = p(y | x),    h_k(s) = integral of N(s'; F_k s + g_k, std_k^2 I) h_k+1(s') ds'.

The posterior of the *discrete* chain is q(s'|s) = N(s'; F_k s + g_k, std_k^2 I) h_k+1(s') / h_k(s), a Gaussian of
precision I / std_k^2 + L_k+1, its base distribution is proportional to N(s_0; 0, sigma_0^2 I) h_0(s_0), and
log Z = log E[h_0(s_0)]. With zero terminal SNR h_0 is constant. (Kalman 1960; the backward messages are Mayne's 1966
two-filter form.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion.prior import Prior

__all__ = ["ChainPosterior"]


class ChainPosterior:
    """The exact posterior of a linear Gaussian chain, usable wherever a posterior's `log_ratio` is."""

    def __init__(self, prior: Prior, matrix: Tensor, noise_std: float, measurement: Tensor) -> None:
        """`prior` has an affine denoiser on x of shape [D]; `matrix` is A [Y, D]; `measurement` y [Y]."""
        (dim,) = prior.event_shape
        self.prior = prior
        self.transitions, self.offsets = _affine_steps(prior)
        self.std = prior.std.double()
        steps = prior.num_steps
        eye = torch.eye(dim, dtype=torch.float64)
        matrix, measurement = matrix.double(), measurement.double()

        # Backward messages of the likelihood.
        precision = matrix.T @ matrix / noise_std**2
        shift = matrix.T @ measurement / noise_std**2
        rows = len(matrix)
        constant = -0.5 * float(measurement @ measurement) / noise_std**2 - rows * (
            math.log(noise_std) + 0.5 * math.log(2 * math.pi)
        )
        factors, gains, shifts, precisions = [eye] * steps, [eye] * steps, [shift] * steps, [eye] * steps
        for step in range(steps - 1, -1, -1):
            variance = self.std[step] ** 2
            posterior = eye / variance + precision  # precision of q(s' | s)
            factors[step] = torch.linalg.cholesky(posterior)
            shifts[step], precisions[step] = shift, precision
            gains[step] = torch.cholesky_inverse(factors[step])
            # h_k in terms of m = F s + g: exp(constant' + shift' . m - m . precision' m / 2).
            kept = gains[step] / variance  # (I + std^2 L)^-1
            constant += 0.5 * float(shift @ gains[step] @ shift) - 0.5 * float(torch.logdet(eye + variance * precision))
            shift, precision = kept.T @ shift, precision @ kept
            precision = 0.5 * (precision + precision.T)
            transition, offset = self.transitions[step], self.offsets[step]
            constant += float(shift @ offset - 0.5 * offset @ precision @ offset)
            shift, precision = transition.T @ (shift - precision @ offset), transition.T @ precision @ transition
        self.factors = torch.stack(factors)  # [T, D, D] Cholesky factors of the transition precisions
        self.covariances = torch.stack(gains)  # [T, D, D]
        self.shifts = torch.stack(shifts)  # [T, D] b_k+1
        self.precisions = torch.stack(precisions)  # [T, D, D] L_k+1
        self.half_log_det = 0.5 * torch.logdet(eye + self.std[:, None, None] ** 2 * self.precisions)  # [T]

        # The base distribution, tilted by h_0.
        base_variance = float(prior.sigma[0]) ** 2
        base_precision = eye / base_variance + precision
        self.base_covariance = torch.linalg.inv(base_precision)
        self.base_mean = self.base_covariance @ shift
        self.log_partition = (
            constant
            + 0.5 * float(shift @ self.base_covariance @ shift)
            - 0.5 * float(torch.logdet(eye + base_variance * precision))
        )
        self.event_shape = (dim,)
        self.mean, self.covariance = self._end_point(eye)

    @property
    def variance(self) -> Tensor:
        """[D] posterior variance of every element of x."""
        return self.covariance.diagonal()

    def _end_point(self, eye: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [D] and covariance [D, D] of x under the posterior chain."""
        mean, covariance = self.base_mean, self.base_covariance
        for step in range(self.prior.num_steps):
            gain, variance = self.covariances[step], self.std[step] ** 2
            transition = gain @ self.transitions[step] / variance
            mean = gain @ ((self.transitions[step] @ mean + self.offsets[step]) / variance + self.shifts[step])
            covariance = transition @ covariance @ transition.T + gain
        return mean, covariance

    def log_ratio(
        self, next_state: Tensor, state: Tensor, step: Tensor, denoised: Tensor, measurement: Tensor
    ) -> Tensor:
        """[N] log q - log p of transitions, as `Posterior.log_ratio`; y is the one given at construction."""
        # With r = s' - m and e = b - L m:  r.e - e.S e / 2 - r.L r / 2 + log det(I + std^2 L) / 2,  S the covariance
        # of q. Written so, no two large numbers are subtracted, and float32 keeps five digits over the whole path.
        mean = self.prior.mean(state, step, denoised)
        offset = next_state - mean
        precision, covariance = self.precisions[step].to(state), self.covariances[step].to(state)
        drift = self.shifts[step].to(state) - torch.einsum("nij,nj->ni", precision, mean)
        quadratic = torch.einsum("ni,nij,nj->n", drift, covariance, drift)
        quadratic = quadratic + torch.einsum("ni,nij,nj->n", offset, precision, offset)
        return (offset * drift).sum(1) - 0.5 * quadratic + self.half_log_det[step].to(state)

    def sample_path(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """[count, T+1, D] exact draws of the whole chain given y, float64."""
        dim = len(self.base_mean)
        noise = torch.randn(count, self.prior.num_steps + 1, dim, generator=generator, dtype=torch.float64)
        state = self.base_mean + noise[:, 0] @ torch.linalg.cholesky(self.base_covariance).T
        states = [state]
        for step in range(self.prior.num_steps):
            mean = state @ self.transitions[step].T + self.offsets[step]
            mean = (mean / self.std[step] ** 2 + self.shifts[step]) @ self.covariances[step].T
            # L L^T = precision, so L^-T noise has the transition's covariance.
            spread = torch.linalg.solve_triangular(self.factors[step].T, noise[:, step + 1].T, upper=True).T
            state = mean + spread
            states.append(state)
        return torch.stack(states, dim=1)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """[count, D] exact draws of x given y, float64."""
        noise = torch.randn(count, len(self.mean), generator=generator, dtype=torch.float64)
        return self.mean + noise @ torch.linalg.cholesky(self.covariance).T


def _affine_steps(prior: Prior) -> tuple[Tensor, Tensor]:
    """F [T, D, D] and g [T, D] of the chain's transition means, read off the denoiser."""
    (dim,) = prior.event_shape
    probes = torch.cat([torch.zeros(1, dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64)])
    transitions, offsets = [], []
    for index in range(prior.num_steps):
        step = torch.full((dim + 1,), index)
        means = prior.mean(probes, step, prior.denoised(probes, step))
        offsets.append(means[0])
        transitions.append((means[1:] - means[0]).T)
    return torch.stack(transitions), torch.stack(offsets)
