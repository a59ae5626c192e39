r"""Strong lensing: a galaxy seen through the gravity of another one, by the ray tracing of caustics.

The lens is a singular isothermal ellipsoid, or a power law of another slope, with external shear. A ray that is seen at
theta comes from beta = theta - alpha(theta), alpha its deflection in arcsec (Keeton 2001, arXiv astro-ph/0102341;
Tessore and Metcalf 2015, 1507.01819), and carries the source's brightness there, which is bilinear between the source's
pixels and zero beyond their edges. The image is the mean over the points of each pixel, blurred by the point spread:

    y = K P S(theta) x,

linear in the source x for a known lens. Angles are in arcsec from the middle of the image, x to the right along columns
and y up along rows (rows in the order of FITS); brightnesses, of source and image alike, are per unit of solid angle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from envs.data.location import MissingDataError
from envs.data.point_spread import PointSpread
from envs.data.sky_coordinates import same_scale
from envs.operators.sparse import SparseMatrix

__all__ = ["LENS_PARAMETERS", "LensedImage", "LensedSource", "deflection", "lens_parameters"]

LENS_PARAMETERS = ("einstein_radius", "ellipticity_1", "ellipticity_2", "x", "y", "shear_1", "shear_2")
"""Einstein radius (arcsec); ellipticity (1 - q) / (1 + q) times cos and sin of twice the position angle, q the ratio of
the axes; the lens's centre (arcsec); external shear."""

SERIES = 18  # terms of the deflection of a power law, those of caustics
ROUNDEST, FLATTEST = 1e-4, 0.9  # ellipticities between which the deflection is computed: at 0 its formula is 0 / 0
COLUMNS = 256  # pixels of the source at a time


def lens_parameters(
    einstein_radius: float,
    ellipticity: tuple[float, ...] = (0.0, 0.0),
    centre: tuple[float, ...] = (0.0, 0.0),
    shear: tuple[float, ...] = (0.0, 0.0),
) -> Tensor:
    """[7] float64 `LENS_PARAMETERS`.

    Raises:
        ValueError: an Einstein radius that is not positive, or a pair that is none or too large.
    """
    if not (einstein_radius > 0 and math.isfinite(einstein_radius)):
        raise ValueError(f"einstein_radius must be positive, in arcsec, got {einstein_radius}")
    for name, pair, most in (("ellipticity", ellipticity, FLATTEST), ("centre", centre, math.inf), ("shear", shear, 1)):
        if len(pair) != 2 or not math.hypot(*pair) < most:
            raise ValueError(f"{name} must be two numbers, together less than {most}, got {tuple(pair)}")
    return torch.tensor([einstein_radius, *ellipticity, *centre, *shear], dtype=torch.float64)


