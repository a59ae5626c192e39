"""Which measurement is meant, a row of the problem's or a file, checked before anything is done with it."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from actors import rollout
from diffusion.posterior import Posterior
from envs import InverseProblem
from system.config import RunConfig
from system.errors import ConfigError

__all__ = ["measured", "read_measurement", "unlike_simulated"]

SIMULATED = 256  # measurements that a new one is compared with


def read_measurement(path: Path, problem: InverseProblem) -> Tensor:
    """[*Y] float32 y from a .npy file, or from the one array in a .npz file.

    Raises:
        ConfigError: no such file, no array of numbers, another shape than that of the problem's measurements, or a
            number that is not finite.
    """
    shape, what = tuple(problem.likelihood.measurement_shape), f"--measurement {path}"
    try:
        found = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise ConfigError(f"{what}: there is no such file") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        # Of what it does not know numpy believes that it is a pickle, and says how to load that.
        reason = "another kind of file" if "pickle" in str(error) else " ".join(str(error).split())
        raise ConfigError(f"{what}: expected a .npy file, or a .npz file with one array, got {reason}") from None
    if isinstance(found, np.lib.npyio.NpzFile):
        with found:
            if len(found.files) != 1:
                names = ", ".join(found.files) or "none"
                raise ConfigError(f"{what}: expected one array in the file, got {len(found.files)}: {names}")
            try:
                value = found[found.files[0]]
            except (OSError, ValueError, zipfile.BadZipFile) as error:
                raise ConfigError(f"{what}: expected an array of numbers, got {' '.join(str(error).split())}") from None
    else:
        value = found
    if value.dtype.kind not in "fiub":
        raise ConfigError(f"{what}: expected real numbers, got an array of dtype {value.dtype}")
    if value.shape != shape:
        raise ConfigError(
            f"{what}: problem {problem.name!r} has measurements of shape {shape}, got an array of shape {value.shape}"
        )
    if not np.isfinite(value).all():
        raise ConfigError(
            f"{what}: every number must be finite, got {np.count_nonzero(~np.isfinite(value))} NaN or infinite ones "
            f"of {value.size}"
        )
    return torch.from_numpy(value.astype(np.float32))


def unlike_simulated(problem: InverseProblem, measurement: Tensor, *, seed: int = 0) -> str | None:
    """Why y = `measurement` [*Y] is not like what the prior and the likelihood make, or None.

    Compared is the root mean square of (y - mean) / standard deviation, element by element, with the largest one of
    simulated measurements. None too where the likelihood cannot be simulated.
    """
    if not problem.simulable:
        return None
    generator = problem.generator(seed)
    with problem.placement():
        paths = rollout(problem, None, torch.zeros(SIMULATED, dtype=torch.int64), generator=generator)
        drawn = problem.simulate(paths.states[:, -1], generator).cpu().double().flatten(1)
    mean, spread = drawn.mean(0), drawn.std(0)
    spread = spread.clamp_min(1e-6 * float(drawn.abs().max().clamp_min(1e-30)))
    usual = float(((drawn - mean) / spread).square().mean(1).sqrt().max())
    size = float(((measurement.double().flatten() - mean) / spread).square().mean().sqrt())
    if size <= usual:
        return None
    return (
        f"the measurement is {size:.3g} standard deviations from the mean of simulated ones, {SIMULATED} of which are "
        f"{usual:.3g} away at most: check its units, or do not trust a posterior that learned from simulations alone"
    )


def measured(
    problem: InverseProblem,
    measurement: int | Path,
    config: RunConfig | None = None,
    posterior: Posterior | None = None,
) -> tuple[InverseProblem, int]:
    """(problem, row) of `measurement`, a row of the problem's own or a file.

    A file is refused where `posterior`, which learned by `config`, is not one of its measurement.
    """
    if isinstance(measurement, Path):
        value = read_measurement(measurement, problem)
        if (
            posterior is not None
            and not posterior.sees_measurement
            and not torch.equal(value, problem.measurements[0].cpu())
        ):
            raise ConfigError(
                f"--measurement {measurement}: the posterior of this run does not see y, so it is that of its own "
                "measurement alone; train at this one (`rtb train CONFIG --measurement FILE`), or sample with --exact"
            )
        doubts = [unlike_simulated(problem, value)]
        if config is not None and not (config.actor.simulated_measurements or "joint" in config.actor.kinds):
            doubts.append("this run was trained at its own measurements alone, and need not be right at another")
        for doubt in filter(None, doubts):
            sys.stderr.write(f"rtb: warning: {doubt}\n")
        return problem.at(value[None]).solved(), 0
    if not 0 <= measurement < len(problem.measurements):
        raise ConfigError(
            f"--measurement must be within 0..{len(problem.measurements) - 1}, the rows of problem {problem.name!r}, "
            f"got {measurement}"
        )
    return problem, measurement
