r"""Networks of the package score_models (Adam et al., MIT licence), which is imported when one is made.

Its network gives b times the score of its own states (`ScoreModel.score` divides by b), so that by Tweedie's formula

    x^ = (s_own + b^2 score) / a = (s_own + b output) / a.

Its times t in (epsilon, T), from the log-SNR l:

    VESDE: a = 1, b = sigma_min (sigma_max / sigma_min)^(t / T);
           t = T log(e^-l / sigma_min) / log(sigma_max / sigma_min);
    VPSDE: a^2 = e^-L = 1 - b^2, L = beta_min t + (beta_max - beta_min) t^2 / 2;    L = log(1 + e^-2l).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.imported.base import ImportedDenoiser, OwnLevel, variance_preserving
from diffusion.schedule import Schedule

__all__ = ["ScoreModelDenoiser", "check_network", "score_model_denoiser"]

NETWORKS = {"ncsnpp": "NCSNpp", "ddpm": "DDPM", "mlp": "MLP"}


class ScoreModelDenoiser(ImportedDenoiser):
    """x^ of a network that estimates b times the score."""

    def __init__(
        self,
        network: nn.Module,
        sde: str,
        *,
        final_time: float = 1.0,
        epsilon: float = 0.0,
        sigma_min: float = 0.0,
        sigma_max: float = 0.0,
        beta_min: float = 0.0,
        beta_max: float = 0.0,
    ) -> None:
        """`network`(state, time); `sde` "ve" with `sigma_min` and `sigma_max`, or "vp" with `beta_min` and `beta_max`.

        Its times run from `epsilon` to `final_time`.
        """
        super().__init__(network)
        if sde not in ("ve", "vp"):
            raise ValueError(f"expected the SDE 've' or 'vp' of score_models, got {sde!r}")
        if sde == "ve" and not 0 < sigma_min < sigma_max:
            raise ValueError(f"the VE SDE needs 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
        if sde == "vp" and not 0 < beta_min < beta_max:
            raise ValueError(f"the VP SDE needs 0 < beta_min < beta_max, got {beta_min} and {beta_max}")
        if not 0 <= epsilon < final_time or (sde == "vp" and epsilon == 0):  # at 0 the VP SDE has no noise
            least = "0 <=" if sde == "ve" else "0 <"
            raise ValueError(f"the {sde.upper()} SDE needs times {least} epsilon < T, got {epsilon} and {final_time}")
        self.sde = sde
        self.final_time, self.epsilon = final_time, epsilon
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.beta_min, self.beta_max = beta_min, beta_max

    def log_snr_at(self, time: float) -> float:
        """Log-SNR at a time of its SDE."""
        if self.sde == "ve":
            growth = math.log(self.sigma_max / self.sigma_min)
            return -math.log(self.sigma_min) - growth * time / self.final_time
        integral = self.beta_min * time + 0.5 * (self.beta_max - self.beta_min) * time**2
        return -0.5 * math.log(math.expm1(integral))

    @property
    def log_snr_range(self) -> tuple[float, float]:
        """See `ImportedDenoiser.log_snr_range`."""
        return self.log_snr_at(self.final_time), self.log_snr_at(self.epsilon)

    def own_schedule(self, num_steps: int) -> Schedule:
        """See `ImportedDenoiser.own_schedule`: times evenly spaced from T to epsilon."""
        if num_steps < 2:
            raise ValueError(f"the schedule of an SDE needs num_steps >= 2, got {num_steps}")
        times = torch.linspace(self.final_time, self.epsilon, num_steps, dtype=torch.float64)
        levels = torch.tensor([self.log_snr_at(float(time)) for time in times], dtype=torch.float64)
        own = self.own_level(levels)
        return Schedule(torch.cat([own.alpha, torch.ones(1).double()]), torch.cat([own.sigma, torch.zeros(1).double()]))

    def own_level(self, level: Tensor) -> OwnLevel:
        """See `ImportedDenoiser.own_level`."""
        if self.sde == "ve":
            growth = math.log(self.sigma_max / self.sigma_min)
            time = self.final_time * (-level - math.log(self.sigma_min)) / growth
            return OwnLevel(time, torch.ones_like(level), (-level).exp())
        integral = nn.functional.softplus(-2 * level)
        slope = self.beta_max - self.beta_min
        # The root of the quadratic in the form that does not subtract.
        time = 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * slope * integral).sqrt())
        return OwnLevel(time, *variance_preserving(level))

    def estimate(self, state: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """See `ImportedDenoiser.estimate`."""
        return (state + sigma * output) / alpha


class _StateFirst(nn.Module):
    """A network of score_models, which are called with the time first."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        # Its frequencies are parameters that are not to be trained, not even where all others are.
        for module in network.modules():
            for name, parameter in [*module.named_parameters(recurse=False)]:
                if not parameter.requires_grad:
                    delattr(module, name)
                    module.register_buffer(name, parameter.detach())

    def forward(self, state: Tensor, time: Tensor) -> Tensor:
        output: Tensor = self.network(time, state)
        return output


def score_model_denoiser(
    event_shape: tuple[int, ...],
    data_std: float,
    *,
    architecture: str,
    arguments: Mapping[str, Any],
    sde: str,
    final_time: float = 1.0,
    epsilon: float = 0.0,
    sigma_min: float = 0.0,
    sigma_max: float = 0.0,
    beta_min: float = 0.0,
    beta_max: float = 0.0,
) -> ScoreModelDenoiser:
    """The kind "score-models": `architecture` is ncsnpp, ddpm or mlp, `arguments` are its own.

    Raises:
        ValueError: the package is not installed, or the network is not one that a prior can be.
    """
    network = _network(architecture, arguments)
    return ScoreModelDenoiser(
        _StateFirst(network),
        sde,
        final_time=final_time,
        epsilon=epsilon,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        beta_min=beta_min,
        beta_max=beta_max,
    )


def check_network(architecture: str, arguments: Mapping[str, Any]) -> None:
    """Raises `ValueError` where a network is not one that a prior can be."""
    if architecture not in NETWORKS:
        raise ValueError(f"unknown network {architecture!r} of score_models; expected one of {', '.join(NETWORKS)}")
    for name in ("conditioning", "condition"):
        asked = [kind for kind in arguments.get(name) or () if str(kind).lower() != "none"]
        if asked:
            raise ValueError(f"a prior p(x) must not be conditional, but the network is: {name} = {asked}")
    if arguments.get("nn_is_energy"):
        raise ValueError("the network is an energy (nn_is_energy), whose gradient is the score; expected a score")


def _network(architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    check_network(architecture, arguments)
    try:
        package = importlib.import_module("score_models.architectures")
    except ImportError as error:
        raise ValueError(
            f"the network is one of the package score_models, which could not be imported ({error}); "
            "install it: pip install --no-deps score_models torch-ema"
        ) from None
    network: nn.Module = getattr(package, NETWORKS[architecture])(**arguments)
    return network
