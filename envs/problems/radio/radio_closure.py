r"""`radio-closure`: an image from closure phases and log closure amplitudes, which gains of the stations do not change.

    y = (psi, lambda)(V(x)) + noise of the covariance of closures that share baselines: see `envs.data.closures`.

Closures know neither the source's flux nor its place: there the posterior is the prior. The covariance is that of the
measured signal to noise, and known: it is not a function of x. Simulated visibilities all have the signal to noise
`snr`, and their truth is a draw of the prior.
"""

from __future__ import annotations

import numpy as np
import torch

from envs.data.closures import closure_set
from envs.data.visibilities import average_in_time
from envs.likelihoods import ClosureLikelihood
from envs.operators import Closures, visibility_operator
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
    snr: float = 4.0,
    num_steps: int = 50,
    schedule: str = "vp-cosine-zero-snr",
    seed: int = 0,
) -> InverseProblem:
    """An image of `size` x `size` pixels, `field_of_view` arcsec wide, of a source of `flux` Jy.

    `data` is simulated, m87 or the path of a file with times and stations, of which `flagged` rows are refused or
    dropped. Visibilities are averaged over `seconds`, those below `min_snr` are left out, and `systematic` is a
    fraction of |V| by which they do not close. `snr` and `seed` are of the simulated ones.
    """
    if data == "simulated":
        if not snr >= 3:
            raise ValueError(f"snr must be at least 3, or closures are not Gaussian, got {snr}")
        width = ARCSECOND * (1.0 if field_of_view is None else field_of_view)
        table = simulated_table(width / size, 1 / snr, seed)
        seen = Observation(table=table, field_of_view=width, flux=1.0 if flux is None else flux)
        closures = closure_set(table)
    else:
        seen = observation(data, field_of_view, flux, flagged)
        table = average_in_time(seen.within(size), seconds)
        table = table.where(np.abs(table.value) > min_snr * table.std, f"of a signal to noise above {min_snr:g}")
        closures = closure_set(table, systematic)
    sky, density = sky_prior(prior, size, num_steps, schedule)
    frequencies = torch.from_numpy(table.u), torch.from_numpy(table.v)
    brightness = seen.flux / (FILLED * size * size)
    visibilities = visibility_operator((1, size, size), *frequencies, seen.pixel_size(size), brightness)
    rows = (torch.from_numpy(part) for part in (closures.triangles, closures.signs, closures.quadrangles))
    likelihood = ClosureLikelihood(Closures(visibilities, *rows), torch.from_numpy(closures.covariance))
    truth = None
    if data == "simulated":
        generator = torch.Generator().manual_seed(seed)
        truth = density.sample(1, generator)
        measurements = likelihood.sample(truth, generator)
    else:
        measurements = torch.from_numpy(closures.value)[None]
    return InverseProblem(
        name="radio-closure",
        prior=sky,
        likelihood=likelihood,
        measurements=measurements.float(),
        truth=None if truth is None else truth.float(),
        image_shape=(size, size),
    )
