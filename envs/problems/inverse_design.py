r"""`inverse-design`: the thicknesses of the layers of an optical coating, from the reflectance that it is to have.

    y_j = R(lambda_j; d) + noise,    d = (thinnest + thickest) / 2 + (thickest - thinnest) / sqrt(12) x,

R being that of layers of alternating low and high index on glass in air (`envs.operators.ThinFilms`). x is uniform in
the box in which every layer can be made, and has variance one. y is a specification, R wanted at wavelengths across a
band, and the noise its tolerance; so p(x | y) is of the designs that meet it, and

    p(y) (2 pi noise_std^2)^(W / 2) = E_prior exp(-|y - R|^2 / (2 noise_std^2))

the share of all designs that do. The simulator is a black box: the likelihood has no gradient. The prior's density and
x's few elements let posterior and log Z be known by importance sampling (`envs.exact.weighted`).
"""

from __future__ import annotations

import numpy as np
import torch

from diffusion.box_denoiser import BoxDenoiser
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs.exact.weighted import reference
from envs.likelihoods import GaussianLikelihood, WithoutGradient
from envs.operators import ThinFilms
from envs.problem import InverseProblem
from envs.registry import register

__all__ = ["inverse_design"]

LOW, HIGH, GLASS = 1.46, 2.35, 1.52  # silica, titania, crown glass in the middle of the visible


@register("inverse-design")
def inverse_design(
    *,
    layers: int = 4,
    thickness: tuple[float, ...] = (10.0, 250.0),
    band: tuple[float, ...] = (450.0, 650.0),
    wavelengths: int = 9,
    target: float | None = 0.0,
    noise_std: float = 0.02,
    num_steps: int = 50,
    schedule: str = "vp-cosine-zero-snr",
    seed: int = 0,
) -> InverseProblem:
    """Layers of a coating, low index outermost, of a `thickness` within these nm, for a reflectance across a `band`.

    `target` is the reflectance that is wanted at all of so many `wavelengths`: 0 is an anti-reflection coating; null
    that of a design drawn from the prior, with noise. `noise_std` is the tolerance.
    """
    if layers < 1 or wavelengths < 1:
        raise ValueError(f"there must be at least one layer and one wavelength, got {layers} and {wavelengths}")
    for name, limits in (("thickness", thickness), ("band", band)):
        if len(limits) != 2 or not 0 < limits[0] < limits[1]:
            raise ValueError(f"{name} must be two increasing positive lengths in nm, got {[*limits]}")
    if target is not None and not 0 <= target <= 1:
        raise ValueError(f"target must be a reflectance within [0, 1], or null, got {target}")
    edge = torch.full((layers,), 3**0.5)
    denoiser = BoxDenoiser(-edge, edge)
    prior = Prior(denoiser, make_schedule(schedule, num_steps), (layers,), denoiser.denoising_variance, 1.0)
    operator = ThinFilms(
        [(LOW, HIGH)[layer % 2] for layer in range(layers)],
        [float(length) for length in np.linspace(band[0], band[1], wavelengths)],
        substrate=GLASS,
        middle=sum(thickness) / 2,
        scale=(thickness[1] - thickness[0]) / 12**0.5,
    )
    gaussian = GaussianLikelihood(operator, noise_std)
    likelihood = WithoutGradient(gaussian)
    generator = torch.Generator().manual_seed(seed)
    truth = None
    wanted = torch.full((1, wavelengths), 0.0 if target is None else target)
    if target is None:
        truth = denoiser.sample(1, generator)
        wanted = gaussian.sample(truth, generator)
    problem = InverseProblem(
        name="inverse-design",
        prior=prior,
        likelihood=likelihood,
        measurements=wanted.float(),
        truth=None if truth is None else truth.float(),
        solve=reference(prior, likelihood),
    )
    return problem.solved()
