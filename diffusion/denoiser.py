r"""Denoisers: estimates x^(s) = E[x | s = alpha x + sigma eps].

`GaussianDenoiser` and `MixtureDenoiser` are exact: their data distributions are a Gaussian, or a Gaussian mixture whose
components share one covariance (isotropic or full; thousands of components are fine). For component means mu_i and
covariance C the noised component is N(alpha mu_i, alpha^2 C + sigma^2 I), so with responsibilities w_i(s)

    x^(s) = sum_i w_i(s) [mu_i + alpha C (alpha^2 C + sigma^2 I)^-1 (s - alpha mu_i)].

`NetworkDenoiser` wraps a network F with the preconditioning of Karras et al. 2022 (arXiv 2206.00364) for x of standard
deviation d: with e^2 = alpha^2 d^2 + sigma^2,

    x^(s) = (alpha d^2 / e^2) s + (sigma d / e) F(s / e, log-SNR),

for x less its mean, where that is given: a network then need not learn it, and F = 0 is exact for N(mean, d^2 I).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from diffusion.kernel import expand

__all__ = ["DataSampler", "Denoiser", "Density", "GaussianDenoiser", "MixtureDenoiser", "NetworkDenoiser"]

# A responsibility of e^-60 changes no digit, not even of a float64; below e^-87 it would be a denormal float32, on
# which the matrix products after the softmax are several times slower.
NEGLIGIBLE_NATS = 60.0
ROWS = 4_096  # of means in float64 at a time


class Denoiser(Protocol):
    """Anything that estimates x from s at a noise level."""

    def __call__(self, state: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """[N, *D] estimate of x for `state` [N, *D] at levels `alpha` [N], `sigma` [N]."""
        ...


@runtime_checkable
class Density(Protocol):
    """A denoiser whose data distribution has a known density."""

    def log_prob(self, value: Tensor) -> Tensor:
        """[N] log p(x) in nats for x = `value` [N, *D]."""
        ...


@runtime_checkable
class DataSampler(Protocol):
    """A denoiser whose data distribution can be sampled exactly."""

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """[count, *D] exact draws of x, float64."""
        ...


class GaussianDenoiser(nn.Module):
    """Exact denoiser of x ~ N(mean, covariance), x of shape [D]."""

    mean: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor | None

    def __init__(self, mean: Tensor, covariance: Tensor | float) -> None:
        """`mean` [D]; `covariance` a variance (isotropic) or [D, D] symmetric positive definite."""
        super().__init__()
        eigenvalues, eigenvectors = _eigen(covariance, len(mean))
        self._converted: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor, Tensor | None]] = {}
        self.register_buffer("mean", mean.double())
        self.register_buffer("eigenvalues", eigenvalues)
        self.register_buffer("eigenvectors", eigenvectors)

    def forward(self, state: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """See `Denoiser`."""
        mean, gain = self._constants(state)[0], self._gain(state, alpha, sigma)
        return mean + self._scaled(gain, state - expand(alpha, state) * mean)

    def pull_back(
        self, state: Tensor, alpha: Tensor, sigma: Tensor, cotangent: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(x^, J^T v), see `diffusion.prior.Prior.pull_back`: x^ is linear in s, and J symmetric."""
        mean, gain = self._constants(state)[0], self._gain(state, alpha, sigma)
        denoised = mean + self._scaled(gain, state - expand(alpha, state) * mean)
        return denoised, self._scaled(gain, cotangent(denoised))

    def covariance_given(
        self, state: Tensor, alpha: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """x^ and v -> Cov(x | s) v, see `diffusion.prior.Prior.covariance_given`; it is that of any state."""
        mean, eigenvalues, _ = self._constants(state)
        level, noise = expand(alpha, state), expand(sigma, state).square()
        spread = eigenvalues * noise / (level**2 * eigenvalues + noise)
        denoised = mean + self._scaled(self._gain(state, alpha, sigma), state - level * mean)
        return denoised, lambda vector: self._scaled(spread, vector)

    def _gain(self, state: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """[N, D] slopes of x^ along the eigenvectors."""
        alpha, sigma, eigenvalues = expand(alpha, state), expand(sigma, state), self._constants(state)[1]
        return alpha * eigenvalues / (alpha**2 * eigenvalues + sigma**2)

    def _scaled(self, gain: Tensor, value: Tensor) -> Tensor:
        basis = self._constants(value)[2]
        return gain * value if basis is None else (gain * (value @ basis)) @ basis.T

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mean, eigenvalues and eigenvectors as `like` is; converted once, as of many dimensions they are large."""
        key = (like.dtype, like.device)
        if key not in self._converted:
            basis = None if self.eigenvectors is None else self.eigenvectors.to(like)
            self._converted[key] = (self.mean.to(like), self.eigenvalues.to(like), basis)
        return self._converted[key]

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._converted.clear()

    def log_prob(self, value: Tensor) -> Tensor:
        """[N] log density of x = `value` [N, D], float64."""
        centred = value.double() - self.mean
        flat = centred if self.eigenvectors is None else centred @ self.eigenvectors
        scale = self.eigenvalues.sqrt()
        constant = scale.log().sum() + 0.5 * len(scale) * math.log(2 * math.pi)
        return -0.5 * (flat / scale).square().sum(1) - constant

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """[count, D] exact draws of x, float64."""
        noise = torch.randn(count, len(self.mean), generator=generator, dtype=torch.float64) * self.eigenvalues.sqrt()
        return self.mean + (noise if self.eigenvectors is None else noise @ self.eigenvectors.T)

    def denoising_variance(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """[K] exact E |x - x^|^2 / D at levels `alpha`, `sigma` [K]."""
        noise = sigma.square()[:, None]
        return (self.eigenvalues * noise / (alpha.square()[:, None] * self.eigenvalues + noise)).mean(1)


class MixtureDenoiser(nn.Module):
    """Exact denoiser of a Gaussian mixture whose components share one covariance; x of shape `event_shape`."""

    means: Tensor
    log_weights: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor | None

    def __init__(
        self,
        means: Tensor,
        covariance: Tensor | float,
        log_weights: Tensor | None = None,
        event_shape: tuple[int, ...] | None = None,
    ) -> None:
        """`means` [C, D]; `covariance` a variance (isotropic) or [D, D]; `log_weights` [C], equal if None."""
        super().__init__()
        self.event_shape, weights = of_means(means, log_weights, event_shape)
        eigenvalues, eigenvectors = _eigen(covariance, means.shape[1])
        self._converted: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}
        # float32 stays as it is: of tens of thousands of images a copy in float64 is hundreds of megabytes
        self.register_buffer("means", means if means.dtype == torch.float32 else means.double())
        self.register_buffer("log_weights", weights)
        self.register_buffer("eigenvalues", eigenvalues)
        self.register_buffer("eigenvectors", eigenvectors)

    @property
    def covariance(self) -> Tensor:
        """[D, D] shared component covariance, float64."""
        if self.eigenvectors is None:
            return torch.diag(self.eigenvalues)
        return (self.eigenvectors * self.eigenvalues) @ self.eigenvectors.T

    def responsibilities(self, state: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """[N, C] posterior probability of each component given `state` [N, *D]."""
        flat = state.flatten(1)
        return MixtureDenoiser._weights(self, flat, alpha.to(flat)[:, None], sigma.to(flat)[:, None])[0]

    def classify(self, value: Tensor) -> Tensor:
        """[N, C] probability of each component given a clean x = `value` [N, *D], in the precision of the means."""
        count = len(value)
        return self.responsibilities(value.to(self.means), torch.ones(count), torch.zeros(count))

    def forward(self, state: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """See `Denoiser`."""
        flat = state.flatten(1)
        alpha, sigma = alpha.to(flat)[:, None], sigma.to(flat)[:, None]
        weights, rotated, means = self._weights(flat, alpha, sigma)
        mean = weights @ means  # [N, D] in the eigenbasis
        eigenvalues = self._constants(flat)[2]
        gain = alpha * eigenvalues / (alpha**2 * eigenvalues + sigma**2)
        denoised = mean + gain * (rotated - alpha * mean)
        if self.eigenvectors is not None:
            denoised = denoised @ self.eigenvectors.to(flat).T
        return denoised.reshape(state.shape)

    def pull_back(
        self, state: Tensor, alpha: Tensor, sigma: Tensor, cotangent: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(x^, J^T v) for J = dx^/ds and v = `cotangent`(x^), all [N, *D]; see `diffusion.prior.Prior.pull_back`.

        J = (alpha / sigma^2) Cov(x | s), the second-order Tweedie formula.
        """
        denoised, covariance = self.covariance_given(state, alpha, sigma)
        slope = expand(alpha.to(state) / sigma.to(state).square(), state)
        return denoised, slope * covariance(cotangent(denoised))

    def covariance_given(
        self, state: Tensor, alpha: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """x^ and v -> Cov(x | s) v, both [N, *D]; see `diffusion.prior.Prior.covariance_given`.

        With the share g = sigma^2 / (alpha^2 C + sigma^2) of a component mean that is left in its posterior mean, in
        the eigenbasis Cov(x | s) = C g + Cov_w(g mu_i). Two matrix products, and no graph.
        """
        flat = state.flatten(1)
        alpha, sigma = alpha.to(flat)[:, None], sigma.to(flat)[:, None]
        weights, rotated, means = self._weights(flat, alpha, sigma)
        basis = None if self.eigenvectors is None else self.eigenvectors.to(flat)
        eigenvalues = self._constants(flat)[2]
        mean = weights @ means
        noise = sigma * sigma
        precision = 1 / (alpha * alpha * eigenvalues + noise)
        left = noise * precision
        denoised = mean + alpha * eigenvalues * precision * (rotated - alpha * mean)
        denoised = denoised if basis is None else denoised @ basis.T
        # Late in a chain few components have a weight, and products with the covariance are then nearly free.
        kept = (weights > math.exp(-NEGLIGIBLE_NATS / 2)).any(0)
        weights, means = (weights, means) if bool(kept.all()) else (weights[:, kept], means[kept])

        def product(vector: Tensor) -> Tensor:
            rotated = vector.flatten(1) if basis is None else vector.flatten(1) @ basis
            weighted = weights * ((left * rotated) @ means.T)  # [N, C]
            spread = weighted @ means - mean * weighted.sum(1, keepdim=True)
            spread = left * (eigenvalues * rotated + spread)
            return (spread if basis is None else spread @ basis.T).reshape(state.shape)

        return denoised.reshape(state.shape), product

    def _weights(self, flat: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Responsibilities [N, C], and the states and means in the eigenbasis.

        The squared distances are expanded and |s|^2 falls out of the softmax, so the cost is one matrix product.
        """
        means, squares, eigenvalues, log_weights = self._constants(flat)
        if self.eigenvectors is not None:
            flat = flat @ self.eigenvectors.to(flat)
        scaled = alpha / (alpha * alpha * eigenvalues + sigma * sigma)  # [N, D]
        norm = alpha * (scaled[:, :1] if self.eigenvectors is None else scaled)  # one variance needs one column
        logits = torch.addmm(torch.addmm(log_weights, norm, squares), scaled * flat, means.T)
        logits = logits.clamp_min(logits.amax(1, keepdim=True) - NEGLIGIBLE_NATS)
        return logits.softmax(1), flat, means

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._converted.clear()

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means [C, D] and -squares / 2 transposed, both in the eigenbasis, eigenvalues, log-weights.

        Converted once. With one variance for all directions the squares are summed over D.
        """
        key = (like.dtype, like.device)
        if key not in self._converted:
            means = self.means if self.eigenvectors is None else self.means.double() @ self.eigenvectors
            squares = -0.5 * means.double().square()
            squares = squares.sum(1, keepdim=True) if self.eigenvectors is None else squares
            parts = (means, squares.T.contiguous(), self.eigenvalues, self.log_weights)
            self._converted[key] = tuple(part.to(like) for part in parts)
        means, squares, eigenvalues, log_weights = self._converted[key]
        return means, squares, eigenvalues, log_weights

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """[count, *D] exact draws of x, float64."""
        rows = torch.multinomial(self.log_weights.exp(), count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        spread = noise * self.eigenvalues.sqrt()
        if self.eigenvectors is not None:
            spread = spread @ self.eigenvectors.T
        return (self.means[rows].double() + spread).reshape(count, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """[N] log density of x = `value` [N, *D], float64."""
        flat = value.double().flatten(1)
        scale = self.eigenvalues.sqrt()
        flat = (flat if self.eigenvectors is None else flat @ self.eigenvectors) / scale
        parts = []
        for means, log_weights in zip(self.means.split(ROWS), self.log_weights.split(ROWS), strict=True):
            means = means.double()
            centres = (means if self.eigenvectors is None else means @ self.eigenvectors) / scale
            parts.append((log_weights - 0.5 * torch.cdist(flat, centres).square()).logsumexp(1))
        constant = scale.log().sum() + 0.5 * len(scale) * math.log(2 * math.pi)
        return torch.stack(parts).logsumexp(0) - constant

    def denoising_variance(self, alpha: Tensor, sigma: Tensor, count: int | None = None, seed: int = 0) -> Tensor:
        """[K] Monte-Carlo E |x - x^|^2 / D at levels `alpha`, `sigma` [K], from `count` draws with a fixed seed."""
        if count is None:  # 32,768 numbers give each level to 1 % or better
            count = max(32_768 // self.means.shape[1], 500)
        generator = torch.Generator().manual_seed(seed)
        clean = self.sample(count, generator)
        noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
        errors = []
        for level, spread in zip(alpha, sigma, strict=True):
            state = level * clean + spread * noise
            estimate = self(state, level.expand(count), spread.expand(count))
            errors.append((estimate - clean).square().mean())
        return torch.stack(errors)


class NetworkDenoiser(nn.Module):
    """A trainable denoiser: a network F(state [N, *D], log_snr [N]) -> [N, *D] under Karras preconditioning."""

    mean: Tensor | None

    def __init__(self, network: nn.Module, data_std: float = 1.0, mean: Tensor | None = None) -> None:
        """`data_std` is d; `mean` [*D] is that of x, zero if None."""
        super().__init__()
        if not data_std > 0:
            raise ValueError(f"data_std must be positive, got {data_std}")
        self.network = network
        self.data_std = data_std
        self.register_buffer("mean", mean)

    def forward(self, state: Tensor, alpha: Tensor, sigma: Tensor, measurement: Tensor | None = None) -> Tensor:
        """See `Denoiser`; y = `measurement` [N, *Y] is for a network that was given eyes for it."""
        alpha, sigma = alpha.to(state), sigma.to(state)
        mean = None if self.mean is None else self.mean.to(state)
        state = state if mean is None else state - expand(alpha, state) * mean
        spread = (alpha.square() * self.data_std**2 + sigma.square()).sqrt()
        seen = () if measurement is None else (measurement,)
        estimate = self.network(state / expand(spread, state), log_snr(alpha * self.data_std, sigma), *seen)
        skip = expand(alpha * self.data_std**2 / spread.square(), state)
        denoised = skip * state + expand(sigma * self.data_std / spread, state) * estimate
        return denoised if mean is None else mean + denoised


def log_snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    """log(alpha / sigma), clamped to [-10, 10] so that pure noise has a finite embedding."""
    return (alpha / sigma.clamp_min(1e-20)).clamp_min(1e-20).log().clamp(-10.0, 10.0)


def of_means(
    means: Tensor, log_weights: Tensor | None, event_shape: tuple[int, ...] | None
) -> tuple[tuple[int, ...], Tensor]:
    """Shape of x, and the normalised log-weights [C] float64, of a mixture around `means` [C, D]; see its options."""
    count, dim = means.shape
    shape = (dim,) if event_shape is None else event_shape
    if math.prod(shape) != dim:
        raise ValueError(f"event_shape {shape} does not have the {dim} dimensions of the means")
    weights = means.new_zeros(count, dtype=torch.float64) if log_weights is None else log_weights.double()
    if weights.shape != (count,):
        raise ValueError(f"log_weights must be [{count}] to match the means, got {tuple(weights.shape)}")
    return shape, weights - weights.logsumexp(0)


def _eigen(covariance: Tensor | float, dim: int) -> tuple[Tensor, Tensor | None]:
    """Eigenvalues [D] and eigenvectors [D, D], float64; of a variance the axes themselves, for which None stands."""
    if not isinstance(covariance, Tensor):
        if not covariance > 0:
            raise ValueError(f"the variance must be positive, got {covariance}")
        return torch.full((dim,), float(covariance), dtype=torch.float64), None
    if covariance.shape != (dim, dim):
        raise ValueError(f"the covariance must be [{dim}, {dim}] to match the mean, got {tuple(covariance.shape)}")
    asymmetry = float((covariance - covariance.T).abs().max())
    if asymmetry > 1e-5 * float(covariance.abs().max()):  # eigh would read one triangle and ignore the other
        raise ValueError(f"the covariance must be symmetric, got one {asymmetry:.3g} off its transpose")
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance.double())
    if not float(eigenvalues.min()) > 0:
        raise ValueError(
            f"the covariance must be positive definite, got smallest eigenvalue {float(eigenvalues.min())}"
        )
    return eigenvalues, eigenvectors
