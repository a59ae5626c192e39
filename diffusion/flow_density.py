r"""The density of x under a denoiser, as a number in nats, and draws from that very density: the probability flow.

On the circle alpha = cos t, sigma = d sin t, d being the standard deviation of x, noise at t = pi / 2 is carried to
data at t = 0 and back, without chance, by

    ds/dt = (cos t s - x^(s)) / sin t,    div ds/dt = (D cos t - tr J) / sin t,    J = dx^/ds,

and the density follows the change of volume (Song et al. 2021, arXiv 2011.13456, eq. 39; the angle as in Lu and Song
2024, arXiv 2410.11081, where data of variance d^2 in every direction do not move at all):

    log p(x) = log N(s_pi/2; 0, d^2 I) + integral of div ds/dt + D log cos t_0,    s_t0 = cos t_0 x.

t_0 = `FINEST`: this is the density of x with Gaussian noise of d tan t_0, a hundredth of its standard deviation, and
nothing is left out of its constant. The same x gives the same number, whatever it is in a batch with.

**Errors.** Fourth-order steps (Runge and Kutta's for s, Simpson's rule for the integral, whose mid-points are those of
Hermite's cubic), spaced evenly in the third root of t. Per direction in which x is Gaussian with variance v d^2, at 16
steps: in the mean below 2e-4 nats for v from 0.001 to 3, 6e-3 at v = 30, and at 32 steps a twentieth of that; of single
x more, the further out they lie (root mean square 4e-4 at 0.001, 1.4e-3 at 10, 1.5e-2 at 30). The trace is a sum over
all D unit vectors; with `spacing` n it is that over n x n combs of pixels n apart, with fixed random signs (probing:
Tang and Saad 2012, Numer. Linear Algebra Appl. 19, 485): exact where no pixel's estimate depends on another n or
more away, and otherwise off by a sum of such J_ij of random signs. That sum at one draw of x, for which the exact trace
is worked out once, is taken off: what is left is how much it varies with x, which is nothing if x is Gaussian. The
integral of exp(log p) over x differs from one by these errors alone; the denoiser need not be right.

**Cost** of N densities: 5 `num_steps` + 1 calls of the denoiser on N states, and 2 `num_steps` + 1 times D (or n^2, for
each channel) products with J, which for a network cost about one call each; with combs those of one exact density too,
once. A draw, or a `latent`, costs 4 `num_steps` calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion.prior import KnowsCovariance
from diffusion.stored_prior import load_denoiser, read_prior

__all__ = ["FlowDensity", "flow_density"]

FINEST = 0.01  # t_0
NOISE = math.pi / 2
ROOT = 3.0  # of t, in which steps are even: directions of small variance turn at small t
ROWS = 256  # states at a time, copies for probes among them, as the products keep a graph


class FlowDensity(nn.Module):
    """The density of x of shape `event_shape` under a denoiser, by its probability flow."""

    probes: Tensor

    def __init__(
        self,
        denoiser: nn.Module,
        event_shape: tuple[int, ...],
        data_std: float,
        *,
        num_steps: int = 16,
        spacing: int | None = None,
    ) -> None:
        """`denoiser` is frozen (see `diffusion.denoiser.Denoiser`), `data_std` the d of x.

        `spacing` is that of the combs, in pixels along the last two axes (of a vector, along its axis); None: the trace
        is exact.
        """
        super().__init__()
        if num_steps < 1 or (spacing is not None and spacing < 1):
            raise ValueError(f"num_steps and spacing must be at least 1, got {num_steps} and {spacing}")
        if not (data_std > 0 and math.isfinite(data_std)):
            raise ValueError(f"data_std must be a positive finite standard deviation, got {data_std}")
        self.denoiser = denoiser
        self.event_shape = tuple(event_shape)
        self.data_std = float(data_std)
        places = torch.linspace(FINEST ** (1 / ROOT), NOISE ** (1 / ROOT), num_steps + 1, dtype=torch.float64)
        self.times: list[float] = (places**ROOT).tolist()
        self.register_buffer("probes", trace_probes(self.event_shape, spacing), persistent=False)
        self._offset = 0.0 if len(self.probes) == math.prod(self.event_shape) else None  # of combs, when it is needed

    def latent(self, value: Tensor) -> Tensor:
        """[N, *D] where the flow carries x = `value` [N, *D], over d: for x of this density, N(0, I).

        Autograd goes through it. Of Gaussian x it is x less its mean, whitened.
        """
        state = math.cos(FINEST) * self._typed(value)
        for start, end in zip(self.times[:-1], self.times[1:], strict=True):
            state = self._step(state, start, end, self._slope(state, start))
        return state / self.data_std

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """[count, *D] draws of x: the flow of noise the other way."""
        shape, device = (count, *self.event_shape), self.probes.device
        return self._carried(torch.randn(shape, generator=generator, dtype=self._dtype, device=device))

    def _carried(self, white: Tensor) -> Tensor:
        """The x of latents [N, *D]."""
        state = self.data_std * white
        for start, end in zip(self.times[:0:-1], self.times[-2::-1], strict=True):
            state = self._step(state, start, end, self._slope(state, start))
        return state / math.cos(FINEST)

    @torch.no_grad()
    def log_prob(self, value: Tensor) -> Tensor:
        """[N] float64 log p(x) in nats for x = `value` [N, *D], without a gradient; see `score`."""
        if tuple(value.shape[1:]) != self.event_shape:
            raise ValueError(f"x must be [N, {', '.join(map(str, self.event_shape))}], got {list(value.shape)}")
        if self._offset is None:
            generator = torch.Generator().manual_seed(0)  # on the processor, so that every device has the same offset
            white = torch.randn(1, *self.event_shape, generator=generator, dtype=self._dtype, device="cpu")
            draw, unit = self._carried(white.to(self.probes.device)), trace_probes(self.event_shape, None)
            self._offset = float(self._log_prob(draw, unit.to(self.probes)) - self._log_prob(draw, self.probes))
        return self._offset + torch.cat([self._log_prob(rows, self.probes) for rows in self._typed(value).split(ROWS)])

    def _log_prob(self, value: Tensor, probes: Tensor) -> Tensor:
        state = math.cos(FINEST) * value
        slope, divergence = self._slope_and_divergence(state, FINEST, probes)
        dim = value[0].numel()
        total = torch.full_like(divergence, dim * math.log(math.cos(FINEST)))
        for start, end in zip(self.times[:-1], self.times[1:], strict=True):
            width = end - start
            ahead = self._step(state, start, end, slope)
            slope_ahead, divergence_ahead = self._slope_and_divergence(ahead, end, probes)
            middle = (state + ahead) / 2 + width / 8 * (slope - slope_ahead)
            _, divergence_middle = self._slope_and_divergence(middle, (start + end) / 2, probes)
            total = total + width / 6 * (divergence + 4 * divergence_middle + divergence_ahead)
            state, slope, divergence = ahead, slope_ahead, divergence_ahead
        white = (state.double() / self.data_std).flatten(1)
        return total - 0.5 * white.square().sum(1) - dim * (math.log(self.data_std) + 0.5 * math.log(2 * math.pi))

    @torch.no_grad()
    def score(self, value: Tensor, level: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """(gradient, v -> -Hessian v) of the log density at x = `value` [N, *D], all [N, *D], in one call.

        They are those of x with Gaussian noise of tau = `level` d, by Tweedie's formulae: (x^ - x) / tau^2, and
        (v - Cov(x | s) v / tau^2) / tau^2. An error of x^ is divided by tau^2: of a network both are rough where
        `level` is small.
        """
        angle, tau = math.atan(level), level * self.data_std
        value = self._typed(value)
        denoised, product = self._jacobian(math.cos(angle) * value, angle)
        # J = Cov(x | s) alpha / sigma^2, and sigma / alpha = tau
        return (denoised - value) / tau**2, lambda vector: (vector - math.cos(angle) * product(vector)) / tau**2

    @property
    def _dtype(self) -> torch.dtype:
        """That of a network's weights; denoisers without, as those in closed form, work in float64."""
        first = next(self.denoiser.parameters(), None)
        return torch.float64 if first is None else first.dtype

    def _typed(self, value: Tensor) -> Tensor:
        return value.to(self._dtype)

    def _levels(self, state: Tensor, time: float) -> tuple[Tensor, Tensor]:
        ones = state.new_ones(len(state), dtype=torch.float64)
        return math.cos(time) * ones, self.data_std * math.sin(time) * ones

    def _slope(self, state: Tensor, time: float) -> Tensor:
        """[N, *D] ds/dt."""
        denoised: Tensor = self.denoiser(state, *self._levels(state, time))
        return (math.cos(time) * state - denoised) / math.sin(time)

    def _step(self, state: Tensor, start: float, end: float, slope: Tensor) -> Tensor:
        """Runge and Kutta's step, `slope` being that at `start`."""
        width, middle = end - start, (start + end) / 2
        second = self._slope(state + width / 2 * slope, middle)
        third = self._slope(state + width / 2 * second, middle)
        fourth = self._slope(state + width * third, end)
        return state + width / 6 * (slope + 2 * second + 2 * third + fourth)

    def _slope_and_divergence(self, state: Tensor, time: float, probes: Tensor) -> tuple[Tensor, Tensor]:
        """Ds/dt [N, *D], and its divergence [N] float64."""
        count = len(state)
        copies = min(max(ROWS // count, 1), len(probes))  # of few states, several probes are asked for at a time
        denoised, product = self._jacobian(state.repeat(copies, *[1] * (state.ndim - 1)), time)
        trace = torch.zeros(count, dtype=torch.float64, device=state.device)
        for part in probes.to(state).split(copies):
            vector = torch.zeros_like(denoised)
            vector[: len(part) * count] = part.repeat_interleave(count, 0)
            trace += (vector * product(vector)).reshape(copies, count, -1).double().sum((0, 2))
        cosine, sine = math.cos(time), math.sin(time)
        return (cosine * state - denoised[:count]) / sine, (state[0].numel() * cosine - trace) / sine

    def _jacobian(self, state: Tensor, time: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """x^ [N, *D], and v -> J^T v."""
        alpha, sigma = self._levels(state, time)
        if isinstance(self.denoiser, KnowsCovariance):
            denoised, covariance = self.denoiser.covariance_given(state, alpha, sigma)
            scale = math.cos(time) / (self.data_std * math.sin(time)) ** 2
            return denoised, lambda vector: scale * covariance(vector)
        with torch.enable_grad():
            leaf = state.detach().requires_grad_(True)
            estimate: Tensor = self.denoiser(leaf, alpha, sigma)

        def product(vector: Tensor) -> Tensor:
            (pulled,) = torch.autograd.grad(estimate, leaf, vector.to(estimate), retain_graph=True)
            return pulled

        return estimate.detach(), product


def trace_probes(event_shape: tuple[int, ...], spacing: int | None) -> Tensor:
    """[P, *D] float32 the probes v of a trace, sum of v^T J v: unit vectors, or combs of fixed random signs."""
    dim = math.prod(event_shape)
    if spacing is None:
        return torch.eye(dim).reshape(dim, *event_shape)
    grid = event_shape[-2:]
    teeth = torch.zeros(grid, dtype=torch.int64)
    for axis, size in enumerate(grid):
        place = (torch.arange(size) % spacing).reshape(-1, *[1] * (len(grid) - 1 - axis))
        teeth = teeth * min(spacing, size) + place
    count = int(teeth.max()) + 1
    planes = torch.arange(dim // teeth.numel()).reshape(-1, *[1] * len(grid))
    number = (planes * count + teeth).reshape(event_shape)
    signs = torch.randint(2, event_shape, generator=torch.Generator().manual_seed(0)).float() * 2 - 1
    return torch.stack([signs * (number == comb) for comb in range(int(number.max()) + 1)])


def flow_density(name_or_folder: str | Path, *, num_steps: int = 16, spacing: int | None = None) -> FlowDensity:
    """The density of a stored prior, by name or folder.

    Raises:
        StoredPriorError: no such prior, or one that cannot be read.
    """
    stored, denoiser = read_prior(name_or_folder), load_denoiser(name_or_folder)
    return FlowDensity(denoiser, stored.event_shape, stored.data_std, num_steps=num_steps, spacing=spacing)
