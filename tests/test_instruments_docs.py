"""The examples of the page of instruments start from a user's files, and run."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits

from envs.data.cluster_profiles import angular_distance, reference
from envs.operators import Shear
from envs.operators.abel import shell_paths
from envs.operators.cluster_gas import band_emissivity
from envs.problems.cluster_sz_xray import cluster_masses
from tests import ogip_files

ROOT = Path(__file__).resolve().parents[1]


def _example(heading, number=0):
    """The Python block of this number under a heading of the page."""
    text = (ROOT / "docs" / "instruments.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return section.split("```python\n")[1 + number].split("```")[0]


@pytest.mark.parametrize(
    ("heading", "output"),
    [
        ("Galaxies on a field of dark matter", "(1, 12, 12) torch.Size([1, 108])"),
        ("X-ray spectra", "torch.Size([1, 4]) groups of channels; 3 counts of background"),
    ],
)
def test_the_example_of_an_instrument_reads_a_users_files(tmp_path, monkeypatch, capsys, heading, output):
    ogip_files.write_observation(tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(_example(heading), {})
    assert capsys.readouterr().out.strip() == output


def test_closures_of_ones_own_visibilities_know_nothing_of_the_gains(tmp_path, monkeypatch, capsys):
    """Five stations with gains of their own see a point in the middle three times: 6 phases and 5 amplitudes each."""
    random = np.random.default_rng(0)
    place = random.uniform(-2.5e9, 2.5e9, (5, 2))
    rows = ["#time(UTC),T1,T2,U(lambda),V(lambda),Iamp(Jy),Iphase(d),Isigma(Jy)"]
    for hour in range(3):
        gain = random.lognormal(0, 0.3, 5) * np.exp(2j * np.pi * random.uniform(size=5))
        for one, other in itertools.combinations(range(5), 2):
            u, v = np.array([0.9, 0.8]) ** hour * (place[one] - place[other])
            seen = 0.6 * gain[one] * gain[other].conj()
            rows.append(f"{hour},S{one},S{other},{u},{v},{abs(seen)},{np.angle(seen, deg=True)},{0.05 * abs(seen)}")
    (tmp_path / "visibilities.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    made = {}
    exec(_example("Radio interferometry", 1), made)
    assert capsys.readouterr().out.strip() == "18 closure phases, 15 log closure amplitudes"
    problem = made["problem"]
    point, beside = torch.zeros(2, 1, 1, 16, 16, dtype=torch.float64)
    point[..., 8, 8] = 1
    beside[..., 8, 8], beside[..., 3, 4] = 1, 0.7  # another source, which has other closures

    def square(value):
        return float(problem.likelihood.standardised(value, problem.measurements).square().mean())

    assert square(point) < 1e-6 and square(beside) > 1


def _write(path, values, arcmin):
    unit = fits.PrimaryHDU(values)
    unit.header["CDELT1"], unit.header["CDELT2"] = -arcmin / 60, arcmin / 60
    unit.writeto(path)


def test_a_mass_of_ones_own_is_found_where_it_is(tmp_path, monkeypatch, capsys):
    """A round lens of convergence 0.2 in pixels of 3 arcmin, at row 9 and column 5."""
    line = np.arange(16)
    kappa = 0.2 * np.exp(-((line[:, None] - 9) ** 2 + (line - 5) ** 2) / 2)
    shear = Shear((1, 16, 16))(torch.from_numpy(kappa)[None, None])[0].numpy()
    mask = np.zeros((16, 16))
    mask[:2] = 1
    noisy = shear + 0.01 * np.random.default_rng(0).normal(size=shear.shape)
    images = {"e1": noisy[0], "e2": noisy[1], "noise": np.full((16, 16), 0.01), "mask": mask}
    for name, values in images.items():
        _write(tmp_path / f"{name}.fits", values, 3.0)
    monkeypatch.chdir(tmp_path)
    exec(_example("Mass maps"), {})
    printed = capsys.readouterr().out
    peak, spread = (float(number) for number in re.search(r"highest (\S+) \+- (\S+) at", printed).groups())
    assert "(9, 5)" in printed and 0.005 < spread < 0.02
    assert peak == pytest.approx(0.2, abs=0.05)  # the prior, of standard deviation 0.017, draws it to zero


@pytest.mark.slow
def test_the_dark_matter_of_a_cluster_of_ones_own_is_weighed(tmp_path, monkeypatch, capsys):
    """Maps of the reference cluster, made here by summing over thin shells."""
    edges = np.linspace(0, 4, 4_001)
    middle = 0.5 * (edges[1:] + edges[:-1])
    density, pressure = np.exp(reference(middle, 0.3))
    arcmin = angular_distance(0.3) * np.pi / 180 / 60
    emissivity = band_emissivity(pressure / density, np.array([0.65, 2.6]))

    def integral(values, pixels, width):
        line = (np.arange(pixels) - (pixels - 1) / 2) * width * arcmin
        distance = np.hypot(line[:, None], line)
        return shell_paths(torch.from_numpy(edges), torch.from_numpy(distance)).numpy() @ values * 3.0857e24

    random = np.random.default_rng(0)
    y = integral(pressure, 12, 1.0) * 6.6525e-25 / 511
    _write(tmp_path / "y.fits", y + 1e-5 * random.normal(size=(12, 12)), 1.0)
    exposure = np.full((24, 24), 5e5)
    photons = integral(density**2 * emissivity, 24, 0.5) * (0.5 / 60 * np.pi / 180) ** 2 / (4 * np.pi * 1.3**3)
    _write(tmp_path / "counts.fits", random.poisson(photons * exposure + 0.5).astype(float), 0.5)
    _write(tmp_path / "exposure.fits", exposure, 0.5)
    monkeypatch.chdir(tmp_path)
    exec(_example("Clusters of galaxies"), {})
    radius, dark, spread = (float(number) for number in re.findall(r"\d+\.\d+", capsys.readouterr().out)[:3])
    true = cluster_masses(torch.zeros(1, 2, 8))
    expected = np.interp(radius, true.radius, true.dark[0])
    assert dark == pytest.approx(expected, abs=3.5 * spread) and 0.2 < spread < 2