def deflection(x: Tensor, y: Tensor, parameters: Tensor, slope: float = 1.0) -> tuple[Tensor, Tensor]:
    """Deflection angles alpha_x, alpha_y [N, G] (arcsec) of rays seen at `x`, `y` [G] by lenses `parameters` [N, 7].

    The convergence falls as r^-`slope`: 1 is isothermal.

    Raises:
        MissingDataError: caustics is not installed.
    """
    try:
        from caustics.lenses import func  # seconds to import, and only lensing needs it
    except ImportError:
        raise MissingDataError("lenses are traced by caustics: pip install 'rtb[astronomy]' or caustics") from None
    radius, first, second, x0, y0, shear_1, shear_2 = parameters.unbind(-1)
    ellipticity = (first.square() + second.square()).clamp_min(ROUNDEST**2).sqrt().clamp_max(FLATTEST)
    ratio, angle = (1 - ellipticity) / (1 + ellipticity), 0.5 * torch.atan2(second, first)
    columns = [value[..., None] for value in (x0, y0, ratio, angle, radius, shear_1, shear_2)]
    x0, y0, ratio, angle, radius, shear_1, shear_2 = columns
    if slope == 1:
        bent = func.reduced_deflection_angle_sie(x0, y0, ratio, angle, radius, x, y)
    else:
        bent = func.reduced_deflection_angle_epl(x0, y0, ratio, angle, radius, slope, x, y, SERIES)
    zero = torch.zeros_like(x0)
    sheared = func.reduced_deflection_angle_external_shear(zero, zero, shear_1, shear_2, x, y)
    return bent[0] + sheared[0], bent[1] + sheared[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class LensedImage:
    """The camera, and the grid that the source is on."""

    pixels: int
    """The image is of `pixels` x `pixels`,"""
    pixel_scale: float
    """arcsec each,"""
    subsampling: int = 2
    """with as many points along each side of a pixel."""
    point_spread: PointSpread | None = None
    """At the scale of the pixels, or at that of their points; None: none."""
    source_pixels: int = 16
    """The source is of `source_pixels` x `source_pixels`,"""
    source_pixel_scale: float = 0.05
    """arcsec each,"""
    source_centre: tuple[float, float] = (0.0, 0.0)
    """around this place, arcsec."""
    slope: float = 1.0
    """Of the lens, see `deflection`."""

    def __post_init__(self) -> None:
        for name, least in (("pixels", 1), ("subsampling", 1), ("source_pixels", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("pixel_scale", "source_pixel_scale"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be positive, in arcsec, got {getattr(self, name)}")
        if not 0 < self.slope < 2:
            raise ValueError(f"the slope of a lens must be within (0, 2), got {self.slope}")
        if self.point_spread is not None:
            own, fine = self.point_spread.pixel_scale, self.pixel_scale / self.subsampling
            if not (same_scale(own, self.pixel_scale) or same_scale(own, fine)):
                raise ValueError(
                    f"the point spread has pixels of {own:g} arcsec, but the image has ones of {self.pixel_scale:g}, "
                    f"and {fine:g} between its points: resample it (`PointSpread.resampled`)"
                )

    @property
    def _is_fine(self) -> bool:
        """Whether the point spread is at the scale of the points."""
        spread = self.point_spread
        return spread is not None and self.subsampling > 1 and not same_scale(spread.pixel_scale, self.pixel_scale)

    @property
    def _margin(self) -> int:
        """Points beyond each edge that are blurred into the image."""
        if self.point_spread is None:
            return 0
        half = max(self.point_spread.kernel.shape) // 2
        return half if self._is_fine else half * self.subsampling

    @property
    def side(self) -> int:
        """Points along a side of the field, margins included."""
        return self.pixels * self.subsampling + 2 * self._margin

    def points(self) -> tuple[Tensor, Tensor]:
        """The x and y [side^2] (arcsec, float64) of the points where rays are seen, row by row."""
        line = torch.arange(self.side, dtype=torch.float64) - (self.side - 1) / 2
        up, right = torch.meshgrid(line, line, indexing="ij")
        scale = self.pixel_scale / self.subsampling
        return right.flatten() * scale, up.flatten() * scale

    def corners(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Where the rays of lenses `parameters` [N, 7] come from: pixels of the source [N, 4, G] and their weights.

        Weights are those of bilinear interpolation, zero for rays from beyond the source's edges; in the half pixel
        within them they extrapolate, as those of caustics do.
        """
        x, y = self.points()
        bent_x, bent_y = deflection(x, y, parameters, self.slope)
        size, scale = self.source_pixels, self.source_pixel_scale
        column = (x - bent_x - self.source_centre[0]) / scale + (size - 1) / 2
        row = (y - bent_y - self.source_centre[1]) / scale + (size - 1) / 2
        inside = (column >= -0.5) & (column <= size - 0.5) & (row >= -0.5) & (row <= size - 0.5)
        left, below = (place.detach().floor().clamp(0, size - 2) for place in (column, row))
        right, up = column - left, row - below
        weights = torch.stack([(1 - up) * (1 - right), (1 - up) * right, up * (1 - right), up * right], -2)
        first = (below * size + left).long()
        pixels = torch.stack([first, first + 1, first + size, first + size + 1], -2)
        return pixels, torch.where(inside[..., None, :], weights, 0.0)

    def observed(self, brightness: Tensor) -> Tensor:
        """[N, pixels, pixels] what the camera sees of `brightness` [N, G] at the points."""
        field = brightness.reshape(-1, 1, self.side, self.side)
        average, spread = torch.nn.functional.avg_pool2d, self.point_spread
        if spread is None:
            return average(field, self.subsampling)[:, 0]
        half = max(spread.kernel.shape) // 2
        rows, columns = spread.kernel.shape
        kernel = torch.nn.functional.pad(
            spread.kernel.to(field).flip(0, 1), [half - columns // 2] * 2 + [half - rows // 2] * 2
        )[None, None]
        if self._is_fine:
            return average(torch.nn.functional.conv2d(field, kernel), self.subsampling)[:, 0]
        return torch.nn.functional.conv2d(average(field, self.subsampling), kernel)[:, 0]

    def matrix(self, parameters: Tensor) -> SparseMatrix:
        """The map from the source [1, n, n] to the image [pixels, pixels] by the lens `parameters` [7]."""
        pixels, weights = (value[0] for value in self.corners(parameters[None]))
        count, size = self.side**2, self.source_pixels**2
        rays = torch.arange(count).expand_as(pixels)
        traced = SparseMatrix((size,), (count,), rays.flatten(), pixels.flatten(), weights.flatten())
        found: list[tuple[Tensor, Tensor]] = []
        for part in torch.eye(size, dtype=torch.float64).split(COLUMNS):
            seen = self.observed(traced(part)).flatten(1)
            places = seen.nonzero()
            found.append((places + torch.tensor([len(found) * COLUMNS, 0]), seen[places[:, 0], places[:, 1]]))
        columns, rows = torch.cat([places for places, _ in found]).T
        shape = (1, self.source_pixels, self.source_pixels)
        values = torch.cat([value for _, value in found])
        return SparseMatrix(shape, (self.pixels, self.pixels), rows, columns, values)


class LensedSource(nn.Module):
    """Source and lens together: x [N, D + 7] -> images, x the source's pixels and then the lens's parameters.

    These are x's last seven numbers times `scale` and more than `middle`; the rays are traced anew for every x.
    """

    middle: Tensor
    scale: Tensor

    def __init__(self, image: LensedImage, middle: Tensor, scale: Tensor) -> None:
        """`middle` and `scale` [7] of `LENS_PARAMETERS`."""
        super().__init__()
        self.image = image
        self.measurement_shape: tuple[int, ...] = (image.pixels, image.pixels)
        self.register_buffer("middle", middle.double())
        self.register_buffer("scale", scale.double())

    def parameters_of(self, value: Tensor) -> Tensor:
        """[N, 7] float64 `LENS_PARAMETERS` of x = `value` [N, D + 7]."""
        return self.middle + self.scale * value[:, -len(LENS_PARAMETERS) :].double()

    def forward(self, value: Tensor) -> Tensor:
        """See `envs.operators.ForwardOperator`; positions in float64, as their differences matter."""
        pixels, weights = self.image.corners(self.parameters_of(value))
        source = value[:, : -len(LENS_PARAMETERS)]
        seen = source.gather(1, pixels.flatten(1)).reshape(pixels.shape)
        return self.image.observed((seen * weights.to(value)).sum(1))
