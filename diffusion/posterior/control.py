r"""The `control` form: a small network for u beside the frozen prior.

    u_k = w_k (r_k F(s_k, x^_k, g_k, f_k, y; k) + h(s_k, x^_k, g_k, f_k; k) + c_k g_k) + c'_k f_k,
    g_k = e_k grad_x log p(y | x) at x = x^_k,    f_k = std_k grad_s log p(y | x^(s)) at s = s_k,

with learned gains c_k and c'_k per step. e_k is the root mean square error of x^_k, that is, how far y can move the
estimate of x; w_k = b_k e_k / std_k turns a shift of the estimate by e_k into one of the transition, in its own
standard deviations. r_k = e_k / max e takes the network back where the state has settled x already and the gradients
say the rest: there w_k is near one, and an error of F would cost most. f_k is diffusion posterior sampling's guidance
(Chung et al. 2023, arXiv 2209.14687): it reaches what y does not see through the prior's own correlations.

With `marginal_gradient` g_k is that of pseudoinverse guidance (Song et al. 2023, ICLR), which allows for the error of
x^_k: for y = A x + noise

    g_k = e_k grad_m log p(y | x ~ N(m, e_k^2 I)) at m = x^_k    = e_k A^T (e_k^2 A A^T + sigma^2 I)^-1 (y - A x^_k).

Given x ~ N(x^_k, e_k^2 I) the gain c_k = 1 is then right; of the other g_k no gain is, where A is a blur.

With `shift` a feature m_k, by how much y moves x^ in units of e_k, takes the place of f_k:

    u_k = w_k (r_k F(s_k, x^_k, g_k, m_k, y; k) + h(s_k, x^_k, g_k, m_k; k) + c_k g_k + c'_k m_k).

It can be the shift that allows for the covariance of x given s (`diffusion.newton`), and then has no g_k beside it,

    m_k = S (I + H S)^-1 grad_x log p(y | x) / e_k at x = x^_k,    S = Cov(x | s_k),

of which c'_k = 1 is right where S and H say all there is to say: a Gaussian prior, or a late step of any. Or it is a
repeated one. With S = e_k^2 I, the state is moved by alpha_k times that shift of its x^, and the prior asked again what
x is; after J such steps from s to s^J

    m_k = (x^(s^J) - x^(s)) / e_k.

It is an estimate that the prior and y agree on, and sees past the mode that s alone is nearest to: as the alternation
of denoising and data consistency in plug-and-play methods (Zhu et al. 2023, arXiv 2305.08995). Or both: the state is
moved J times by the shift that allows for the covariance, and m_k has that of the last x^ too,

    m_k = (x^(s^J) + S (I + H S)^-1 grad_x log p(y | x) - x^(s)) / e_k,    S and H at s^J and its x^.

Or the prior is taken for a mixture of Gaussians, if it is none for one of its draws, and the posterior for another
(`envs.variational`), and m_k = (x^_v(s) - x^(s)) / e_k with the estimate x^_v under that mixture: c'_k = 1 is right as
far as it is the posterior, for every step and whatever the modes.

h is one small network that every element of x goes through by itself, as in learned optimisers (Andrychowicz et al.
2016, arXiv 1606.04474): what a gradient says about its own element is learned from all elements at once. It makes the
difference where x has many elements that hardly depend on each other.

The last layers of F and h and all gains start at zero, so u = 0: the posterior starts as the prior. Only c'_k of a
shift may start elsewhere: at 1 it is the guide, which few updates do not better by much. The root mean square r of u is
bounded smoothly, to r / sqrt(1 + (r / 3)^2): no posterior moves a transition by three of its standard deviations in
every direction, but a chain that runs away would, and on paths so far out the gradient is noise that does not bring it
back. Likelihood gradients as features with learned gains are due to Zhang and Chen 2022 (arXiv 2111.15141) and Vargas
et al. 2023 (2302.13834).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffusion.kernel import expand
from diffusion.network import MLP, Elementwise, UNet
from diffusion.posterior.base import Guide, LikelihoodGradient, MarginalGradient, Posterior, bounded
from diffusion.prior import Prior

__all__ = ["ControlPosterior"]

MAX_FEATURE = 5.0  # far from the data a gradient can be arbitrarily long; its direction still tells
MAX_CONTROL = 3.0  # standard deviations of the transition
MIN_SCALE = 0.05  # of w_k, below which f_k / w_k would blow up as an input of the network


class ControlPosterior(Posterior):
    """u from an MLP (vectors) or a U-Net (images [C, H, W])."""

    def __init__(
        self,
        prior: Prior,
        measurement_shape: tuple[int, ...],
        gradient: LikelihoodGradient | None = None,
        network: str = "mlp",
        hidden: int = 256,
        depth: int = 3,
        elementwise: int = 0,
        *,
        guided: bool = True,
        marginal_gradient: MarginalGradient | None = None,
        shift: Guide | None = None,
        initial_gain: float = 0.0,
    ) -> None:
        """Makes the network; `hidden` is the MLP's width or the U-Net's first channel count, `elementwise` h's width.

        With a U-Net, whose own layers are as local, or with `elementwise` 0 there is no h.
        `gradient` None leaves g_k and f_k out; `guided` False, or a `shift`, leaves f_k out. A U-Net sees y through
        gradients and the shift only. `initial_gain` is what c'_k of the shift starts from.
        """
        super().__init__(prior)
        self._gradient = gradient
        self._marginal_gradient = marginal_gradient
        self._shift = shift
        self._guided = guided and shift is None and gradient is not None
        uses = (self._gradient is not None, self._guided, shift is not None)
        shape, features = prior.event_shape, 2 + sum(uses)
        dim = torch.Size(shape).numel()
        self.network: MLP | UNet
        if network == "mlp":
            inputs = features * dim + torch.Size(measurement_shape).numel()
            self.network = MLP(inputs, dim, hidden, depth)
        elif network == "unet":
            if len(shape) != 3:
                raise ValueError(f"a U-Net needs x of shape [C, H, W], got {shape}")
            self.network = UNet(features * shape[0], shape[0], channels=(hidden, 2 * hidden, 2 * hidden))
        else:
            raise ValueError(f"unknown network {network!r}; expected 'mlp' or 'unet'")
        self.elementwise = Elementwise(features, elementwise) if network == "mlp" and elementwise else None
        for part in (self.network, self.elementwise):
            for parameter in part.head.parameters() if part is not None else ():
                nn.init.zeros_(parameter)
        self.gain = nn.Parameter(torch.tensor([[0.0], [initial_gain]]).repeat(1, prior.num_steps))
        scale = prior.denoised_coefficient * prior.uncertainty / prior.std
        self.register_buffer("_scale", scale, persistent=False)
        self.register_buffer("_unsettled", prior.uncertainty / prior.uncertainty.max(), persistent=False)

    _scale: Tensor
    _unsettled: Tensor

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """See `Posterior.networks`."""
        return (self.network,) if self.elementwise is None else (self.network, self.elementwise)

    @property
    def uses_guidance(self) -> bool:
        """See `Posterior.uses_guidance`."""
        return self._guided or self._shift is not None

    @property
    def differentiable(self) -> bool:
        """See `Posterior.differentiable`; a likelihood gives its gradient without that gradient's own derivative."""
        return self._gradient is None and self._shift is None

    @property
    def sees_measurement(self) -> bool:
        """See `Posterior.sees_measurement`."""
        return isinstance(self.network, MLP) or not self.differentiable

    def control(
        self, state: Tensor, step: Tensor, denoised: Tensor, measurement: Tensor, guidance: Tensor | None = None
    ) -> Tensor:
        """See `Posterior.control`."""
        prior, scale = self.prior, expand(self._scale[step], state)
        spread = (prior.alpha[step].square() * prior.data_std**2 + prior.sigma[step].square()).sqrt()
        inputs = [state / expand(spread, state), denoised / prior.data_std]
        shift: Tensor | float = 0.0
        outside: Tensor | float = 0.0
        if self._gradient is not None:
            uncertainty = prior.uncertainty[step]
            if self._marginal_gradient is None:
                gradient = self._gradient(denoised, measurement)
            else:
                gradient = self._marginal_gradient(denoised, measurement, uncertainty.square())
            gradient = bounded(expand(uncertainty, state) * gradient, MAX_FEATURE)
            inputs.append(gradient)
            shift = expand(self.gain[0, step], state) * gradient
        if self._guided:
            pulled = self._guidance(state, step, measurement) if guidance is None else guidance
            pulled = bounded(expand(prior.std[step], state) * pulled, MAX_FEATURE)
            inputs.append(pulled / scale.clamp_min(MIN_SCALE))
            outside = expand(self.gain[1, step], state) * pulled
        if self._shift is not None:
            moved = self._shift(state, step, measurement)[1] if guidance is None else guidance
            moved = bounded(moved / expand(prior.uncertainty[step], state), MAX_FEATURE)
            inputs.append(moved)
            shift = shift + expand(self.gain[1, step], state) * moved
        level = step.to(state) * (20.0 / prior.num_steps) - 10.0  # the range of a log-SNR
        with self.autocast(state.device):
            if isinstance(self.network, MLP):
                flat = torch.cat([value.flatten(1) for value in (*inputs, measurement.to(state))], dim=1)
                output = self.network(flat, level).reshape(state.shape)
            else:
                output = self.network(torch.cat(inputs, dim=1), level)
            each = None if self.elementwise is None else self.elementwise(torch.stack(inputs, -1), level)
        shift = shift + expand(self._unsettled[step], state) * output.to(state)
        if each is not None:
            shift = shift + each.to(state)
        return bounded(scale * shift + outside, MAX_CONTROL)

    def _guidance(self, state: Tensor, step: Tensor, measurement: Tensor) -> Tensor:
        gradient = self._gradient
        assert gradient is not None
        return self.prior.pull_back(state, step, lambda denoised: gradient(denoised, measurement))[1]
