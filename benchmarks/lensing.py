"""The sparse operator of a known lens against caustics' own simulation of it, in the same run, one thread.

Error: the largest difference of two images over the largest brightness. Time: of one source at a time, and of a batch
of 64 (caustics under torch.vmap, which traces the rays once for all). Building: what the matrix costs, once. Besides,
where it is asked for, the evidence of `lensing-joint` by importance sampling over lenses, the source integrated in
closed form: what the evidence that a training run reports can be compared with.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import write_figures
from envs import InverseProblem, make_problem
from envs.data.point_spread import gaussian_point_spread
from envs.exact.mixture import condition_mixture
from envs.operators.lensing import LENS_PARAMETERS, LensedImage, LensedSource, lens_parameters

LENS = {"einstein_radius": 0.9, "ellipticity": (0.1, 0.06), "centre": (0.05, -0.03), "shear": (0.03, -0.02)}
BATCH, REPEATS = 64, 10
POPULATION, ROUNDS = 64, 4


def simulation(scene: LensedImage, source: Tensor) -> Callable[[Tensor], Tensor]:
    """Caustics' own simulation of `scene`: from a source [n, n] to its image, in the dtype of `source`."""
    import caustics

    cosmology = caustics.FlatLambdaCDM(name="cosmology")
    ellipticity = math.hypot(*LENS["ellipticity"])
    x0, y0 = LENS["centre"]
    lens = caustics.SIE(
        cosmology=cosmology,
        x0=x0,
        y0=y0,
        q=(1 - ellipticity) / (1 + ellipticity),
        phi=0.5 * math.atan2(*reversed(LENS["ellipticity"])),
        Rein=LENS["einstein_radius"],
    )
    gamma_1, gamma_2 = LENS["shear"]
    shear = caustics.ExternalShear(cosmology=cosmology, x0=0.0, y0=0.0, gamma_1=gamma_1, gamma_2=gamma_2)
    plane = caustics.SinglePlane(cosmology=cosmology, lenses=[lens, shear], z_l=0.5, z_s=1.0)
    light = caustics.Pixelated(x0=0.0, y0=0.0, pixelscale=scene.source_pixel_scale, shape=tuple(source.shape))
    assert scene.point_spread is not None
    made = caustics.LensSource(
        plane,
        light,
        pixelscale=scene.pixel_scale,
        pixels_x=scene.pixels,
        upsample_factor=scene.subsampling,
        psf=scene.point_spread.kernel,
    ).to(dtype=source.dtype)
    return lambda image: made(image.flatten())  # its only parameter that has no value


def seconds(call: Callable[[], object]) -> float:
    """The least wall time of a call."""
    call()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def compared(dtype: torch.dtype) -> dict[str, float]:
    """Error, times and adjoint of both, in `dtype`."""
    spread = gaussian_point_spread(0.2, 0.08)
    scene = LensedImage(pixels=24, pixel_scale=0.16, point_spread=spread, source_pixels=16, source_pixel_scale=0.1)
    start = time.perf_counter()
    operator = scene.matrix(lens_parameters(**LENS))
    build = time.perf_counter() - start
    generator = torch.Generator().manual_seed(0)
    sources = torch.rand(BATCH, 1, 16, 16, generator=generator, dtype=torch.float64).to(dtype)
    images = torch.randn(BATCH, 24, 24, generator=generator, dtype=torch.float64).to(dtype)
    simulate = simulation(scene, sources[0, 0])
    batched = torch.vmap(simulate)
    with torch.no_grad():
        ours, theirs = operator(sources), batched(sources[:, 0])
        left, right = (ours * images).sum(), (sources * operator.adjoint(images)).sum()
        return {
            "error": float((ours - theirs).abs().max() / ours.abs().max()),
            "adjoint_error": float((left - right).abs() / (ours.norm() * images.norm())),
            "speedup": seconds(lambda: simulate(sources[0, 0])) / seconds(lambda: operator(sources[:1])),
            "speedup_batched": seconds(lambda: batched(sources[:, 0])) / seconds(lambda: operator(sources)),
            "milliseconds": 1e3 * seconds(lambda: operator(sources[:1])),
            "build_seconds": build,
        }


def joint_evidence(problem: InverseProblem, seed: int = 0) -> tuple[float, float]:
    """(log p(y), its standard error) of `lensing-joint`: importance sampling over the seven parameters of the lens.

    A Gaussian proposal, wider than the posterior by half, is fitted to the weighted draws of each round, the first
    being the prior's; the estimate is that of the last.
    """
    operator, density = problem.likelihood.operator, problem.prior.denoiser
    assert isinstance(operator, LensedSource)
    count, size = len(LENS_PARAMETERS), operator.image.source_pixels**2
    means, covariance = density.means[:, :size], density.covariance[:size, :size]
    scale, y = density.covariance[-1, -1].sqrt(), problem.measurements[0].double().flatten()
    prior = torch.distributions.MultivariateNormal(torch.zeros(count).double(), scale**2 * torch.eye(count).double())
    proposal, generator = prior, torch.Generator().manual_seed(seed)
    for _ in range(ROUNDS):
        noise = torch.randn(POPULATION, count, generator=generator, dtype=torch.float64)
        drawn = proposal.mean + noise @ proposal.scale_tril.T
        exact = []
        for parameters in operator.middle + operator.scale * drawn:
            matrix = operator.image.matrix(parameters).as_matrix()
            parts = (means, covariance, density.log_weights, matrix, problem.likelihood.noise_std, y)
            exact.append(condition_mixture(*parts, (size,)).log_partition)
        log_weight = torch.tensor(exact).double() + prior.log_prob(drawn) - proposal.log_prob(drawn)
        weight = log_weight.softmax(0)
        tempered = (log_weight / max(1.0, float(log_weight.std()))).softmax(0)  # of one draw there is no covariance
        middle = tempered @ drawn
        centred = drawn - middle
        spread = 1.5 * (tempered[:, None] * centred).T @ centred + 1e-4 * scale**2 * torch.eye(count).double()
        proposal = torch.distributions.MultivariateNormal(middle, spread)
    error = math.sqrt(max(float(POPULATION * weight.square().sum()) - 1, 0.0) / POPULATION)
    return float(log_weight.logsumexp(0)) - math.log(POPULATION), error


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lensing", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--joint", action="store_true", help="the evidence of lensing-joint too")
    parser.add_argument("--prior", default="sersic", help="of lensing-joint")
    known = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # caustics' of redshifts, which deflections in arcsec do not need
    figures = {}
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        figures |= {f"{key}_{name}": value for key, value in compared(dtype).items()}
    if known.joint:
        problem = make_problem("lensing-joint", {"prior": known.prior})
        figures["joint_log_evidence"], figures["joint_log_evidence_error"] = joint_evidence(problem)
    for key, value in figures.items():
        print(f"{key:32} {value:.4g}")
    write_figures(known.json, figures)


if __name__ == "__main__":
    main()
