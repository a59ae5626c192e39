r"""`galaxy-field`: galaxies counted in cells; which field of dark matter lies behind them?

x is the Gaussian field g under a lognormal density contrast delta (Coles and Jones 1991, MNRAS 248, 1) in the cells of
a periodic square, and galaxies follow the density to the power of their bias b:

    g ~ N(0, P),    1 + delta = exp(g - s^2 / 2),    y_i ~ Poisson(nbar w_i (1 + delta_i)^b),

with P(f) ~ (knee^2 + |f|^2)^-slope, f in cycles per box, scaled to the variance s^2 of a cell. nbar is the number of
galaxies in a cell of mean density, and the selection w_i in [0, 1] the share of them that a survey finds. y are the
counts of the cells with w_i > 0, row by row; the others have no measurement. On average over g a cell has
nbar w_i exp(b (b - 1) s^2 / 2) galaxies. The posterior is unimodal: log p(y | x) is concave in g.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.field_denoiser import FieldDenoiser, power_law
from diffusion.prior import Prior
from diffusion.schedule import make_schedule
from envs.data.readers import npz_names, read_npz
from envs.likelihoods import PoissonLikelihood
from envs.operators import Lognormal, Pixels, compose
from envs.problem import InverseProblem
from envs.problems.trained_prior import trained_prior
from envs.registry import register

__all__ = ["GalaxyLikelihood", "galaxy_field", "survey"]

_log = logging.getLogger(__name__)

HOLE = 0.12  # radius of the part that nobody has seen, in units of the box


class GalaxyLikelihood(PoissonLikelihood):
    """Counts of mean nbar w (1 + delta)^b in the cells that were seen."""

    def __init__(self, selection: Tensor, galaxies: float, std: float, bias: float) -> None:
        """`selection` w [n, n], `galaxies` nbar; `std` and `bias` as in `envs.operators.Lognormal`."""
        mask = selection[None] > 0
        cells = Pixels(mask)
        density = Lognormal((1, *selection.shape), std, bias)
        super().__init__(compose(cells, density), exposure=galaxies * selection[None][mask])
        self._cells, self.bias = cells, bias

    def gradient(self, value: Tensor, measurement: Tensor) -> Tensor:
        """See `DifferentiableLikelihood`: b (y - lambda), as lambda ~ exp(b x); several times faster than autograd."""
        return self.bias * self._cells.adjoint(measurement.to(value) - self.mean(value))


def survey(size: int) -> Tensor:
    """[size, size] float64 selection of the simulated survey: fewer galaxies with distance (1 to 0.3), and a hole.

    The hole stands for a bright star of our own galaxy; its centre is at (0.4, 0.6) of the box.
    """
    line = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    selection = (1 - 0.7 * line[:, None]).expand(size, size).clone()
    selection[(line[:, None] - 0.4).square() + (line - 0.6).square() < HOLE**2] = 0
    return selection


def _read(path: Path) -> tuple[Tensor, Tensor]:
    """Counts and selection [n, n] float64 of an npz file with arrays of these names; the selection is one if absent.

    Raises:
        ValueError: no such file or array, or a cell that cannot be what it should.
    """
    if not path.is_file():
        raise ValueError(f"galaxy-field: there is no file {path}; it must be an npz of counts [n, n] and selection")
    names = npz_names(path)
    if not {"counts"} <= set(names) <= {"counts", "selection"}:
        raise ValueError(f"galaxy-field: {path} must hold counts and, if need be, a selection, got {', '.join(names)}")
    counts = read_npz(path, "counts")
    selection = read_npz(path, "selection") if "selection" in names else np.ones(counts.shape)
    for name, values in (("counts", counts), ("selection", selection)):
        if values.dtype.kind not in "iufb":
            raise ValueError(f"galaxy-field: {path}: {name} must be numbers, got {values.dtype}")
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or selection.shape != counts.shape:
        raise ValueError(
            f"galaxy-field: {path} must hold counts [n, n] and a selection of that shape, got {list(counts.shape)} "
            f"and {list(selection.shape)}"
        )
    if len(counts) < 4:
        raise ValueError(f"galaxy-field: {path} must hold at least 4 x 4 cells, got {list(counts.shape)}")
    seen = selection > 0
    _check(path, "selection must be within [0, 1]", selection, (selection >= 0) & (selection <= 1))
    whole = np.isfinite(counts) & (counts >= 0) & (counts == np.round(counts))
    _check(path, "counts must be whole numbers of 0 and more", counts, whole | ~seen)
    _check(path, "where the selection is 0 counts must be 0, or NaN", counts, seen | np.isnan(counts) | (counts == 0))
    if not seen.any():
        raise ValueError(f"galaxy-field: {path}: the selection is 0 everywhere")
    _log.info("%s: %d of %d cells have a selection of 0 and no measurement", path, (~seen).sum(), seen.size)
    return torch.from_numpy(np.where(seen, counts, 0).astype(float)), torch.from_numpy(selection.astype(float))


def _check(path: Path, expected: str, values: NDArray[np.generic], fine: NDArray[np.bool_]) -> None:
    if not fine.all():
        row, column = np.argwhere(~fine)[0]
        others = int((~fine).sum()) - 1
        more = f", and in {others} other cells" if others else ""
        raise ValueError(f"galaxy-field: {path}: {expected}, got {values[row, column]} at [{row}, {column}]{more}")


@register("galaxy-field")
def galaxy_field(
    *,
    size: int = 32,
    galaxies: float = 5.0,
    bias: float = 1.5,
    std: float = 1.0,
    slope: float = 1.5,
    knee: float = 2.0,
    prior: str | None = None,
    data: str | None = None,
    num_steps: int = 50,
    schedule: str = "vp-cosine-zero-snr",
    seed: int = 0,
) -> InverseProblem:
    """A field of `size` x `size` cells with nbar = `galaxies`, simulated with `seed`, or that of the file `data`.

    `data` is an npz file with the counts [n, n] and, unless all cells were seen alike, their selection; see `_read`.
    The prior is exact, or a trained one, `prior` by name or folder, of this `size`, `std`, `slope` and `knee`.
    """
    if not (galaxies > 0 and math.isfinite(galaxies)):
        raise ValueError(f"galaxies must be positive and finite, the number in a cell of mean density, got {galaxies}")
    counts, selection = (None, survey(size)) if data is None else _read(Path(data))
    size = len(selection)
    shape, mask = (1, size, size), selection[None] > 0
    exact = FieldDenoiser(std**2 * power_law(size, slope, knee))
    if prior is None:
        levels = make_schedule(schedule, num_steps, scale=std)
        made = Prior(exact, levels, shape, exact.denoising_variance, std)
    else:
        made = trained_prior(prior, shape, num_steps, schedule, "lognormal-fields", std=std, slope=slope, knee=knee)
    likelihood = GalaxyLikelihood(selection, galaxies, std, bias)
    if counts is None:
        generator = torch.Generator().manual_seed(seed)
        truth = exact.sample(1, generator) if prior is None else made.sample(1, generator).double()
        measurements = likelihood.sample(truth, generator)
    else:
        truth, measurements = None, counts[None][mask][None]

    def picture(value: Tensor) -> Tensor:
        image = torch.full((size * size,), torch.nan)
        image[mask.flatten()] = value.float()
        return image.reshape(size, size)

    return InverseProblem(
        name="galaxy-field",
        prior=made,
        likelihood=likelihood,
        measurements=measurements.float(),
        truth=None if truth is None else truth.float(),
        image_shape=(size, size),
        measurement_image=picture,
    )
