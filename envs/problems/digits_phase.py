r"""`digits-phase`: a real digit from the magnitudes of its Fourier transform, a posterior of four modes by symmetry.

    y = |F x| + noise,    F the discrete Fourier transform of the image padded to twice its size.

x, its negative, and both rotated by 180 degrees have the same magnitudes. The prior is the kernel density of
scikit-learn digits in all four forms, so it is as symmetric as the likelihood and each form has posterior probability
1/4: a sampler that settles for one of them is wrong by a known amount. The evidence has no closed form;
`rtb sample --exact` finds it.
"""

from __future__ import annotations

import torch

from diffusion.denoiser import MixtureDenoiser
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs.likelihoods import GaussianLikelihood
from envs.operators import FourierMagnitudes
from envs.problem import Classes, InverseProblem
from envs.problems.digits_half import HELD_OUT, SHAPE, TRAINING_DIGITS
from envs.registry import register

__all__ = ["digits_phase"]

FORMS = ("upright", "rotated", "negative", "negative, rotated")


@register("digits-phase")
def digits_phase(
    *,
    digit: int = 20,
    noise_std: float = 0.1,
    bandwidth: float = 0.25,
    training_digits: int = 375,
    num_steps: int = 50,
    schedule: str = "vp-cosine-zero-snr",
    seed: int = 0,
) -> InverseProblem:
    """Held-out digit number `digit` from its Fourier magnitudes; the prior: `training_digits` digits in four forms."""
    if not 0 <= digit < HELD_OUT:
        raise ValueError(f"digit must be one of the {HELD_OUT} held-out digits, 0..{HELD_OUT - 1}, got {digit}")
    if not 1 <= training_digits <= TRAINING_DIGITS:
        raise ValueError(f"training_digits must be within 1..{TRAINING_DIGITS}, got {training_digits}")
    from sklearn.datasets import load_digits  # a second to import

    images = torch.from_numpy(load_digits().data).double() / 8.0 - 1.0  # [1797, 64], from 0..16
    upright, truth = images[:training_digits], images[TRAINING_DIGITS + digit].reshape(1, *SHAPE)
    rotated = upright.flip(1)  # of 8 x 8 pixels in a row, the order reversed
    means = torch.cat([upright, rotated, -upright, -rotated])
    denoiser = MixtureDenoiser(means, bandwidth**2, event_shape=SHAPE)
    data_std = float((means.var(0, correction=0).mean() + bandwidth**2).sqrt())
    prior = Prior(
        denoiser, make_schedule(schedule, num_steps, scale=data_std), SHAPE, denoiser.denoising_variance, data_std
    )
    likelihood = GaussianLikelihood(FourierMagnitudes(SHAPE), noise_std)
    form = torch.eye(4, dtype=torch.float64).repeat_interleave(training_digits, 0)
    return InverseProblem(
        name="digits-phase",
        prior=prior,
        likelihood=likelihood,
        measurements=likelihood.sample(truth, torch.Generator().manual_seed(seed)).float(),
        truth=truth.float(),
        classes=Classes(
            FORMS, lambda value: denoiser.classify(value) @ form, torch.full((1, 4), 0.25, dtype=torch.float64)
        ),
        image_shape=(8, 8),
        measurement_image=lambda value: value.reshape(16, 9).float(),
    )
