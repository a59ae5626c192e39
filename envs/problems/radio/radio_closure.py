r"""`radio-closure`: an image from closure phases and log closure amplitudes, which gains of the stations do not change.

    y = (psi, lambda)(V(x)) + noise of the covariance of closures that share baselines: see `envs.data.closures`.

Closures know neither the source's flux nor its place: there the posterior is the prior. The covariance is that of the
measured signal to noise, and known: it is not a function of x. The truth of simulated visibilities is a draw of the
prior, their noise is the same for all, as that of receivers is, and what lies deep in it is left out as of real data.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from envs.data.closures import closure_set
from envs.data.visibilities import VisibilityTable, average_in_time
from envs.likelihoods import ClosureLikelihood
from envs.operators import Closures, LinearOperator, visibility_operator
from envs.operators.visibilities import ARCSECOND
from envs.problem import InverseProblem
from envs.problems.radio.observation import Observation, observation, simulated_table
from envs.problems.radio.sky import FILLED, sky_prior
from envs.registry import register

__all__ = ["radio_closure"]


@register("radio-closure")
def radio_closure(
    *,
    data: str = "simulated",
    prior: str = "shapes",
    size: int = 16,
    field_of_view: float | None = None,
    flux: float | None = None,
    seconds: float = 300.0,
    min_snr: float = 3.0,
    systematic: float = 0.01,
    flagged: str = "refuse",
    snr: float = 20.0,
    num_steps: int = 50,
    schedule: str = "vp-cosine-zero-snr",
    seed: int = 0,
) -> InverseProblem:
    """An image of `size` x `size` pixels, `field_of_view` arcsec wide, of a source of `flux` Jy.

    `data` is simulated, m87 or the path of a file with times and stations, of which `flagged` rows are refused or
    dropped. Visibilities are averaged over `seconds`, those with a signal to noise below `min_snr` are left out, and
    `systematic` is a fraction of |V| by which they do not close. `snr` is that of the whole flux in a simulated
    visibility, and `seed` of these.
    """
    if not min_snr >= 3:
        raise ValueError(f"min_snr must be at least 3, or closures are not Gaussian, got {min_snr}")
    if not snr > 0:
        raise ValueError(f"snr must be positive, got {snr}")
    sky, density = sky_prior(prior, size, num_steps, schedule)
    generator = torch.Generator().manual_seed(seed)
    truth = None
    if data == "simulated":
        width = ARCSECOND * (1.0 if field_of_view is None else field_of_view)
        flux = 1.0 if flux is None else flux
        seen = Observation(table=simulated_table(width / size, flux / snr, seed), field_of_view=width, flux=flux)
        truth = density.sample(1, generator)
        value = torch.view_as_complex(_visibilities(seen, seen.table, size)(truth)[0])
        table = replace(seen.table, value=value.numpy())
    else:
        seen = observation(data, field_of_view, flux, flagged)
        table = average_in_time(seen.within(size), seconds)
    table = table.where(np.abs(table.value) > min_snr * table.std, f"of a signal to noise above {min_snr:g}")
    closures = closure_set(table, systematic)
    rows = (torch.from_numpy(part) for part in (closures.triangles, closures.signs, closures.quadrangles))
    operator = Closures(_visibilities(seen, table, size), *rows)
    likelihood = ClosureLikelihood(operator, torch.from_numpy(closures.covariance))
    measured = torch.from_numpy(closures.value)[None] if truth is None else likelihood.sample(truth, generator)
    return InverseProblem(
        name="radio-closure",
        prior=sky,
        likelihood=likelihood,
        measurements=measured.float(),
        truth=None if truth is None else truth.float(),
        image_shape=(size, size),
    )


def _visibilities(seen: Observation, table: VisibilityTable, size: int) -> LinearOperator:
    """From images of `size` x `size` pixels to the visibilities of `table`, Jy."""
    brightness = seen.flux / (FILLED * size * size)
    frequencies = torch.from_numpy(table.u), torch.from_numpy(table.v)
    return visibility_operator((1, size, size), *frequencies, seen.pixel_size(size), brightness)
