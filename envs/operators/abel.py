r"""A round cloud seen from outside: line integrals through spherical shells (Abel 1826).

A line that passes the centre at the distance R goes through the shell between the radii a < b on a path of

    2 (sqrt(max(b^2 - R^2, 0)) - sqrt(max(a^2 - R^2, 0))),

so that the integral of what is constant in each shell is a matrix of these lengths times its values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from envs.operators.convolution import Convolution, gaussian_kernel

__all__ = ["projected_map", "shell_paths"]

POINTS = 4  # a side of a pixel, over whose middles its mean is taken
REACH = 4.0  # standard deviations of the beam that the map is made larger by, so that it is whole at the edge


def shell_paths(edges: Tensor, distance: Tensor) -> Tensor:
    """[*R, S] path of lines at `distance` [*R] from the centre, in shells between `edges` [S + 1], ascending from 0."""
    if edges.ndim != 1 or len(edges) < 2 or float(edges[0]) != 0 or not bool((edges.diff() > 0).all()):
        raise ValueError(f"edges of shells must ascend from 0, got {edges.tolist()}")
    half = (edges.square() - distance[..., None].square()).clamp_min(0).sqrt()
    return 2 * half.diff(dim=-1)


def projected_map(edges: Tensor, pixels: int, width: float, beam: float = 0.0) -> Tensor:
    """[pixels^2, S] float64: the mean path in each shell over each pixel of a map in whose middle the cloud is.

    `width` of a pixel and the standard deviation `beam` of a Gaussian that the map is blurred by (0: none) are in the
    unit of `edges` [S + 1].
    """
    margin = int(-(-REACH * beam // width)) if beam > 0 else 0
    whole = pixels + 2 * margin
    line = ((torch.arange(POINTS * whole, dtype=torch.float64) + 0.5) / POINTS - whole / 2) * width
    paths = shell_paths(edges.double(), torch.hypot(line[:, None], line)).permute(2, 0, 1)[:, None]
    mean = torch.nn.functional.avg_pool2d(paths, POINTS)
    if beam > 0:
        kernel = gaussian_kernel(beam / width, 2 * margin + 1)
        mean = Convolution((1, whole, whole), kernel, "zero")(mean)
    inside = slice(margin, margin + pixels)
    return mean[:, 0, inside, inside].reshape(len(edges) - 1, -1).T.contiguous()
