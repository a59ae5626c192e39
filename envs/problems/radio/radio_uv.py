r"""`radio-uv`: an image of the radio sky from visibilities with Gaussian noise; the posterior is known exactly.

    (Re V_k, Im V_k) = [A x]_k + noise of standard deviation 1 / sqrt(w_k) each,

    V(u, v) = sum I(l, m) exp(-2 pi i (u l + v m)).

Data of `envs.problems.radio.observation`, priors of `envs.problems.radio.sky`, units and axes of
`envs.operators.visibilities`. The phases of `m87` are those of the fringe fit: gains of the stations are left in them,
which this likelihood has no place for, and no image fits them. It is there to show that (the reduced chi square says
so); `radio-closure` is the problem for such data.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from envs.data.visibilities import average_in_cells
from envs.exact.mixture import MixturePosterior
from envs.exact.whitened import condition_on_weighted
from envs.likelihoods import GaussianLikelihood
from envs.operators import visibility_operator
from envs.operators.visibilities import ARCSECOND
from envs.problem import InverseProblem
from envs.problems.radio.observation import Observation, observation, simulated_table
from envs.problems.radio.sky import FILLED, sky_prior
from envs.registry import register

__all__ = ["radio_uv"]


@register("radio-uv")
def radio_uv(
    *,
    data: str = "simulated",
    prior: str = "shapes",
    size: int = 16,
    field_of_view: float | None = None,
    flux: float | None = None,
    cell: float = 0.25,
    flagged: str = "refuse",
    noise_std: float = 0.2,
    num_steps: int = 50,
    schedule: str = "vp-cosine-zero-snr",
    seed: int = 0,
) -> InverseProblem:
    """An image of `size` x `size` pixels, `field_of_view` arcsec wide, of a source of `flux` Jy.

    `data` is simulated, alma, as209, m87 or the path of a file, of which `flagged` rows are refused or dropped.
    Visibilities that the pixels alias are left out (and logged), others averaged in cells of `cell` / field of view; 0:
    not at all. Of more than 2^25 visibilities times pixels the exact posterior is not worked out. `noise_std` in Jy,
    and `seed`, are of the simulated ones, whose truth is a draw of the prior.
    """
    if not cell >= 0:
        raise ValueError(f"cell must be a width in units of 1 / field of view, or 0, got {cell}")
    if data == "simulated":
        width = ARCSECOND * (1.0 if field_of_view is None else field_of_view)
        table = simulated_table(width / size, noise_std, seed)
        seen = Observation(table=table, field_of_view=width, flux=1.0 if flux is None else flux)
    else:
        seen = observation(data, field_of_view, flux, flagged)
        table = seen.within(size)
        table = average_in_cells(table, cell / seen.field_of_view) if cell else table
    sky, density = sky_prior(prior, size, num_steps, schedule)
    brightness = seen.flux / (FILLED * size * size)
    frequencies = torch.from_numpy(table.u), torch.from_numpy(table.v)
    operator = visibility_operator((1, size, size), *frequencies, seen.pixel_size(size), brightness)
    std = torch.from_numpy(table.std)[:, None].expand(-1, 2).contiguous()
    likelihood = GaussianLikelihood(operator, std)
    truth = None
    if data == "simulated":
        generator = torch.Generator().manual_seed(seed)
        truth = density.sample(1, generator)
        measurements = likelihood.sample(truth, generator)
    else:
        measurements = torch.from_numpy(np.stack([table.value.real, table.value.imag], 1))[None]
    weight = std**-2

    def solve(measurement: Tensor) -> tuple[MixturePosterior, None]:
        return condition_on_weighted(density, operator.as_matrix(), std.flatten(), measurement.flatten()), None

    def dirty(value: Tensor) -> Tensor:
        """[H, W] the image that the weighted visibilities alone give: a point source has its own x at its peak."""
        return (operator.adjoint((value.double() * weight)[None])[0, 0] / (weight.sum() / 2 * brightness**2)).float()

    return InverseProblem(
        name="radio-uv",
        prior=sky,
        likelihood=likelihood,
        measurements=measurements.float(),
        truth=None if truth is None else truth.float(),
        image_shape=(size, size),
        measurement_image=dirty,
        solve=solve if operator.has_matrix else None,
    ).solved()
