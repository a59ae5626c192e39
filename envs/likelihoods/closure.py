r"""Gaussian noise of closures, of which some are angles: correlated, as closures share baselines.

With r = y - A(x), its first P elements moved to (-pi, pi] by whole turns, and covariance C,

    log p(y | x) = -r^T C^-1 r / 2 - log det C / 2 - (m / 2) log(2 pi).

On the circle this is a Gaussian that is cut off at half a turn, not the wrapped one: it integrates to one up to the
probability beyond, at most sum_i erfc(pi / (sqrt(2) c_i)) for the standard deviations c_i of the angles. Those are
at most `MAX_STD` = 0.75 rad, for which a term is 3e-5; of 0.5 rad it is 3e-10. Closures are Gaussian where visibilities
have a high signal to noise, with this covariance (Blackburn et al. 2020, ApJ 894, 31).
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs.likelihoods.base import AutogradLikelihood, noiseless
from envs.likelihoods.gaussian import LOG_TWO_PI
from envs.operators.closures import Closures, wrapped

__all__ = ["ClosureLikelihood"]

MAX_STD = 0.75  # radians


class ClosureLikelihood(AutogradLikelihood):
    """y = A(x) + noise of covariance C, the first elements angles."""

    factor: Tensor
    whitening: Tensor

    def __init__(self, operator: Closures, covariance: Tensor) -> None:
        """`covariance` C [M, M] of the closures that `operator` gives, in radians and nats.

        Raises:
            ValueError: another shape, no covariance matrix, or angles too uncertain to be Gaussian.
        """
        super().__init__()
        self.operator = operator
        self.measurement_shape = tuple(operator.measurement_shape)
        count = self.measurement_shape[0]
        covariance = covariance.double()
        if tuple(covariance.shape) != (count, count):
            raise ValueError(f"covariance must be [{count}, {count}], got {tuple(covariance.shape)}")
        std = covariance.diagonal()[: operator.num_phases].sqrt()
        if len(std) and not float(std.max()) <= MAX_STD:
            raise ValueError(
                f"closure phase {int(std.argmax())} has a standard deviation of {float(std.max()):.3g} rad; a Gaussian "
                f"of angles needs at most {MAX_STD}: average longer, or keep visibilities of a higher signal to noise"
            )
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if int(failed):
            raise ValueError(f"covariance must be positive definite: closure {int(failed) - 1} depends on those before")
        identity = torch.eye(count, dtype=torch.float64)
        self.register_buffer("factor", factor)
        self.register_buffer("whitening", torch.linalg.solve_triangular(factor, identity, upper=False))
        self._log_normaliser = float(factor.diagonal().log().sum()) + 0.5 * count * LOG_TWO_PI

    def standardised(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `StandardisedLikelihood`; whitened."""
        residual = measurement.to(value) - noiseless(self.operator, value)
        angles = self.operator.num_phases
        residual = torch.cat([wrapped(residual[:, :angles]), residual[:, angles:]], 1)
        return residual @ self.whitening.to(residual).T

    def log_prob(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `Likelihood`."""
        return -0.5 * self.standardised(value, measurement).square().sum(1) - self._log_normaliser

    def sample(self, value: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `SimulableLikelihood`; angles in (-pi, pi]."""
        clean = noiseless(self.operator, value)
        noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)
        drawn = clean + noise @ self.factor.to(clean).T
        angles = self.operator.num_phases
        return torch.cat([wrapped(drawn[:, :angles]), drawn[:, angles:]], 1)
