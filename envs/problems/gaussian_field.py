r"""`gaussian-field`: a Gaussian random field behind a blur; thousands of dimensions, and everything is exact.

    P(f) ~ 1 / (f_0^2 + |f|^2)^slope,    y = K x + noise,

f in cycles per image, P scaled so that x has variance one. The posterior's mean is the Wiener filter's.
"""

from __future__ import annotations

import torch

from diffusion.field_denoiser import FieldDenoiser, power_law
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs.exact.field import FieldPosterior
from envs.likelihoods import GaussianLikelihood
from envs.operators import Convolution, gaussian_kernel
from envs.problem import InverseProblem
from envs.registry import register

__all__ = ["gaussian_field"]


@register("gaussian-field")
def gaussian_field(
    *,
    size: int = 100,
    slope: float = 1.5,
    knee: float = 3.0,
    blur: float = 1.5,
    noise_std: float = 0.3,
    num_steps: int = 50,
    schedule: str = "vp-cosine-zero-snr",
    seed: int = 0,
) -> InverseProblem:
    """A field of `size` x `size` pixels behind a blur of `blur` pixels, its power flat below `knee` cycles an image."""
    denoiser = FieldDenoiser(power_law(size, slope, knee))
    shape = (1, size, size)
    prior = Prior(denoiser, make_schedule(schedule, num_steps), shape, denoiser.denoising_variance)
    width = min(len(gaussian_kernel(blur)), size - 1 + size % 2)
    operator = Convolution(shape, gaussian_kernel(blur, width))
    likelihood = GaussianLikelihood(operator, noise_std)
    generator = torch.Generator().manual_seed(seed)
    truth = denoiser.sample(1, generator)
    return InverseProblem(
        name="gaussian-field",
        prior=prior,
        likelihood=likelihood,
        measurements=likelihood.sample(truth, generator).float(),
        truth=truth.float(),
        image_shape=(size, size),
        measurement_image=lambda value: value[0].float(),
        solve=lambda measurement: (FieldPosterior(denoiser.power, operator, noise_std, measurement), None),
    ).solved()
