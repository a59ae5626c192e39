"""Clusters: projections, units and masses against closed forms and astropy, and maps that are read or refused."""

import logging
import math

import numpy as np
import pytest
import torch
from astropy import constants, units
from astropy.cosmology import FlatLambdaCDM
from astropy.io import fits
from scipy import integrate, special

from envs import make_problem
from envs.data import load_dataset
from envs.data.cluster_profiles import (
    MASS_PER_ELECTRON,
    MASS_PER_PARTICLE,
    REFERENCE,
    angular_distance,
    gas_density,
    hydrostatic_mass,
    pressure,
    radius_500,
)
from envs.operators.abel import projected_map, shell_paths
from envs.operators.cluster_gas import UNIT, Compton, Profiles, XrayPhotons, band_emissivity
from envs.problems.cluster_sz_xray import cluster_masses

TINY = {"clusters": 60, "num_steps": 3}
BETA, CORE = 0.7, 0.15  # of a beta model, its core in Mpc


def test_the_projection_of_a_beta_model_is_the_closed_one():
    """(1 + r^2 / c^2)^(-3 b) has the column sqrt(pi) Gamma(3 b - 1/2) / Gamma(3 b) c (1 + R^2 / c^2)^(1/2 - 3 b)."""
    edges = torch.cat([torch.zeros(1), torch.logspace(-3, 2, 2_000)]).double()
    middle = 0.5 * (edges[1:] + edges[:-1])
    distance = torch.tensor([[0.0, 0.02, 0.1], [0.3, 1.0, 3.0]], dtype=torch.float64)
    column = shell_paths(edges, distance) @ (1 + (middle / CORE) ** 2) ** (-3 * BETA)
    factor = math.sqrt(math.pi) * special.gamma(3 * BETA - 0.5) / special.gamma(3 * BETA) * CORE
    expected = factor * (1 + (distance / CORE) ** 2) ** (0.5 - 3 * BETA)
    assert (column / expected).numpy() == pytest.approx(np.ones((2, 3)), rel=1e-3)
    with pytest.raises(ValueError, match="edges of shells must ascend from 0"):
        shell_paths(edges[1:], distance)


def test_a_beam_spreads_a_map_beyond_its_edges_too():
    """A Gaussian cloud of width s is one of width sqrt(s^2 + beam^2) behind a Gaussian beam."""
    edges = torch.cat([torch.zeros(1), torch.linspace(0.01, 3, 200)]).double()
    cloud = (-0.5 * (0.5 * (edges[1:] + edges[:-1]) / 0.4).square()).exp()
    seen = (projected_map(edges, 12, 0.1, 0.3) @ cloud).reshape(12, 12)
    line = (torch.arange(12, dtype=torch.float64) - 5.5) * 0.1
    square = line[:, None].square() + line.square()
    expected = 0.4 * math.sqrt(2 * math.pi) * 0.4**2 / 0.5**2 * (-0.5 * square / 0.5**2).exp()
    assert float((seen - expected).abs().max()) < 4e-3 * float(expected.max())


def test_units_and_distances_are_those_of_astropy():
    cosmology = FlatLambdaCDM(H0=70, Om0=0.3)
    for redshift in (0.05, 0.3, 1.5):
        assert angular_distance(redshift) == pytest.approx(
            cosmology.angular_diameter_distance(redshift).value, rel=1e-6
        )
        critical = cosmology.critical_density(redshift).to_value("Msun / Mpc3")
        radius = (5e14 / (500 * 4 / 3 * math.pi * critical)) ** (1 / 3)
        assert radius_500(5e14, redshift) == pytest.approx(radius, rel=2e-4)
    isothermal = (2 * units.Mpc * 5 * units.keV * 2.1 / (constants.G * MASS_PER_PARTICLE * constants.m_p)).to("Msun")
    assert hydrostatic_mass(np.array([2.0]), 5.0, -2.1)[0] == pytest.approx(isothermal.value, rel=2e-4)


