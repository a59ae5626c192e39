"""Where the images of a problem come from: a prior over them, and held-out ones that are measured.

Pixels are in [-1, 1] everywhere. A kernel density of a data set is a Gaussian mixture with one component an image, so
its score, and the posterior of whatever is linear and Gaussian, are exact: `digits-kde` (the first 1,500 scikit-learn
digits, 8 x 8) and `mnist-kde` (all 60,000 images for training, 28 x 28). Their widths are those under which held-out
images are likeliest, to 0.05. Any other name is a stored prior (`diffusion.stored_prior`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.denoiser import MixtureDenoiser
from diffusion.prior import Prior
from diffusion.pruned_mixture import PrunedMixtureDenoiser
from diffusion.schedule import make_schedule
from envs.data import load_dataset

__all__ = ["ImageSource", "kernel_density"]

BANDWIDTHS = {"digits-kde": 0.25, "mnist-kde": 0.3}
CLASSIFIED = 256  # images at a time
MANY = 10_000  # components
MANY_DRAWS = 16  # of so many pixels give the error of the estimate to a few percent, in two seconds instead of a minute


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageSource:
    """A prior over images, and images to measure."""

    prior: Prior
    held_out: Tensor
    """[M, C, H, W] float32 images that the prior has not seen."""
    density: MixtureDenoiser | None = None
    """The prior's data distribution, where it is a kernel density."""
    labels: Tensor | None = None
    """[components] class of each component, 0..9."""

    @property
    def one_hot(self) -> Tensor | None:
        """[components, 10] float64 1 for the class of a component."""
        return None if self.labels is None else torch.nn.functional.one_hot(self.labels.long(), 10).double()

    def classify(self, value: Tensor) -> Tensor:
        """[N, 10] probability of each class given the image x = `value` [N, C, H, W]."""
        assert self.density is not None and self.one_hot is not None
        one_hot = self.one_hot.to(self.density.means)
        return torch.cat([self.density.classify(part) @ one_hot for part in value.split(CLASSIFIED)]).double()

    def truths(self, truth: str, first: int, count: int, generator: torch.Generator) -> Tensor:
        """[count, C, H, W] what is measured: `held-out` images from number `first` on, or draws of the `prior`."""
        if truth == "held-out":
            if not (first >= 0 and 1 <= count <= len(self.held_out) - first):
                raise ValueError(
                    f"image and count must name some of the {len(self.held_out)} held-out images, got {count} from "
                    f"number {first} on"
                )
            return self.held_out[first : first + count]
        if truth != "prior":
            raise ValueError(f"truth must be held-out or prior, got {truth!r}")
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        if self.density is not None:
            return self.density.sample(count, generator).float()
        state = self.prior.sample_base(count, generator)
        for step in range(self.prior.num_steps):
            state = self.prior.sample_transition(state, torch.full((count,), step), generator)
        return state


def kernel_density(name: str, num_steps: int, schedule: str) -> ImageSource:
    """The source called `name`: see the module.

    Raises:
        MissingDataError: the data set is not on this machine.
    """
    data = load_dataset(name.removesuffix("-kde"))
    images, labels, held_out = data.train, data.train_labels, data.held_out
    if name == "mnist-kde":  # as published, without the frame that networks need
        images, held_out = (part[..., 2:30, 2:30] for part in (images, held_out))
    bandwidth = BANDWIDTHS[name]
    shape = tuple(images.shape[1:])
    many = len(images) > MANY
    kind = PrunedMixtureDenoiser if many else MixtureDenoiser
    denoiser = kind(images.flatten(1), bandwidth**2, event_shape=shape)
    data_std = float((images.double().var(0, correction=0).mean() + bandwidth**2).sqrt())
    levels = make_schedule(schedule, num_steps, scale=data_std)
    count = MANY_DRAWS if many else None
    variance = denoiser.denoising_variance(levels.alpha[:-1], levels.sigma[:-1], count)
    prior = Prior(denoiser, levels, shape, variance, data_std)
    return ImageSource(prior=prior, held_out=held_out, density=denoiser, labels=labels)


def image_source(name: str, num_steps: int, schedule: str) -> ImageSource:
    """The prior called `name`, and images to measure: see the module.

    Raises:
        MissingDataError: a data set is not on this machine.
    """
    if name in BANDWIDTHS:
        return kernel_density(name, num_steps, schedule)
    raise ValueError(f"unknown prior {name!r}; expected one of {', '.join(BANDWIDTHS)}")
