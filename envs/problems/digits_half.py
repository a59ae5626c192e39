"""`digits-half`: the right half of a real digit is missing, and the exact posterior is known.

The prior is the kernel density of the first 1,500 scikit-learn digits (8 x 8, scaled to [-1, 1]): a Gaussian mixture
with one isotropic component per digit, whose score is exact. The truth is one of the other 297; its left half is seen
with Gaussian noise. Class of a component: the label of its digit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion.denoiser import MixtureDenoiser
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs.exact.mixture import MixturePosterior, condition_mixture
from envs.likelihoods import GaussianLikelihood
from envs.operators import Pixels
from envs.problem import Classes, InverseProblem
from envs.registry import register

__all__ = ["HELD_OUT", "digits_half"]

TRAINING_DIGITS = 1_500
HELD_OUT = 297
SHAPE = (1, 8, 8)


@register("digits-half")
def digits_half(
    *,
    digit: int = 20,
    count: int = 1,
    noise_std: float = 0.3,
    bandwidth: float = 0.25,
    num_steps: int = 50,
    schedule: str = "vp-cosine-zero-snr",
    seed: int = 0,
) -> InverseProblem:
    """Complete held-out digit number `digit` (0..296), or `count` from there on; the noise is drawn with `seed`."""
    if not 0 <= digit < HELD_OUT:
        raise ValueError(f"digit must be one of the {HELD_OUT} held-out digits, 0..{HELD_OUT - 1}, got {digit}")
    if not 1 <= count <= HELD_OUT - digit:
        raise ValueError(
            f"count must be within 1..{HELD_OUT - digit}, as digit {digit} is one of {HELD_OUT}, got {count}"
        )
    from sklearn.datasets import load_digits  # a second to import, and only this problem needs it

    data = load_digits()
    images = torch.from_numpy(data.data).double() / 8.0 - 1.0  # [1797, 64], from 0..16
    labels = torch.from_numpy(data.target[:TRAINING_DIGITS])
    means, truth = images[:TRAINING_DIGITS], images[TRAINING_DIGITS + digit :][:count]
    denoiser = MixtureDenoiser(means, bandwidth**2, event_shape=SHAPE)
    data_std = float((means.var(0, correction=0).mean() + bandwidth**2).sqrt())
    levels = make_schedule(schedule, num_steps, scale=data_std)
    prior = Prior(denoiser, levels, SHAPE, denoiser.denoising_variance, data_std)
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[..., :4] = True
    operator = Pixels(mask)
    likelihood = GaussianLikelihood(operator, noise_std)
    measurements = likelihood.sample(truth, torch.Generator().manual_seed(seed)).float()
    one_hot = torch.nn.functional.one_hot(labels.long(), 10).double()

    def solve(measurement: Tensor) -> tuple[MixturePosterior, Tensor]:
        covariance, log_weights = denoiser.covariance, denoiser.log_weights
        exact = condition_mixture(means, covariance, log_weights, operator.as_matrix(), noise_std, measurement, SHAPE)
        return exact, exact.log_weights.exp() @ one_hot

    def picture(values: Tensor) -> Tensor:
        image = torch.full((64,), torch.nan)
        image[operator.indices] = values.float()
        return image.reshape(8, 8)

    return InverseProblem(
        name="digits-half",
        prior=prior,
        likelihood=likelihood,
        measurements=measurements,
        truth=truth.reshape(count, *SHAPE).float(),
        classes=Classes(
            tuple(str(label) for label in range(10)),
            lambda value: denoiser.classify(value) @ one_hot,
        ),
        image_shape=(8, 8),
        measurement_image=picture,
        solve=solve,
    ).solved()