def test_a_gas_of_one_temperature_shines_as_by_quadrature():
    """5 keV within 0.5 to 2 keV: 6.84e-38 Z^2 n n_i T^-1/2 g exp(-u) / (h E) in cgs, g of Born's approximation."""
    kelvin = (5 * units.keV / constants.k_B).to_value("K")
    planck = constants.h.to_value("erg s")

    def rate(energy):
        gaunt = math.sqrt(3) / math.pi * math.exp(energy / 10) * special.k0(energy / 10)
        return 6.842e-38 / math.sqrt(kelvin) * gaunt * math.exp(-energy / 5) / (planck * energy)

    ions = (0.76 + 4 * 0.24 / 4) / (0.76 + 2 * 0.24 / 4)  # sum of Z^2 n_i over electrons, by mass shares
    expected = ions * integrate.quad(rate, 0.5, 2.0)[0]
    assert band_emissivity(np.array([5.0]), np.array([0.5, 2.0]))[0] == pytest.approx(expected, rel=1e-4)


def test_maps_are_line_integrals_of_the_profiles_with_their_units():
    """x = 0 is the reference cluster: y through its middle and photons at 0.5 Mpc, by quadrature along the line."""
    profiles = Profiles(8, 0.3)
    centre = shell_paths(profiles.edges, torch.tensor([0.0, 0.5]).double())
    zero = torch.zeros(1, 2, 8, dtype=torch.float64)
    thomson = (constants.sigma_T / (constants.m_e * constants.c**2) * units.keV / units.cm**3 * units.Mpc).to_value("")

    def push(depth, distance):
        return pressure(np.hypot(depth, distance), 0.3, REFERENCE)

    for row, distance in enumerate((0.0, 0.5)):
        expected = 2 * thomson * integrate.quad(push, 1e-4, 4, (distance,), limit=200)[0]
        assert float(Compton(profiles, centre)(zero)[0, row]) * UNIT == pytest.approx(expected, rel=0.02)

    def emission(depth):
        radius = np.hypot(depth, 0.5)
        density = gas_density(np.array([radius]), 0.3, REFERENCE)[0]
        temperature = pressure(radius, 0.3, REFERENCE) / density
        return density**2 * band_emissivity(np.array([temperature]), np.array([0.65, 2.6]))[0]

    column = 2 * integrate.quad(emission, 0, 4)[0] * units.Mpc.to("cm")
    expected = column * 1e-8 / (4 * math.pi * 1.3**3)
    found = XrayPhotons(profiles, centre, 1e-8, 0.3, np.array([0.5, 2.0]))(zero)[0, 1]
    assert float(found) == pytest.approx(expected, rel=0.02)


def test_masses_are_those_of_the_profiles():
    """Of the reference: gas by quadrature, and all mass by the derivative of its pressure."""
    masses = cluster_masses(torch.zeros(1, 2, 8))
    radius = masses.radius
    step = 1e-4
    log_pressure = np.log(pressure(radius * np.exp([[-step], [step]]), 0.3, REFERENCE))
    density = gas_density(radius, 0.3, REFERENCE)
    temperature = pressure(radius, 0.3, REFERENCE) / density
    total = hydrostatic_mass(radius, temperature, (log_pressure[1] - log_pressure[0]) / (2 * step))
    assert masses.total[0] == pytest.approx(total / 1e14, rel=1e-6)
    unit = MASS_PER_ELECTRON * constants.m_p.to_value("Msun") * units.Mpc.to("cm") ** 3 / 1e14
    for row in (3, 5):
        gas, _ = integrate.quad(
            lambda r: 4 * math.pi * r**2 * gas_density(np.array([r]), 0.3, REFERENCE)[0],
            0,
            radius[row],
        )
        assert masses.gas[0, row] == pytest.approx(gas * unit, rel=0.03)
    edge = radius_500(5e14, 0.3)
    share = np.interp(edge, radius, masses.gas[0]) / 5
    assert share == pytest.approx(0.13, rel=0.05) and (masses.dark > 0).all()
    assert np.interp(edge, radius, masses.total[0]) == pytest.approx(5, rel=0.25)  # that the profile was published for


