r"""Training of a prior: denoising score matching.

    L = E_{x, lambda, eps} |x - x^(alpha x + sigma eps)|^2 / (D g(lambda)),    g(lambda) = d^2 / (1 + e^(2 lambda)),

lambda = log(alpha d / sigma), d being the standard deviation of x. g is the error of the best denoiser of data that are
Gaussian with variance d^2 in every direction; with `NetworkDenoiser`'s preconditioning L is the plain squared error of
the network F against a target of about unit variance (Karras et al. 2022, arXiv 2206.00364, eqs. 7 and 8).

lambda is normal, by default as in that paper (log sigma of mean -1.2 and standard deviation 1.2 for d = 0.5 is lambda
of mean 0.5), but for a share of each batch where it is uniform: chains begin in pure noise and end nearly clean, at
levels that the normal draws hardly reach. Both are stratified over the batch (Kingma et al. 2021, arXiv 2107.00630).
The step size falls as in Karras et al. 2024 (arXiv 2312.02696), by the number of updates alone, so that a training that
was interrupted goes on bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffusion.denoising_error import levels_at
from diffusion.kernel import expand
from learner.average import WeightAverage
from learner.guard import Diverged
from learner.prior_config import PriorTrainingConfig

__all__ = ["PriorTrainer", "denoising_loss", "draw_log_snr", "validation_loss"]

LOWEST, HIGHEST = -10.0, 7.0  # of the uniform share: where networks clamp lambda, and the finest level of error tables
PATIENCE = 20  # updates in a row with a gradient that is not finite, before training ends

Arrays = dict[str, NDArray[Any]]


def draw_log_snr(config: PriorTrainingConfig, generator: torch.Generator) -> Tensor:
    """[batch_size] float64 levels lambda of a batch."""
    uniform = round(config.uniform_share * config.batch_size)
    normal = config.batch_size - uniform

    def strata(count: int) -> Tensor:
        return (torch.arange(count) + torch.rand(count, generator=generator, dtype=torch.float64)) / max(count, 1)

    drawn = config.log_snr_mean + config.log_snr_std * torch.special.ndtri(strata(normal).clamp(1e-9, 1 - 1e-9))
    return torch.cat([drawn, LOWEST + (HIGHEST - LOWEST) * strata(uniform)])


def denoising_loss(denoiser: nn.Module, clean: Tensor, log_snr: Tensor, noise: Tensor, data_std: float) -> Tensor:
    """[N] loss of each x = `clean` [N, *D] at lambda = `log_snr` [N] with eps = `noise` [N, *D]."""
    alpha, sigma = levels_at(log_snr, data_std)
    alpha, sigma = alpha.to(clean), sigma.to(clean)
    estimate = denoiser(expand(alpha, clean) * clean + expand(sigma, clean) * noise, alpha, sigma)
    error = (estimate - clean).square().flatten(1).mean(1)
    return error * ((1 + (2 * log_snr).exp()) / data_std**2).to(clean)


@torch.no_grad()
def validation_loss(
    denoiser: nn.Module, clean: Tensor, data_std: float, config: PriorTrainingConfig, seed: int, max_rows: int = 256
) -> float:
    """The mean loss of x = `clean` [N, *D], at levels drawn as for a batch: the same with the same `seed`."""
    generator = torch.Generator().manual_seed(seed)
    log_snr = draw_log_snr(replace(config, batch_size=len(clean)), generator)
    noise = torch.randn(clean.shape, generator=generator)
    parts = zip(clean.split(max_rows), log_snr.split(max_rows), noise.split(max_rows), strict=True)
    losses = [denoising_loss(denoiser, x, level, eps.to(x), data_std) for x, level, eps in parts]
    return float(torch.cat(losses).double().mean())


class PriorTrainer:
    """Trains a denoiser.

    trainer = PriorTrainer(denoiser, clean, data_std, PriorTrainingConfig())
    loss = trainer.update()
    stored = trainer.averaged()  # the denoiser with averaged weights
    """

    def __init__(
        self, denoiser: nn.Module, clean: Tensor, data_std: float, config: PriorTrainingConfig, seed: int = 0
    ) -> None:
        """`clean` [N, *D] on the CPU are the draws to train on; the network stays where it is."""
        self.denoiser = denoiser.train()
        self.config = config
        self.updates = 0
        self.set_aside = 0
        """Updates whose step was not taken, as the gradient was not finite."""
        self._row = 0
        self._clean = clean
        self._data_std = data_std
        self._device = next(denoiser.parameters()).device
        self._seed = seed
        self._generator = torch.Generator().manual_seed(seed)
        self._optimizer = torch.optim.Adam(denoiser.parameters(), lr=config.learning_rate, betas=(0.9, 0.99))
        self._average = WeightAverage(denoiser, config.ema_decay)

    def update(self) -> float:
        """One optimiser step; the loss of its batch.

        Raises:
            Diverged: the gradient was not finite 20 times in a row.
        """
        config, generator = self.config, self._generator
        rows = torch.randint(len(self._clean), (config.batch_size,), generator=generator)
        log_snr = draw_log_snr(config, generator)
        clean, source = self._clean[rows].to(self._device), self._noise_generator()
        noise = torch.randn(clean.shape, generator=source, device=self._device)
        if config.bandwidth > 0:
            clean = clean + config.bandwidth * torch.randn(clean.shape, generator=source, device=self._device)
        self._optimizer.zero_grad(set_to_none=True)
        loss = denoising_loss(self.denoiser, clean, log_snr, noise, self._data_std).mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.denoiser.parameters(), config.gradient_clip)
        self.updates += 1
        value = float(loss.detach())
        if not bool(torch.isfinite(norm)) or not math.isfinite(value):
            self.set_aside += 1
            self._row += 1
            if self._row == PATIENCE:
                raise Diverged(f"the gradient was not finite {PATIENCE} updates in a row; lower training.learning_rate")
            return value
        self._row = 0
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate
        self._optimizer.step()
        self._average.update(self.denoiser)
        return value

    def _noise_generator(self) -> torch.Generator:
        """On a processor the one stream; on a GPU, which draws far faster, one for each update, without a state."""
        if self._device.type == "cpu":
            return self._generator
        seed = np.random.SeedSequence((self._seed, self.updates)).generate_state(1, np.uint64)[0]
        return torch.Generator(self._device).manual_seed(int(seed >> 1))

    @property
    def learning_rate(self) -> float:
        """Step size of the present update."""
        warm = min(self.updates / max(self.config.warmup_updates, 1), 1.0)
        late = self.updates / self.config.decay_after if self.config.decay_after else 0.0
        return self.config.learning_rate * warm / math.sqrt(max(late, 1.0))

    def averaged(self, into: nn.Module) -> nn.Module:
        """`into`, a denoiser built alike, with the averaged weights, frozen."""
        into.load_state_dict(self.denoiser.state_dict())
        nn.utils.vector_to_parameters(self._average.vector.clone(), into.parameters())
        return into.requires_grad_(False).eval()

    def state_dict(self) -> tuple[Arrays, dict[str, object]]:
        """(arrays, scalars): all that `load_state_dict` restores."""
        arrays = {f"denoiser.{name}": _numpy(value) for name, value in self.denoiser.state_dict().items()}
        arrays["average"] = _numpy(self._average.vector)
        arrays["generator"] = _numpy(self._generator.get_state())
        for index, state in self._optimizer.state_dict()["state"].items():
            arrays |= {f"optimizer.{index}.{name}": _numpy(value) for name, value in state.items()}
        scalars: dict[str, object] = {"updates": self.updates, "set_aside": self.set_aside, "row": self._row}
        return arrays, scalars | {"average_updates": self._average.updates}

    def load_state_dict(self, arrays: Mapping[str, NDArray[Any]], scalars: Mapping[str, Any]) -> None:
        """Restores `state_dict`."""
        denoiser, moments = {}, dict[int, dict[str, Tensor]]()
        for key, array in arrays.items():
            kind, _, name = key.partition(".")
            value = torch.from_numpy(np.asarray(array).copy())
            if kind == "denoiser":
                denoiser[name] = value
            elif kind == "optimizer":
                index, _, entry = name.partition(".")
                moments.setdefault(int(index), {})[entry] = value
        self.denoiser.load_state_dict(denoiser)
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self._average.vector.copy_(torch.from_numpy(arrays["average"]))
        self._average.updates = int(scalars["average_updates"])
        self._generator.set_state(torch.from_numpy(np.asarray(arrays["generator"]).copy()))
        self.updates, self.set_aside, self._row = (int(scalars[key]) for key in ("updates", "set_aside", "row"))


def _numpy(value: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = value.detach().cpu().numpy().copy()
    return array
