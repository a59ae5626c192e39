r"""The `finetune` and `lora` forms: a copy of the prior's network, trained whole or by low-rank additions.

    u_k = b_k (x^_q(s_k, y) - x^_p(s_k)) / std_k,

b_k being the coefficient of the estimate in the transition mean. A copy gives the same estimate (with a graph that of a
convolution may be off in the last bit), and y enters through inputs whose weights are zero at first, so u = 0 at the
start. A network without such inputs
(`diffusion.network.SeesMeasurement`) does not see y: one measurement per posterior.

lora: the copied weights W stay as they are, and to each matrix and convolution a product of two thin ones is added,
W + B A with A random and B zero at the start (Hu et al. 2022, arXiv 2106.09685), by the library peft. The inputs for y
are trained beside them.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from diffusion.kernel import expand
from diffusion.network import SeesMeasurement
from diffusion.posterior.base import Posterior
from diffusion.prior import Prior

__all__ = ["FinetunePosterior"]


class FinetunePosterior(Posterior):
    """Fine-tunes the prior's own denoiser."""

    def __init__(self, prior: Prior, measurement_shape: tuple[int, ...] | None = None, rank: int | None = None) -> None:
        """Copies the denoiser of `prior`; it does not see y where `measurement_shape` is None.

        With `rank` the weights stay, and low-rank additions of that rank are trained (lora).

        Raises:
            ValueError: the denoiser has no parameters to train (an exact denoiser, say), or no layer to add to.
        """
        super().__init__(prior)
        self.denoiser = copy.deepcopy(prior.denoiser).requires_grad_(True)
        if not any(True for _ in self.denoiser.parameters()):
            raise ValueError(
                f"the {'finetune' if rank is None else 'lora'} form trains a copy of the prior's network, but "
                f"{type(prior.denoiser).__name__} has no parameters; use the control form"
            )
        network: object = getattr(self.denoiser, "network", None)
        self._sees = measurement_shape is not None and isinstance(network, SeesMeasurement)
        if measurement_shape is not None and isinstance(network, SeesMeasurement):
            network.add_measurement(measurement_shape, prior.event_shape)
        if rank is not None:
            _add_low_rank(self.denoiser, rank, {name for name, _ in prior.denoiser.named_modules()})

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """See `Posterior.networks`."""
        return (getattr(self.denoiser, "network", self.denoiser),)

    @property
    def sees_measurement(self) -> bool:
        """See `Posterior.sees_measurement`."""
        return self._sees

    def control(
        self, state: Tensor, step: Tensor, denoised: Tensor, measurement: Tensor, guidance: Tensor | None = None
    ) -> Tensor:
        """See `Posterior.control`."""
        prior = self.prior
        seen = (measurement,) if self._sees else ()
        with self.autocast(state.device):
            estimate = self.denoiser(state, prior.alpha[step], prior.sigma[step], *seen).to(state)
        scale = prior.denoised_coefficient[step] / prior.std[step]
        return expand(scale, state) * (estimate - denoised)


def _add_low_rank(module: nn.Module, rank: int, of_prior: set[str]) -> None:
    """Adds trainable low-rank parts to those layers of `module` that the prior has, which become buffers.

    No checkpoint holds them. Layers that the prior does not have (for y) stay as they are, trainable.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds to import

    found = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    layers = [name for name, part in found.items() if name in of_prior or name.endswith(".first")]
    if not layers:
        raise ValueError(
            f"the lora form adds to linear and convolution layers, of which {type(module).__name__} has none; use the "
            "finetune form"
        )
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), module)
    for name, part in found.items():
        if name not in layers:
            part.requires_grad_(True)
    for layer in module.modules():
        for name, parameter in [*layer.named_parameters(recurse=False)]:
            if not parameter.requires_grad:
                delattr(layer, name)
                layer.register_buffer(name, parameter.detach(), persistent=False)