def test_simulated_clusters_are_physical_and_the_held_out_ones_are_others():
    data = load_dataset("cluster-profiles", count=300)
    assert data.train.shape == (270, 2, 8) and len(data.held_out) == 30
    masses = cluster_masses(data.train)
    assert (masses.dark > 0).mean() > 0.99 and (np.diff(masses.total) > 0).mean() > 0.99  # knots are coarser than both
    assert torch.equal(load_dataset("cluster-profiles", count=300).train, data.train)
    with pytest.raises(ValueError, match=r"redshift must be within 0\.01 to 3, got 0"):
        load_dataset("cluster-profiles", redshift=0.0)
    with pytest.raises(ValueError, match="expected at least 3 radii"):
        load_dataset("cluster-profiles", radii=2)


def test_the_likelihood_is_the_sum_of_both_and_its_gradient_that_of_differences(generator):
    problem = make_problem("cluster-sz-xray", TINY)
    value = problem.prior.denoiser.sample(3, generator)
    seen = problem.measurements.double().expand(3, -1)
    gaussian, poisson = problem.likelihood.parts
    total = gaussian.log_prob(value, seen[:, :144]) + poisson.log_prob(value, seen[:, 144:])
    assert problem.likelihood.log_prob(value, seen).numpy() == pytest.approx(total.numpy(), rel=1e-12)
    gradient = problem.likelihood.gradient(value, seen)
    for place in ((0, 2), (1, 5)):
        shift = torch.zeros(2, 8).double()
        shift[place] = 1e-5
        higher, lower = (problem.likelihood.log_prob(value + sign * shift, seen) for sign in (1, -1))
        slope = (higher - lower) / 2e-5
        assert gradient[:, place[0], place[1]].numpy() == pytest.approx(slope.numpy(), rel=1e-3, abs=1e-2)
    residual = problem.likelihood.standardised(problem.truth.double(), problem.measurements.double())
    assert residual.shape == (1, 720)


def test_simulated_measurements_have_residuals_of_one_and_truths_can_be_held_out(generator):
    problem = make_problem("cluster-sz-xray", TINY | {"truth": "held-out", "image": 2, "background": 5.0})
    held_out = load_dataset("cluster-profiles", count=60).held_out
    assert torch.equal(problem.truth, held_out[2:3])
    many = problem.simulate(problem.truth.double().expand(50, 2, 8), generator)
    residual = problem.likelihood.standardised(problem.truth.double().expand(50, 2, 8), many)
    assert residual[:, :144].square().mean().item() == pytest.approx(1, abs=4 * (2 / 144 / 50) ** 0.5)
    assert residual[:, 144:].square().mean().item() == pytest.approx(1, abs=4 * (2.2 / 576 / 50) ** 0.5)


@pytest.fixture
def maps(tmp_path):
    """A pair of maps as of a user: 12 x 12 pixels of 1 arcmin, and 16 x 16 of 0.75 with a corner that was not seen."""
    mock = make_problem("cluster-sz-xray", TINY)
    images = {"sz": mock.measurements[0, :144].reshape(12, 12).numpy() * UNIT, "noise": np.full((12, 12), 1e-5)}
    images["counts"] = np.random.default_rng(0).poisson(3.0, (16, 16)).astype(float)
    images["exposure"] = np.full((16, 16), 4e5)
    images["exposure"][:4, :4] = images["counts"][:4, :4] = 0
    images["background"] = np.full((16, 16), 0.3)
    for name, values in images.items():
        unit = fits.PrimaryHDU(values)
        unit.header["CDELT1"], unit.header["CDELT2"] = -0.2 / values.shape[0], 0.2 / values.shape[0]
        unit.writeto(tmp_path / f"{name}.fits")
    keys = {"noise": "sz_noise", "exposure": "exposure_map", "background": "background_map"}
    options = TINY | {keys.get(name, name): str(tmp_path / f"{name}.fits") for name in images}
    return options, images, tmp_path


