"""Forward operators against other implementations of the same maps, in turn in one process, one thread.

Each of `envs.operators` is held against numpy, scipy or torch's own functions, and where it is linear and small against
the dense matrix: A x, A^T y, and (A A^T + I)^-1 y, for which the dense matrix has its Cholesky factor already and ours
its spectrum. Times are medians of float32 batches; differences are of float64, relative to the largest number.

A ratio above one is how many times faster ours is. None of the others is a dependency that the project would not have.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import scipy.linalg
import scipy.ndimage
import scipy.signal
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from benchmarks.harness import parse, write_figures
from envs.operators import (
    Clipped,
    CodedMagnitudes,
    Convolution,
    ForwardOperator,
    FourierMagnitudes,
    LinearOperator,
    MaskedFourier,
    NonlinearBlurSurrogate,
    Pixels,
    Quantised,
    box_mask,
    gaussian_kernel,
    lower_resolution,
    motion_kernel,
    radon,
    random_lines,
    random_projections,
)

SIZES, SHORT_SIZES = {32: 64, 128: 8}, {32: 64}  # pixels a side: images in a batch
REPEATS, SHORT_REPEATS = 7, 3
LEAST_SECONDS = 2e-3  # of what is timed at once
DENSE = 2**21  # numbers of a matrix that is compared with

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Other:
    """Another implementation of an operator, of x [N, 1, S, S]."""

    rival: str
    """Whose it is."""
    forward: Map
    """A x."""
    adjoint: Map | None = None
    """A^T y, where the library has one."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One map, timed."""

    operator: str
    size: int
    what: str
    """forward, adjoint or solve."""
    other: str
    """What it is compared with."""
    seconds: float
    """Of ours."""
    other_seconds: float
    difference: float
    """Largest, relative to the largest number."""

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.other_seconds / self.seconds


