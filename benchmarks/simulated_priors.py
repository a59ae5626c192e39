"""The priors `spectra`, `clusters` and `fields` against fresh draws of the models that they were trained on.

Draws of each by chains of 50 and 200 steps, of the exact prior of the same model that the problem makes by itself (a
kernel density; of fields the model itself) by its chain of 50, and fresh ones of the model, from another seed than the
training's. Compared are the means and standard deviations of the elements of x, the sliced 2-Wasserstein distance, and
the distributions of what one looks for in such x, by the distance of Kolmogorov and Smirnov. What fresh draws score
against others, the floor, stands beside: that distance of 1,000 and 1,000 exceeds 0.061 one time in twenty. What the
exact prior shares with the trained one is of the chain: its transitions have one standard deviation for all directions,
and with few steps draws are too narrow where x varies most.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import ks_2samp
from torch import Tensor

from benchmarks.harness import parse, write_figures
from diffusion.stored_prior import load_prior, read_prior
from envs import make_problem
from envs.data import load_dataset
from envs.data.xray_spectra import energy_edges
from envs.problems.cluster_sz_xray import cluster_masses
from evaluation.distance import sliced_wasserstein2

Features = dict[str, NDArray[np.float64]]

DRAWS, SHORT_DRAWS = 1_000, 100
BANDS = ((1, 2), (2, 4), (4, 6), (6, 12))  # cycles per box, for fields of 16 x 16 cells
IRON = (4.9, 6.8)  # keV, where a line of iron is seen at redshifts of 0 to 0.3


def of_spectra(value: Tensor) -> Features:
    """Level, slope, absorption, and how far the line of iron stands out and where, of x = `value` [N, 24]."""
    x = value.double().numpy()
    middle = np.sqrt(
        np.multiply(*(energy_edges(0.5, 7.0, x.shape[1])[cut] for cut in (slice(None, -1), slice(1, None))))
    )
    rows = [row for row in range(1, x.shape[1] - 1) if IRON[0] < middle[row] < IRON[1]]
    above = np.stack([x[:, row] - 0.5 * (x[:, row - 1] + x[:, row + 1]) for row in rows], 1)
    place = middle[rows][above.argmax(1)]
    return {
        "level": x.mean(1),
        "slope": x[:, 16] - x[:, 10],
        "absorption": x[:, 0] - x[:, 6],
        "iron": above.max(1),
        "iron_energy": np.where(above.max(1) > 0.15, place, 0.0),
    }


def of_clusters(value: Tensor) -> Features:
    """Pressure, temperature, slope and dark matter of x = `value` [N, 2, 8], and whether the mass rises outwards."""
    x, masses = value.double().numpy(), cluster_masses(value)
    return {
        "pressure": x[:, 1, 4],
        "temperature": x[:, 1, 4] - x[:, 0, 4],
        "density_slope": x[:, 0, -1] - x[:, 0, 0],
        "dark": masses.dark[:, 5],
        "rises": (np.diff(masses.total) > 0).all(1).astype(float),
    }


def of_fields(value: Tensor) -> Features:
    """Log power in bands of frequency (cycles per box), level and fullest cell, of x = `value` [N, 1, n, n]."""
    x = value[:, 0].double()
    size = x.shape[-1]
    frequency = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64)
    radius = torch.hypot(frequency[:, None], frequency[None])
    power = torch.fft.fft2(x).abs().square() / size**2
    bands = {
        f"power_{low}_{high}": power[:, (radius >= low) & (radius < high)].mean(1).log().numpy() for low, high in BANDS
    }
    return bands | {"level": x.mean((1, 2)).numpy(), "fullest": x.amax((1, 2)).numpy()}


PRIORS: dict[str, tuple[Callable[[Tensor], Features], tuple[int, ...]]] = {
    "spectra": (of_spectra, (50, 200)),
    "clusters": (of_clusters, (50, 200)),
    "fields": (of_fields, (50, 200)),
}
"""What one looks for, and numbers of steps."""
PROBLEMS: dict[str, tuple[str, dict[str, object]]] = {
    "spectra": ("xray-spectrum", {}),
    "clusters": ("cluster-sz-xray", {}),
    "fields": ("galaxy-field", {"size": 16}),
}
"""That take the prior, and have an exact one."""


def fresh(name: str, count: int, seed: int) -> Tensor:
    """[count, *D] draws of the model that the prior called `name` was trained on."""
    options = dict(read_prior(name).data or {})
    data = load_dataset(**options | {"count": count, "seed": options["seed"] + seed})
    return torch.cat([data.train, data.held_out])


def compared(draws: Tensor, model: Tensor, features: Callable[[Tensor], Features]) -> dict[str, float]:
    """Distances between two samples of one size."""
    first, second = draws.double().flatten(1), model.double().flatten(1)
    spread = second.std(0)
    figures = {
        "mean": float(((first.mean(0) - second.mean(0)) / spread).abs().max()),
        "std": float((first.std(0) / spread - 1).abs().max()),
        "sliced_w2": sliced_wasserstein2(draws, model, generator=torch.Generator().manual_seed(0)),
    }
    theirs = features(model)
    return figures | {
        f"ks_{key}": float(ks_2samp(each, theirs[key], method="asymp").statistic)
        for key, each in features(draws).items()
    }


def main() -> None:
    """Runs the benchmark."""
    benchmark = parse("simulated_priors", __doc__ or "")
    count = SHORT_DRAWS if benchmark.short else DRAWS
    figures: dict[str, float] = {}
    for name, (features, steps) in PRIORS.items():
        model = fresh(name, count, 1)
        chains = {f"trained, {number} steps": load_prior(name, number) for number in steps}
        chains["exact, 50 steps"] = make_problem(*PROBLEMS[name]).prior
        sets = {kind: prior.sample(count, torch.Generator().manual_seed(0)) for kind, prior in chains.items()}
        rows = {kind: compared(draws, model, features) for kind, draws in sets.items()}
        rows["floor"] = compared(fresh(name, count, 2), model, features)
        print(f"\n{name}: {count:,} draws each\n\n| | {' | '.join(rows)} |\n|---|{'---:|' * len(rows)}")
        for key in rows["floor"]:
            print(f"| {key} | {' | '.join(f'{row[key]:.3f}' for row in rows.values())} |")
        for kind, row in rows.items():
            figures |= {
                f"{name}_{kind.replace(', ', '_').replace(' ', '_')}_{key}": value for key, value in row.items()
            }
    write_figures(benchmark.json, figures)


if __name__ == "__main__":
    main()