def test_maps_of_ones_own_are_read(maps, caplog):
    options, images, _ = maps
    with caplog.at_level(logging.INFO):
        problem = make_problem("cluster-sz-xray", options)
    assert "exposure.fits: 16 of 256 pixels have exposure 0 and are left out" in caplog.text
    assert "noise.fits: 0 of 144 pixels have no measurement and are left out" in caplog.text
    seen = images["exposure"] > 0
    assert problem.measurements[0, :144].numpy() == pytest.approx(images["sz"].flatten() / UNIT, rel=1e-6)
    assert problem.measurements[0, 144:].tolist() == images["counts"][seen].tolist() and problem.truth is None
    gaussian, poisson = problem.likelihood.parts
    assert gaussian.noise_std.tolist() == pytest.approx([1.0] * 144)
    assert poisson.exposure.tolist() == [4e5] * 240 and poisson.background.tolist() == [0.3] * 240


def test_pixels_without_a_measurement_may_be_blank(maps):
    options, images, folder = maps
    images["noise"][3, 4] = 1e16
    plain = make_problem("cluster-sz-xray", options)
    blanks = {"sz": images["noise"] > 1, "counts": images["exposure"] == 0, "background": images["exposure"] == 0}
    for name, blank in ({"noise": images["noise"] > 1} | blanks).items():
        with fits.open(folder / f"{name}.fits", mode="update") as file:
            file[0].data[blank] = 1e16 if name == "noise" else np.nan
    problem = make_problem("cluster-sz-xray", options)
    seen = images["noise"].flatten() < 1
    kept = torch.cat([torch.from_numpy(seen), torch.ones(240, dtype=torch.bool)])
    assert torch.equal(problem.measurements, plain.measurements[:, kept])
    assert np.isfinite(problem.exact[0].log_partition)


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("counts", (5, 2), np.nan, r"counts.fits\[0\]: counts must be whole numbers of 0 and more, got nan at"),
        ("exposure", (5, 2), np.nan, r"exposure.fits\[0\]: 1 of 256 values are not finite, the first at \[5, 2\]"),
        ("sz", (1, 2), np.nan, r"sz.fits\[0\]: 1 of 144 values are not finite, the first at \[1, 2\]"),
        ("sz", (1, 2), 3.0, r"sz.fits\[0\]: Compton's y is below 0.1 everywhere, got 3: of other units\?"),
        (
            "noise",
            (1, 2),
            -1.0,
            r"noise.fits\[0\]: standard deviations of the noise must be positive and finite, got -1",
        ),
        ("counts", (5, 2), 0.5, r"counts.fits\[0\]: counts must be whole numbers of 0 and more, got 0.5 at \[5, 2\]"),
        (
            "counts",
            (0, 1),
            2.0,
            r"counts.fits\[0\]: there must be no counts where the exposure is 0, got 2 at \[0, 1\]",
        ),
        (
            "exposure",
            (5, 2),
            -1.0,
            r"exposure.fits\[0\]: the exposure must be 0 and more, got -1 at \[5, 2\], one of 1",
        ),
        ("background", (5, 2), -1.0, r"background.fits\[0\]: the background must be 0 and more, got -1 at \[5, 2\]"),
    ],
)
def test_pixels_that_cannot_be_are_named(maps, name, place, value, message):
    options, _, folder = maps
    with fits.open(folder / f"{name}.fits", mode="update") as file:
        file[0].data[place] = value
    with pytest.raises(ValueError, match=message):
        make_problem("cluster-sz-xray", options)


