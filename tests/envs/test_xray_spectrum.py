"""X-ray spectra: counts are folded as the files say, the physics is that of its sources."""

import logging
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits
from scipy import integrate

from envs import make_problem
from envs.data import MissingDataError, load_dataset
from envs.data.xray_spectra import absorption, bremsstrahlung
from envs.likelihoods import PoissonLikelihood
from envs.problems.xray_spectrum import mock_observation, read_observation
from tests import ogip_files as made

HAS_DATA = pytest.mark.skipif(not os.environ.get("RTB_DATA"), reason="RTB_DATA is not set")
SMALL = {"spectra": 200, "num_steps": 4}
OWN = {**SMALL, "low": 0.9, "high": 6.0, "bins": 5, "flux": 1e-3}


def test_counts_of_a_users_files_are_folded_as_by_hand(tmp_path):
    """By loops over bins and channels, with the unit of flux integrated by quadrature."""
    problem = make_problem("xray-spectrum", {**OWN, "spectrum": str(made.write_observation(tmp_path, first=0))})
    # 0.9 to 6 keV leaves channels 1 to 4, whose nominal energies are 1.75 to 5.75 keV; x has five bins of energy.
    assert problem.measurements.tolist() == [made.COUNTS[1:5].tolist()] and problem.truth is None
    edges = np.geomspace(0.9, 6.0, 6)
    x = np.linspace(-1, 1, 5)

    def photons(low, high):
        total = 0.0
        for d in range(5):
            start = max(low, edges[d])
            end = min(high, edges[d + 1])
            if end > start:
                total += math.exp(x[d]) * integrate.quad(lambda e: 1e-3 * e**-1.7, start, end)[0]
        return total

    expected = np.zeros(4)
    for j in range(5):
        for channel in range(4):
            seen = made.AREA[j] * made.MATRIX[j, channel + 1]
            expected[channel] += 1000.0 * seen * photons(made.ENERGY[j], made.ENERGY[j + 1])
    likelihood = problem.likelihood
    assert likelihood.operator(torch.from_numpy(x)[None])[0].numpy() == pytest.approx(expected, rel=1e-6)
    assert likelihood.background.tolist() == made.BESIDE[1:5].tolist()
    assert likelihood.ratio == pytest.approx(1000 * 0.5 / (2000 * 1.0))


def test_scales_of_the_area_multiply_the_response_and_the_background(tmp_path):
    """Half of the area sees half of the source, and half of a background that all of the area has measured."""
    plain = read_observation(made.write_observation(tmp_path), low=0.9, high=6.0)
    names = {"RESPFILE": "my.rmf", "ANCRFILE": "my.arf", "BACKFILE": "my_bg.pi"}
    half = read_observation(made.write_pha(tmp_path / "half.pi", AREASCAL=0.5, **names), low=0.9, high=6.0)
    assert half.response == pytest.approx(0.5 * plain.response, rel=1e-12)
    assert (plain.ratio, half.ratio) == (0.25, 0.125)
    made.write_pha(tmp_path / "my_bg.pi", made.BESIDE, EXPOSURE=2000.0, BACKSCAL=1.0, AREASCAL=0.2)
    beside = read_observation(tmp_path / "half.pi", low=0.9, high=6.0)
    assert (beside.response == half.response).all() and beside.ratio == pytest.approx(0.625, rel=1e-12)


@pytest.mark.parametrize("name", ["my.pi", "my_bg.pi"])
def test_a_background_beside_a_region_of_unknown_size_is_refused(tmp_path, name):
    path = made.write_observation(tmp_path)
    with fits.open(tmp_path / name, mode="update") as file:
        del file["SPECTRUM"].header["BACKSCAL"]
        file["SPECTRUM"].header["BACKFILE"] = "my_bg.pi" if name == "my.pi" else "none"
    with pytest.raises(ValueError, match=rf"{name} must have the keyword BACKSCAL"):
        read_observation(path, low=0.9, high=6.0)
    with fits.open(path, mode="update") as file:
        file["SPECTRUM"].header["BACKFILE"] = "none"
    assert read_observation(path, low=0.9, high=6.0).background is None


