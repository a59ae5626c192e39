"""Where the images of a problem come from: a prior over them, and held-out ones that are measured.

Pixels are in [-1, 1] everywhere. A kernel density of a data set is a Gaussian mixture with one component an image, so
its score, and the posterior of whatever is linear and Gaussian, are exact: `digits-kde` (the first 1,500 scikit-learn
digits, 8 x 8) and `mnist-kde` (all 60,000 images for training, 28 x 28). Their widths are those under which held-out
images are likeliest, to 0.05. Any other name is a stored prior (`diffusion.stored_prior`): one that ships, or a folder.
What is measured are then images of the data set that it was trained on, if it states one, or draws of the prior itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.denoiser import MixtureDenoiser
from diffusion.prior import Prior
from diffusion.pruned_mixture import PrunedMixtureDenoiser
from diffusion.registry import nearest
from diffusion.schedule import make_schedule
from diffusion.stored_prior import StoredPrior, StoredPriorError, load_prior, prior_names, read_prior
from envs.data import MissingDataError, load_dataset

__all__ = ["ImageSource", "image_priors", "image_source", "kernel_density", "stored_source"]

BANDWIDTHS = {"digits-kde": 0.25, "mnist-kde": 0.3}
CLASSIFIED = 256  # images at a time
MANY = 10_000  # components
MANY_DRAWS = 16  # of so many pixels give the error of the estimate to a few percent, in two seconds instead of a minute


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageSource:
    """A prior over images, and images to measure."""

    prior: Prior
    held_out: Tensor | None
    """[M, C, H, W] float32 images that the prior has not seen; None where none are known."""
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

    def truths(self, truth: str | None, first: int, count: int, generator: torch.Generator) -> Tensor:
        """[count, C, H, W] what is measured: `held-out` images from number `first` on, or draws of the `prior`.

        None: held-out images where there are any.
        """
        if truth is None:
            truth = "prior" if self.held_out is None else "held-out"
        if truth == "held-out":
            if self.held_out is None:
                raise ValueError("truth held-out needs a prior that states its data set; take truth prior")
            if not (first >= 0 and 1 <= count <= len(self.held_out) - first):
                raise ValueError(
                    f"image and count must name some of the {len(self.held_out)} held-out images, numbers 0 to "
                    f"{len(self.held_out) - 1}, got {count} from number {first} on"
                )
            return self.held_out[first : first + count]
        if truth != "prior":
            raise ValueError(f"truth must be held-out or prior, got {truth!r}")
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        if self.density is not None:
            return self.density.sample(count, generator).float()
        return self.prior.sample(count, generator)


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


def stored_source(name: str, num_steps: int, schedule: str, *, with_data: bool) -> ImageSource:
    """The stored prior called `name`, or in that folder, and without `with_data` no images to measure.

    Raises:
        ValueError: there is no such prior, or its x is no image.
        MissingDataError: its data set is not on this machine.
    """
    try:
        stored = read_prior(name)
    except StoredPriorError as error:
        if "/" in name:
            raise
        known = (*BANDWIDTHS, *image_priors())
        raise ValueError(
            f"unknown prior {name!r}; {nearest(name, known)} (or give the folder of a stored one)"
        ) from error
    if not _is_image(stored):
        raise ValueError(
            f"problems of images need a prior over [C, H, W] with one channel or three, but x of {name} has shape "
            f"{list(stored.event_shape)}"
        )
    held_out = None
    if with_data and stored.data is not None:
        options = dict(stored.data)
        try:
            data = load_dataset(options.pop("name"), **options)
        except MissingDataError as error:
            raise MissingDataError(f"prior {name}: {error}; or take truth prior, which needs no data") from None
        held_out = data.held_out
    return ImageSource(prior=load_prior(name, num_steps, schedule), held_out=held_out)


def image_priors() -> tuple[str, ...]:
    """Names of the priors over images that ship."""
    return tuple(name for name in prior_names() if _is_image(read_prior(name)))


def _is_image(stored: StoredPrior) -> bool:
    return len(stored.event_shape) == 3 and stored.event_shape[0] in (1, 3)


def image_source(name: str, num_steps: int, schedule: str, *, with_data: bool = True) -> ImageSource:
    """The prior called `name`, and images to measure: see the module.

    Raises:
        ValueError: there is no such prior of images.
        MissingDataError: a data set is not on this machine.
    """
    if name in BANDWIDTHS:
        return kernel_density(name, num_steps, schedule)
    return stored_source(name, num_steps, schedule, with_data=with_data)