@pytest.mark.parametrize(
    ("name", "header", "message"),
    [
        ("sz", {"BUNIT": "K"}, r"sz.fits\[0\]: values must be in no unit \(Compton's y\), BUNIT says K"),
        ("counts", {"BUNIT": "count/s"}, r"counts.fits\[0\]: values must be in counts, BUNIT says count/s"),
        ("exposure", {"BUNIT": "s"}, r"exposure.fits\[0\]: values must be in cm\^2 s, BUNIT says s"),
        ("background", {"BUNIT": "count/s"}, r"background.fits\[0\]: values must be in counts, BUNIT says count/s"),
        (
            "noise",
            {"CDELT1": -0.1, "CDELT2": 0.1},
            r"noise.fits\[0\]: pixels must be those of .*, of 60 arcsec, got 360",
        ),
        ("exposure", {"CDELT1": -0.1, "CDELT2": 0.1}, r"exposure.fits\[0\]: a pixel scale of 45 arcsec is asked for"),
        ("counts", {"CRVAL1": 40.0}, r"counts.fits\[0\]: the middle must be where that of .*sz.fits\[0\] is, at 10.0"),
        ("exposure", {"CRPIX1": 3.5}, r"exposure.fits\[0\]: the middle must be where that of .*counts.fits\[0\] is"),
        ("noise", {"CRVAL2": -10.0}, r"noise.fits\[0\]: the middle must be where that of .*sz.fits\[0\] is"),
    ],
)
def test_maps_in_other_units_or_pixels_are_refused_by_name(maps, name, header, message):
    options, images, folder = maps
    for each, values in images.items():
        place = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": 10.0}
        for key, value in (place | {f"CRPIX{axis}": (len(values) + 1) / 2 for axis in (1, 2)}).items():
            fits.setval(folder / f"{each}.fits", key, value=value)
    if name == "counts" and "CRVAL1" in header:
        make_problem("cluster-sz-xray", options)  # of one place, all of them
        fits.setval(folder / "exposure.fits", "BUNIT", value="cm**2 s count/photon")
        fits.setval(folder / "counts.fits", "BUNIT", value="COUNTS")
        make_problem("cluster-sz-xray", options)
        for each in ("exposure", "background"):  # all of the X-ray maps
            fits.setval(folder / f"{each}.fits", "CRVAL1", value=40.0)
    for key, value in header.items():
        fits.setval(folder / f"{name}.fits", key, value=value)
    with pytest.raises(ValueError, match=message):
        make_problem("cluster-sz-xray", options)


def test_maps_that_do_not_go_together_and_options_that_cannot_be_are_refused(maps):
    options, images, folder = maps
    with pytest.raises(ValueError, match=r"sz.fits\[0\]: a pixel scale of 45 arcsec is asked for, the header has 60"):
        make_problem("cluster-sz-xray", options | {"background_map": options["sz"]})
    fits.PrimaryHDU(images["sz"][:8], fits.getheader(options["sz"])).writeto(folder / "half.fits")
    with pytest.raises(ValueError, match=r"half.fits\[0\] must be square, the cluster in its middle, got \[8, 12\]"):
        make_problem("cluster-sz-xray", options | {"sz": str(folder / "half.fits")})
    for wrong, message in (
        ({"sz": "a.fits"}, "sz and counts go together, got a.fits and None"),
        ({"sz_noise": "a.fits"}, "sz_noise, exposure_map and background_map are those of maps sz and counts"),
        ({"exposure": 0.0}, "exposure must be positive and finite, got 0"),
        ({"band": (2.0, 0.5)}, r"band must be two energies in keV that ascend, up to 20, got \[2.0, 0.5\]"),
        ({"truth": "sky"}, "truth must be prior or held-out, got 'sky'"),
        ({"truth": "held-out", "image": 6}, r"image must be one of the held-out clusters, 0..5, got 6"),
    ):
        with pytest.raises(ValueError, match=message):
            make_problem("cluster-sz-xray", TINY | wrong)


@pytest.mark.slow
def test_the_reference_covers_the_truth_of_draws_of_the_prior():
    """Squared distances in posterior standard deviations of the 16 elements of ten truths: one on average."""
    squares = []
    for seed in range(10):
        problem = make_problem("cluster-sz-xray", {"num_steps": 3, "clusters": 200, "seed": seed})
        exact = problem.exact[0]
        squares.append(float(((problem.truth[0] - exact.mean).square() / exact.variance).mean()))
    assert np.mean(squares) == pytest.approx(1, abs=4 * np.std(squares) / 10**0.5)