@HAS_DATA
@pytest.mark.parametrize("name", ["3c273.pi", "9774.pi"])
def test_counts_of_chandra_are_folded_as_by_a_loop_over_the_files_own_columns(name):
    """A power law through every row of the RMF, one group of channels after another, without our reader."""
    path = Path(os.environ["RTB_DATA"], "xray_sherpa", name)
    with fits.open(path) as file:
        header, spectrum = file["SPECTRUM"].header, file["SPECTRUM"].data
        exposure, table = header["EXPOSURE"], np.array(spectrum["COUNTS"])
    folded = np.zeros(1024)
    with fits.open(path.with_suffix(".rmf")) as file, fits.open(path.with_suffix(".arf")) as other:
        rows, area = file["MATRIX"].data, other["SPECRESP"].data["SPECRESP"]
        energies = np.stack([file["EBOUNDS"].data["E_MIN"], file["EBOUNDS"].data["E_MAX"]])
        for j, row in enumerate(rows):
            low, high = float(row["ENERG_LO"]), float(row["ENERG_HI"])
            photons = 3e-4 * (low**-0.7 - high**-0.7) / 0.7
            position, values = 0, np.ravel(row["MATRIX"])
            for start, length in zip(np.ravel(row["F_CHAN"]), np.ravel(row["N_CHAN"]), strict=True):
                for offset in range(int(length)):
                    value = float(values[position + offset])
                    folded[int(start) - 1 + offset] += exposure * float(area[j]) * photons * value
                position += int(length)
    problem = make_problem("xray-spectrum", {**SMALL, "spectrum": str(path), "group": 4})
    used = (energies.min(0) >= 0.5) & (energies.max(0) <= 7.0)
    groups = np.cumsum(used)[used] - 1
    expected = np.bincount(groups // 4, folded[used])
    found = problem.likelihood.operator(torch.zeros(1, 24, dtype=torch.float64))[0]
    assert found.numpy() == pytest.approx(expected, rel=1e-4)
    assert problem.measurements[0].tolist() == np.bincount(groups // 4, table[used]).tolist()


@HAS_DATA
def test_the_groups_of_a_file_are_kept_whole():
    path = Path(os.environ["RTB_DATA"], "xray_sherpa", "3c273.pi")
    observation = read_observation(path)
    with fits.open(path) as file:
        data = file["SPECTRUM"].data
        whole = {int(number): data["COUNTS"][data["GRP_NUM"] == number].sum() for number in np.unique(data["GRP_NUM"])}
    assert 35 <= len(observation.counts) <= 46 and set(observation.counts) <= {float(v) for v in whole.values()}
    assert observation.background.sum() > 0 and observation.ratio == pytest.approx(2.5264e-06 / 1.87254e-05, rel=1e-4)
    assert (np.diff(observation.channel_energy[:, 0]) > 0).all()


def test_pairs_of_files_that_do_not_match_are_refused(tmp_path):
    path = made.write_observation(tmp_path)
    other = made.ENERGY.copy()
    other[1] = 2.2
    made.write_arf(tmp_path / "other.arf", other)
    with pytest.raises(ValueError, match=r"other.arf and .*my.rmf must be on the same energies"):
        make_problem("xray-spectrum", {**OWN, "spectrum": str(path), "arf": str(tmp_path / "other.arf")})
    made.write_rmf(tmp_path / "zero.rmf", first=0)
    with pytest.raises(ValueError, match=r"my.pi has channels 1 to 6, but .*zero.rmf 0 to 5"):
        make_problem("xray-spectrum", {**OWN, "spectrum": str(path), "rmf": str(tmp_path / "zero.rmf")})
    made.write_pha(tmp_path / "short.pi", made.BESIDE[:4])
    with pytest.raises(ValueError, match=r"short.pi must have the 6 channels of .*my.pi"):
        make_problem("xray-spectrum", {**OWN, "spectrum": str(path), "background": str(tmp_path / "short.pi")})
    with pytest.raises(ValueError, match=r"my.pi has no good channel within 8 to 9 keV"):
        make_problem("xray-spectrum", {**OWN, "spectrum": str(path), "low": 8.0, "high": 9.0})
    made.write_rmf(tmp_path / "full.rmf", HDUCLAS3="FULL")
    with pytest.raises(ValueError, match=r"full.rmf has the effective area in it .*my.arf is one too many"):
        make_problem("xray-spectrum", {**OWN, "spectrum": str(path), "rmf": str(tmp_path / "full.rmf")})
    lonely = made.write_pha(tmp_path / "lonely.pi")
    with pytest.raises(ValueError, match=r"lonely.pi names no RESPFILE in its header; give the RMF by hand"):
        make_problem("xray-spectrum", {**OWN, "spectrum": str(lonely)})
    with pytest.raises(ValueError, match=r"lonely.pi names no ANCRFILE in its header; give the ARF by hand"):
        make_problem("xray-spectrum", {**OWN, "spectrum": str(lonely), "rmf": str(tmp_path / "my.rmf")})
    with pytest.raises(ValueError, match="are those of a spectrum, and there is none"):
        make_problem("xray-spectrum", {**OWN, "arf": "a.arf"})


def test_counts_where_no_photon_can_be_detected_are_refused_unless_there_is_a_background(tmp_path):
    matrix = made.MATRIX.copy()
    matrix[:, 2] = 0
    rmf = made.write_rmf(tmp_path / "blind.rmf", matrix)
    path = made.write_pha(tmp_path / "a.pi")
    arf = made.write_arf(tmp_path / "a.arf")
    message = r"a.pi has counts in channel 3, where .*blind.rmf with .*a.arf says that no photon"
    with pytest.raises(ValueError, match=message):
        read_observation(path, arf, rmf, low=0.9, high=6.0)
    beside = made.write_pha(tmp_path / "b.pi", made.BESIDE)
    assert read_observation(path, arf, rmf, beside, low=0.9, high=6.0).background.tolist() == [2, 0, 1, 0]


@pytest.mark.parametrize("none", ["none", "None"])
def test_a_background_that_the_header_names_may_be_done_without(tmp_path, caplog, none):
    path = made.write_observation(tmp_path)
    (tmp_path / "my_bg.pi").unlink()
    options = {**OWN, "spectrum": str(path)}
    message = r"there is no file .*my_bg.pi, which BACKFILE of .*my.pi names; give another, or none as background"
    with pytest.raises(MissingDataError, match=message):
        make_problem("xray-spectrum", options)
    with caplog.at_level(logging.INFO):
        problem = make_problem("xray-spectrum", {**options, "background": none})
    assert isinstance(problem.likelihood, PoissonLikelihood)
    assert "my.pi: no background is used, its BACKFILE my_bg.pi is left out" in caplog.text
    (tmp_path / "my.arf").unlink()
    with pytest.raises(MissingDataError, match=r"my.arf, which ANCRFILE of .*my.pi names; give another as arf"):
        make_problem("xray-spectrum", {**options, "background": none})


def test_channels_of_another_quality_or_energy_are_left_out_with_a_line_of_the_log(tmp_path, caplog):
    path = made.write_observation(tmp_path)
    names = {"RESPFILE": "my.rmf", "ANCRFILE": "my.arf", "BACKFILE": "my_bg.pi"}
    made.write_pha(path, extra=[("QUALITY", "I", [0, 0, 5, 0, 0, 0])], **names)
    with caplog.at_level(logging.INFO):
        observation = read_observation(path, low=0.7, high=6.0)  # the last channel is of 5.75 to 6.75 keV
    assert observation.counts.tolist() == [3, 9, 7, 2]
    assert "my.pi: 2 of 6 channels, with 14 of 35 counts, are left out: 1 beyond 0.7 to 6 keV, 1 by" in caplog.text


def test_an_empty_channel_that_sees_nothing_is_certain(tmp_path):
    """No count is expected there and none came: the likelihood is that of the other channels, and has a gradient."""
    matrix, counts = made.MATRIX.copy(), made.COUNTS.copy()
    matrix[:, 2], counts[2] = 0, 0
    names = {"RESPFILE": "blind.rmf", "ANCRFILE": "a.arf"}
    made.write_rmf(tmp_path / "blind.rmf", matrix)
    made.write_arf(tmp_path / "a.arf")
    path = made.write_pha(tmp_path / "a.pi", counts, **names)
    problem = make_problem("xray-spectrum", {**OWN, "spectrum": str(path)})
    value = torch.zeros(1, *problem.event_shape, dtype=torch.float64)
    expected = problem.likelihood.expected(value)[0]
    seen = expected > 0
    assert (~seen).sum() == 1
    others = torch.distributions.Poisson(expected[seen]).log_prob(problem.measurements[0].double()[seen]).sum()
    assert float(problem.likelihood.log_prob(value, problem.measurements)) == pytest.approx(float(others), rel=1e-6)
    assert bool(problem.likelihood.gradient(value, problem.measurements).isfinite().all())


def test_simulated_truths_are_of_the_prior_and_their_residuals_of_poisson_noise():
    """Of 40 truths behind the mock telescope; the error is from the spread between them."""
    squares = []
    for seed in range(40):
        problem = make_problem("xray-spectrum", {**SMALL, "seed": seed})
        residual = problem.likelihood.standardised(problem.truth.double(), problem.measurements)
        squares.append(float(residual.square().mean()))
    assert np.mean(squares) == pytest.approx(1, abs=4 * np.std(squares) / math.sqrt(40))


def test_the_mock_telescope_loses_no_photon_of_the_middle_of_its_energies():
    observation = mock_observation()
    middle = (observation.energy[:, 0] > 0.6) & (observation.energy[:, 1] < 7.0)
    detected = observation.response.sum(1) / observation.response.sum(1).max()
    assert detected[middle].min() > 0.05
    # A line at 6 keV has the width of Fano's noise with 40 eV of the electronics, and of a channel of 120 eV.
    row = int(np.abs(observation.energy.mean(1) - 6.0).argmin())
    centre = observation.channel_energy.mean(1)
    share = observation.response[row] / observation.response[row].sum()
    spread = math.sqrt(share @ centre**2 - (share @ centre) ** 2)
    assert spread == pytest.approx(math.sqrt(0.04**2 + 0.115 * 3.65e-3 * 6 + (7.7 / 64) ** 2 / 12), rel=0.02)


def test_the_gaunt_factor_is_the_thermal_average_of_borns():
    """g(u) = integral of sqrt(3)/pi log((sqrt(s + u) + sqrt(s)) / (sqrt(s + u) - sqrt(s))) e^-s ds over s > 0."""
    for ratio in (0.05, 1.0, 6.0):

        def born(s, ratio=ratio):
            large, small = math.sqrt(s + ratio), math.sqrt(s)
            return math.sqrt(3) / math.pi * 2 * math.log((large + small) / math.sqrt(ratio)) * math.exp(-s)

        expected = integrate.quad(born, 0, 60, limit=200)[0]
        energy = 3.0 * ratio
        found = float(bremsstrahlung(np.array(energy), 3.0)) * energy * math.exp(ratio)
        assert found == pytest.approx(expected, rel=1e-6)


def test_the_cross_section_is_the_published_one_and_steps_at_edges():
    """1e-22 cm^2 at 1.3 keV or so; the oxygen edge at 0.532 keV and that of iron at 7.111 keV."""
    energy = np.array([0.5, 1.0, 5.0])
    expected = np.array([(71.4 + 33.4 - 12.85) * 8, 120.6 + 169.3 - 47.7, (433.9 - 12 + 18.75) / 125]) * 1e-24
    assert absorption(energy) == pytest.approx(expected, rel=1e-12)
    for edge, least in ((0.532, 1.3), (7.111, 1.5)):
        assert absorption(np.array([edge + 1e-6])) / absorption(np.array([edge - 1e-6])) > least


def test_simulated_spectra_are_reproducible_and_of_two_kinds():
    data = load_dataset("xray-spectra", count=400)
    again = load_dataset("xray-spectra", count=400)
    assert torch.equal(data.train, again.train) and data.event_shape == (24,) and len(data.held_out) == 40
    slope = (data.train[:, -1] - data.train[:, 12]).double()
    thermal, power_law = (slope[data.train_labels == kind] for kind in (0, 1))
    # A power law of index 1.8 +- 0.3 in units of 1.7, from 1.9 to 6.6 keV; hot gas falls off more steeply.
    assert float(power_law.mean()) == pytest.approx(-0.1 * math.log(6.6 / 1.9), abs=0.15)
    assert float(thermal.mean()) < float(power_law.mean()) - 0.3
    with pytest.raises(ValueError, match=r"expected 0.1 <= low < high <= 20 keV"):
        load_dataset("xray-spectra", low=3.0, high=2.0)