def cases(size: int) -> dict[str, tuple[ForwardOperator, Other]]:
    """The operators for images [1, size, size], each with another implementation of it."""
    shape = (1, size, size)
    mask, lines = box_mask(shape, size // 4, size // 4, size // 2, size // 2), random_lines(size, size, 2.0)
    blur, shake = gaussian_kernel(1.5), motion_kernel(9)
    nonlinear, coded = NonlinearBlurSurrogate(shape), CodedMagnitudes(shape)
    projections = random_projections(shape, min(size * size // 4, DENSE // (size * size)))
    return {
        "pixels": (Pixels(mask), _of_numpy(lambda x: x[:, mask.numpy()], lambda y: _placed(y, mask.numpy()))),
        "blur, periodic": (Convolution(shape, blur), _of_ndimage(blur, "wrap")),
        "blur, zero": (Convolution(shape, blur, "zero"), _of_ndimage(blur, "constant")),
        "motion blur, zero": (Convolution(shape, shake, "zero"), _of_signal(shake)),
        "means of blocks": (
            lower_resolution(shape, 2),
            Other(
                rival="torch",
                forward=lambda x: functional.avg_pool2d(x, 2),
                adjoint=lambda y: functional.interpolate(y, scale_factor=2) / 4,
            ),
        ),
        "bicubic": (lower_resolution(shape, 2, "bicubic"), _of_torch(_bicubic, shape)),
        "projections": (projections, _of_numpy(*_product(projections.matrix))),
        "radon": (radon(shape, 12), Other(rival="scipy.ndimage", forward=_rays(size, 12))),
        "lines of frequencies": (MaskedFourier(shape, lines), _of_numpy(*_frequencies(lines.numpy()))),
        "magnitudes": (FourierMagnitudes(shape), _of_numpy(_magnitudes)),
        "coded magnitudes": (
            coded,
            _of_numpy(lambda x: np.abs(np.fft.rfft2(x[:, None] * coded.masks.numpy(), norm="ortho"))),
        ),
        "clipped": (Clipped(shape), _of_numpy(lambda x: np.clip(2 * x, -1, 1))),
        "quantised": (Quantised(shape, 4), _of_numpy(_quantised)),
        "blur by brightness": (nonlinear, _of_numpy(_nonlinear(nonlinear), rival="scipy.ndimage")),
    }


def _of_numpy(
    forward: Callable[..., NDArray[Any]], adjoint: Callable[..., NDArray[Any]] | None = None, rival: str = "numpy"
) -> Other:
    def wrapped(function: Callable[..., NDArray[Any]]) -> Map:
        return lambda value: torch.from_numpy(np.ascontiguousarray(function(value.numpy())))

    return Other(rival=rival, forward=wrapped(forward), adjoint=None if adjoint is None else wrapped(adjoint))


def _placed(value: NDArray[Any], mask: NDArray[Any]) -> NDArray[Any]:
    image = np.zeros((len(value), *mask.shape), value.dtype)
    image[:, mask] = value
    return image


def _of_ndimage(kernel: Tensor, mode: str) -> Other:
    weights = kernel.numpy()[None, None]
    return _of_numpy(
        lambda x: scipy.ndimage.convolve(x, weights, mode=mode),
        lambda y: scipy.ndimage.correlate(y, weights, mode=mode),
        "scipy.ndimage",
    )


def _of_signal(kernel: Tensor) -> Other:
    def convolved(value: NDArray[Any], weights: NDArray[Any]) -> NDArray[Any]:
        made: NDArray[Any] = scipy.signal.oaconvolve(value, weights.astype(value.dtype), mode="same", axes=(2, 3))
        return made

    weights = kernel.numpy()[None, None]
    flipped = weights[..., ::-1, ::-1]
    return _of_numpy(lambda x: convolved(x, weights), lambda y: convolved(y, flipped), "scipy.signal")


def _bicubic(value: Tensor) -> Tensor:
    resized: Tensor = functional.interpolate(value, scale_factor=0.5, mode="bicubic", antialias=True)
    return resized


def _of_torch(forward: Map, shape: tuple[int, ...]) -> Other:
    def adjoint(measurement: Tensor) -> Tensor:
        leaf = torch.zeros(len(measurement), *shape, dtype=measurement.dtype, requires_grad=True)
        return torch.autograd.grad(forward(leaf), leaf, measurement)[0]

    return Other(rival="torch", forward=forward, adjoint=adjoint)


def _product(matrix: Tensor) -> tuple[Callable[..., NDArray[Any]], Callable[..., NDArray[Any]]]:
    made = {kind: matrix.numpy().astype(kind) for kind in (np.float32, np.float64)}

    def adjoint(value: NDArray[Any]) -> NDArray[Any]:
        size = round(matrix.shape[1] ** 0.5)
        return (value @ made[value.dtype.type]).reshape(-1, 1, size, size)

    return lambda x: x.reshape(len(x), -1) @ made[x.dtype.type].T, adjoint


def _rays(size: int, count: int) -> Map:
    """Sums of x at points a pixel apart along rays, bilinear and zero outside."""
    centre, reach = (size - 1) / 2, size
    along, offset = np.arange(-reach, reach + 1), np.arange(size) - centre
    angle = np.arange(count)[:, None, None] * np.pi / count
    right = offset[:, None] * np.cos(angle) - along * np.sin(angle) + centre
    down = offset[:, None] * np.sin(angle) + along * np.cos(angle) + centre
    points = np.stack([down, right])

    def forward(value: Tensor) -> Tensor:
        images = [
            scipy.ndimage.map_coordinates(image, points, order=1, mode="grid-constant").sum(-1)
            for image in value[:, 0].numpy()
        ]
        return torch.from_numpy(np.stack(images))

    return forward


def _frequencies(mask: NDArray[Any]) -> tuple[Callable[..., NDArray[Any]], Callable[..., NDArray[Any]]]:
    def forward(value: NDArray[Any]) -> NDArray[Any]:
        seen = np.fft.fft2(value, norm="ortho")[..., mask]
        return np.stack([seen.real, seen.imag], -1)

    def adjoint(value: NDArray[Any]) -> NDArray[Any]:
        plane = np.zeros((len(value), 1, *mask.shape), np.result_type(value.dtype, np.complex64))
        plane[..., mask] = value[..., 0] + 1j * value[..., 1]
        return np.fft.ifft2(plane, norm="ortho").real

    return forward, adjoint


def _magnitudes(value: NDArray[Any]) -> NDArray[Any]:
    size = [2 * extent for extent in value.shape[2:]]
    return np.abs(np.fft.rfft2(value, s=size, norm="ortho")).reshape(len(value), -1)


def _quantised(value: NDArray[Any]) -> NDArray[Any]:
    levels = np.linspace(-1, 1, 4)
    return levels[np.digitize(value, (levels[1:] + levels[:-1]) / 2)].astype(value.dtype)


def _nonlinear(operator: NonlinearBlurSurrogate) -> Callable[..., NDArray[Any]]:
    def blurred(value: NDArray[Any], kernel: Tensor) -> NDArray[Any]:
        made: NDArray[Any] = scipy.ndimage.convolve(value, kernel.numpy()[None, None], mode="wrap")
        return made

    return lambda x: np.tanh(blurred(x, operator.blur.kernel) + 0.3 * blurred(x, operator.streak.kernel) ** 2)


def dense(operator: LinearOperator) -> Other | None:
    """The operator as a matrix, where it is small enough."""
    rows, columns = torch.Size(operator.measurement_shape).numel(), torch.Size(operator.event_shape).numel()
    if rows * columns > DENSE:
        return None
    matrix = operator.as_matrix()
    made = {kind: matrix.to(kind) for kind in (torch.float32, torch.float64)}
    return Other(
        rival="dense matrix",
        forward=lambda x: (x.flatten(1) @ made[x.dtype].T).reshape(-1, *operator.measurement_shape),
        adjoint=lambda y: (y.flatten(1) @ made[y.dtype]).reshape(-1, *operator.event_shape),
    )


def dense_solve(operator: LinearOperator) -> Map:
    """The map to (A A^T + I)^-1 y, by the Cholesky factor of the matrix, which is made beforehand."""
    matrix = operator.as_matrix().numpy()
    factor = scipy.linalg.cho_factor(matrix @ matrix.T + np.eye(len(matrix)))
    made = {np.float32: (factor[0].astype(np.float32), factor[1]), np.float64: factor}

    def solve(measurement: Tensor) -> Tensor:
        flat = measurement.flatten(1).numpy()
        solved = scipy.linalg.cho_solve(made[flat.dtype.type], flat.T, check_finite=False).T
        return torch.from_numpy(np.ascontiguousarray(solved)).reshape(measurement.shape)

    return solve


def in_turn(ours: Map, other: Map, value: Tensor, repeats: int) -> tuple[float, float]:
    """Median seconds of both, called in turn, each often enough at a time to be timed."""
    seconds: tuple[list[float], list[float]] = ([], [])
    calls = []
    for function in (ours, other):
        function(value)  # warms up
        start = time.perf_counter()
        function(value)
        calls.append(max(1, round(LEAST_SECONDS / max(time.perf_counter() - start, 1e-7))))
    for _ in range(repeats):
        for function, count, kept in zip((ours, other), calls, seconds, strict=True):
            start = time.perf_counter()
            for _ in range(count):
                function(value)
            kept.append((time.perf_counter() - start) / count)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def compared(
    operator: str, size: int, what: str, ours: Map, other: tuple[str, Map], value: Tensor, repeats: int
) -> Row:
    """Ours against `other`, a library's name and its map, at `value` float64."""
    name, theirs = other
    first, second = ours(value), theirs(value)
    difference = float((first - second.reshape(first.shape)).abs().max() / second.abs().max())
    seconds = in_turn(ours, theirs, value.float(), repeats)
    return Row(
        operator=operator,
        size=size,
        what=what,
        other=name,
        seconds=seconds[0],
        other_seconds=seconds[1],
        difference=difference,
    )


@torch.no_grad()
def measure(size: int, batch: int, repeats: int) -> list[Row]:
    """All operators at one size."""
    rows, generator = [], torch.Generator().manual_seed(0)
    for name, (operator, first) in cases(size).items():
        value = torch.rand(batch, 1, size, size, generator=generator, dtype=torch.float64) * 2 - 1
        others = [first]
        if isinstance(operator, LinearOperator):
            matrix = dense(operator)
            others += [] if matrix is None else [matrix]
        for other in others:
            rows.append(compared(name, size, "forward", operator, (other.rival, other.forward), value, repeats))
        if not isinstance(operator, LinearOperator):
            continue
        seen = operator(value)
        for other in others:
            if other.adjoint is not None:
                with torch.enable_grad():
                    what = (other.rival, other.adjoint)
                    rows.append(compared(name, size, "adjoint", operator.adjoint, what, seen, repeats))
        if matrix is not None:
            spectrum = operator.spectrum()
            theirs = ("Cholesky factor", dense_solve(operator))
            ours = partial(spectrum.solve, scale=1.0, shift=1.0)
            rows.append(compared(name, size, "solve", ours, theirs, seen, repeats))
    return rows


def main() -> None:
    """Runs the benchmark."""
    benchmark = parse("operators", __doc__ or "")
    sizes, repeats = (SHORT_SIZES, SHORT_REPEATS) if benchmark.short else (SIZES, REPEATS)
    rows = [row for size, batch in sizes.items() for row in measure(size, batch, repeats)]
    print("| operator | pixels | batch | | against | ours, ms | other, ms | times faster | largest difference |")
    print("|---|---:|---:|---|---|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row.operator} | {row.size} | {sizes[row.size]} | {row.what} | {row.other} | {1e3 * row.seconds:.3f} "
            f"| {1e3 * row.other_seconds:.3f} | {row.ratio:.2f} | {row.difference:.1e} |"
        )
    figures = {
        "largest_difference": max(row.difference for row in rows),
        "median_ratio": statistics.median(row.ratio for row in rows),
        "least_ratio": min(row.ratio for row in rows),
        "slower": float(sum(row.ratio < 1 for row in rows)),
        "compared": float(len(rows)),
    }
    print()
    for name, value in figures.items():
        print(f"{name:40} {value:.4g}")
    write_figures(benchmark.json, figures)


if __name__ == "__main__":
    main()
