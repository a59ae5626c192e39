"""Radio problems: exact posteriors against brute force, what is measured, and real data where it lies."""

import logging
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from diffusion.denoiser import MixtureDenoiser
from envs import make_problem
from envs.exact.whitened import condition_on_weighted
from envs.problems.radio.sky import FILLED, KINDS, shapes, sky_prior

DATA = Path(os.environ.get("RTB_DATA", "nowhere"))
needs_galaxies = pytest.mark.skipif(not (DATA / "galaxies_sdss").is_dir(), reason="RTB_DATA has no galaxies_sdss")
needs_eht = pytest.mark.skipif(not (DATA / "eht_m87_2017").is_dir(), reason="RTB_DATA has no eht_m87_2017")
needs_alma = pytest.mark.skipif(not (DATA / "alma_frank").is_dir(), reason="RTB_DATA has no alma_frank")
SMALL = {"size": 8, "num_steps": 2}


def _plane_density():
    means = torch.tensor([[-2.0, 1.0], [0.5, -1.0], [1.5, 2.0]], dtype=torch.float64)
    covariance = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64)
    return MixtureDenoiser(means, covariance, torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log())


def test_of_more_visibilities_and_pixels_than_make_a_matrix_the_exact_posterior_is_not_worked_out(tmp_path):
    rng = np.random.default_rng(0)
    u, v = rng.uniform(-1e5, 1e5, (2, 8_193))
    table = np.stack([u, v, np.ones(8_193), np.zeros(8_193), np.ones(8_193)], 1)
    np.savetxt(tmp_path / "day.txt", table, header="u [lambda] v [lambda] Re(V) [Jy] Im(V) [Jy] weight [Jy^-2]")
    options = {"data": str(tmp_path / "day.txt"), "prior": "field", "field_of_view": 1.0, "num_steps": 3, "cell": 0.0}
    problem = make_problem("radio-uv", options | {"size": 64})
    assert not problem.exact
    assert torch.isfinite(problem.likelihood.log_prob(torch.zeros(1, 1, 64, 64), problem.measurements)).all()
    assert len(make_problem("radio-uv", options | {"size": 16}).exact) == 1


@pytest.mark.parametrize("count", [1, 2, 7])
def test_conditioning_on_noise_of_many_sizes_is_the_sum_over_components(count, generator):
    """Fewer, as many and more numbers than x has; evidence and mean against scipy and numpy."""
    density = _plane_density()
    matrix = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    std = torch.rand(count, generator=generator, dtype=torch.float64) + 0.2
    seen = torch.randn(count, generator=generator, dtype=torch.float64)
    found = condition_on_weighted(density, matrix, std, seen)
    a, c, weights = matrix.numpy(), density.covariance.numpy(), density.log_weights.exp().numpy()
    noise = np.diag(std.numpy() ** 2)
    total = a @ c @ a.T + noise
    pairs = zip(weights, density.means.numpy(), strict=True)
    parts = [w * stats.multivariate_normal(a @ m, total).pdf(seen.numpy()) for w, m in pairs]
    assert found.log_partition == pytest.approx(math.log(sum(parts)), abs=1e-9)
    gain = c @ a.T @ np.linalg.inv(total)
    means = [m + gain @ (seen.numpy() - a @ m) for m in density.means.numpy()]
    assert found.mean.numpy() == pytest.approx(np.array(parts) @ np.array(means) / sum(parts), abs=1e-9)
    assert found.covariance.numpy() == pytest.approx(c - gain @ a @ c, abs=1e-9)


@pytest.mark.parametrize("prior", ["shapes", "field"])
def test_truths_of_the_prior_leave_residuals_of_a_reduced_chi_square_of_one(prior):
    """The truth, and draws of the exact posterior on average over y."""
    squares, of_truth = [], []
    for seed in range(30):
        problem = make_problem("radio-uv", {**SMALL, "prior": prior, "seed": seed})
        draws = problem.exact[0].sample(20, torch.Generator().manual_seed(seed)).float()
        measurement = problem.measurements
        of_truth.append(float(problem.likelihood.standardised(problem.truth, measurement).square().mean()))
        residual = problem.likelihood.standardised(draws, measurement.expand(20, *measurement.shape[1:]))
        squares.append(float(residual.double().square().mean()))
    for found in (squares, of_truth):
        error = np.std(found) / 30**0.5
        assert np.mean(found) == pytest.approx(1, abs=4 * error) and error < 0.05


def test_the_exact_evidence_is_that_of_the_dense_gaussians():
    problem = make_problem("radio-uv", SMALL)
    density, likelihood = problem.prior.denoiser, problem.likelihood
    matrix = likelihood.operator.as_matrix().numpy()
    noise = np.diag(likelihood.noise_std.flatten().numpy() ** 2)
    total = matrix @ density.covariance.numpy() @ matrix.T + noise
    seen = problem.measurements[0].double().flatten().numpy() - density.means.numpy() @ matrix.T
    logs = stats.multivariate_normal(np.zeros(len(matrix)), total).logpdf(seen)
    assert problem.exact[0].log_partition == pytest.approx(np.logaddexp.reduce(logs) - math.log(len(seen)), rel=1e-6)


def test_the_dirty_image_of_a_point_peaks_at_it_with_its_flux():
    problem = make_problem("radio-uv", {"size": 16, "num_steps": 2, "flux": 2.0, "noise_std": 1e-4})
    image = torch.zeros(1, 1, 16, 16)
    image[0, 0, 5, 11] = 3.0
    dirty = problem.measurement_image(problem.likelihood.operator(image)[0])
    assert divmod(int(dirty.argmax()), 16) == (5, 11)
    assert float(dirty.max()) == pytest.approx(3.0, rel=1e-4)  # in units of x


def test_closures_of_a_truth_have_a_chi_square_of_one_and_do_not_know_the_flux(generator):
    problem = make_problem("radio-closure", {**SMALL, "size": 16})
    truth = problem.truth.expand(2_000, *problem.event_shape)
    drawn = problem.likelihood.sample(truth, generator)
    square = problem.likelihood.standardised(truth, drawn).double().square().mean(1)
    assert float(square.mean()) == pytest.approx(1, abs=4 * float(square.std()) / 2_000**0.5)
    one = problem.log_likelihood(problem.truth.double(), torch.zeros(1, dtype=torch.int64))
    two = problem.log_likelihood(2 * problem.truth.double(), torch.zeros(1, dtype=torch.int64))
    assert one.tolist() == pytest.approx(two.tolist(), rel=1e-6)


def test_simulated_closures_are_of_visibilities_above_a_noise_that_is_the_same_for_all():
    faint = make_problem("radio-closure", {**SMALL, "size": 16, "snr": 10.0})
    bright = make_problem("radio-closure", {**SMALL, "size": 16, "snr": 40.0})
    for problem, snr in ((faint, 10.0), (bright, 40.0)):
        amplitude = problem.likelihood.operator.visibilities(problem.truth).norm(dim=-1)
        assert 3 / snr < float(amplitude.min()) < 6 / snr  # Jy, of 1
    assert torch.equal(faint.truth, bright.truth)
    assert faint.measurements.shape[1] < bright.measurements.shape[1] < 145


def test_simulated_shapes_are_of_five_kinds_about_one_flux_and_repeat():
    images, kind = shapes(16, each=40, seed=3)
    assert images.shape == (200, 256) and kind.bincount().tolist() == [40] * len(KINDS)
    assert float(images.min()) >= 0
    flux = images.mean(1) / FILLED
    assert float(flux.log().std()) == pytest.approx(0.2, rel=0.25) and float(flux.median()) == pytest.approx(1, abs=0.1)
    assert torch.equal(images, shapes(16, each=40, seed=3)[0])
    ring = images[kind == KINDS.index("ring")].reshape(-1, 16, 16)
    hollow = ring[:, 7:10, 7:10].mean((1, 2)) < 0.5 * ring.amax((1, 2))
    assert float(hollow.float().mean()) > 0.5  # others are small and thick


@needs_galaxies
def test_galaxies_are_a_sky_of_one_flux():
    prior, density = sky_prior("galaxies", 16, 2, "vp-cosine-zero-snr")
    assert density.means.shape == (1_000, 256) and prior.event_shape == (1, 16, 16)
    assert density.means.mean(1).numpy() == pytest.approx(np.full(1_000, FILLED), rel=1e-5)


@pytest.fixture
def table(tmp_path):
    """A file of 60 visibilities of a point of 0.5 Jy, half an arcsec east, in a field of 4 arcsec; the last flagged."""
    rng = np.random.default_rng(0)
    u, v = rng.uniform(-2e5, 2e5, (2, 60))
    value = 0.5 * np.exp(-2j * math.pi * u * 0.5 / 206264.8)
    weight = np.full(60, 1e4)
    weight[-1] = 0
    path = tmp_path / "mine.txt"
    np.savetxt(path, np.stack([u, v, value.real, value.imag, weight], 1), header="u v Re Im weight")
    return path


def test_a_file_of_ones_own_is_imaged_where_its_source_is(table, caplog):
    options = {
        "data": str(table),
        "field_of_view": 4.0,
        "num_steps": 2,
        "prior": "field",
        "flagged": "drop",
        "cell": 0.0,
    }
    with caplog.at_level(logging.INFO):
        problem = make_problem("radio-uv", options)
        aliased = make_problem("radio-uv", {**options, "field_of_view": 16.0})
    assert problem.measurements.shape == (1, 59, 2) and "1 of 60 rows are flagged" in caplog.text
    mean = problem.exact[0].mean[0]
    assert divmod(int(mean.argmax()), 16) == (8, 8 - 2)  # two pixels of a quarter arcsec to the east
    assert aliased.measurements.shape[1] < 59
    assert "left out that are not within 1.031e+05 wavelengths" in caplog.text


def test_options_that_cannot_be(table):
    with pytest.raises(ValueError, match=r"mine\.txt needs field_of_view, a positive width in arcsec, got None"):
        make_problem("radio-uv", {"data": str(table), "flagged": "drop"})
    with pytest.raises(ValueError, match=r"1 of 60 rows are flagged by their weight, the first in line 61; read them"):
        make_problem("radio-uv", {"data": str(table), "field_of_view": 4.0})
    with pytest.raises(ValueError, match=r"mine\.txt has no times and stations, which closures and averages"):
        make_problem("radio-closure", {"data": str(table), "field_of_view": 4.0, "flagged": "drop"})
    np.savetxt(table.parent / "zero.txt", [[1e5, -1e4, 0, 0, 400]])
    zero = {"data": str(table.parent / "zero.txt"), "field_of_view": 4.0}
    with pytest.raises(ValueError, match=r"zero\.txt: the median amplitude of the shortest baselines is 0.0 Jy"):
        make_problem("radio-uv", zero)
    with pytest.raises(ValueError, match="flux must be positive, in Jy, got -1"):
        make_problem("radio-uv", {**zero, "flux": -1.0})
    with pytest.raises(ValueError, match="prior must be one of shapes, galaxies, field, got 'star'"):
        make_problem("radio-uv", {**SMALL, "prior": "star"})
    with pytest.raises(ValueError, match="cell must be a width in units of 1 / field of view, or 0, got -1"):
        make_problem("radio-uv", {"cell": -1.0})
    with pytest.raises(ValueError, match="min_snr must be at least 3, or closures are not Gaussian, got 2"):
        make_problem("radio-closure", {"min_snr": 2.0})
    with pytest.raises(ValueError, match="snr must be positive, got 0"):
        make_problem("radio-closure", {"snr": 0.0})
    with pytest.raises(ValueError, match="no visibility is left of 105 that are of a signal to noise above 3"):
        make_problem("radio-closure", {"snr": 1.0})
    with pytest.raises(ValueError, match="size must be at least 8 pixels, got 4"):
        make_problem("radio-uv", {"size": 4})


def test_closures_are_the_same_whichever_end_of_a_baseline_a_csv_gives(tmp_path):
    """Four stations at two times of one span: C-D is turned at the first, all baselines of A at the second."""
    place = {"A": (0.0, 0.0), "B": (1e9, 1e9), "C": (3e9, -1e9), "D": (-2e9, 2.5e9)}
    noise = np.random.default_rng(0)
    rows = []
    for hours in (0.5, 0.51):
        for one, other in ("AB", "AC", "AD", "BC", "BD", "CD"):
            u, v = np.subtract(place[one], place[other])
            phase = np.rad2deg(2 * math.pi * (u * 1e-10 + v * 5e-11)) + noise.normal(0, 5)
            rows.append((hours, one, other, u, v, 1 + noise.normal(0, 0.1), phase, 0.02))
    turned = [
        (t, b, a, -u, -v, amp, -ph, s) if (t, a) in ((0.51, "A"), (0.5, "C")) else (t, a, b, u, v, amp, ph, s)
        for t, a, b, u, v, amp, ph, s in rows
    ]
    header = "#time(UTC),T1,T2,U(lambda),V(lambda),Iamp(Jy),Iphase(d),Isigma(Jy)"
    found = []
    for name, each in (("straight", rows), ("turned", turned)):
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join([header, *(",".join(map(str, row)) for row in each)]) + "\n")
        options = {"data": str(path), "field_of_view": 1e-4, "flux": 1.0, "prior": "field", "num_steps": 2}
        problem = make_problem("radio-closure", options)
        image = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        found.append(problem.log_likelihood(image, torch.zeros(3, dtype=torch.int64)))
    assert found[1].numpy() == pytest.approx(found[0].numpy(), rel=1e-6)


@needs_alma
def test_the_disk_as_209_is_fitted_by_a_prior_of_shapes():
    problem = make_problem("radio-uv", {"data": "as209", "num_steps": 2})
    draws = problem.exact[0].sample(50, torch.Generator().manual_seed(0)).float()
    seen = problem.measurements.expand(50, *problem.measurements.shape[1:])
    assert float(problem.likelihood.standardised(draws, seen).square().mean()) < 1.2
    assert problem.likelihood.operator.measurement_shape[0] < 196  # averaged, and without what the pixels alias


@needs_eht
def test_the_closures_of_m87_are_of_the_day_and_the_shortest_baselines_are_left_out(caplog):
    with caplog.at_level(logging.INFO):
        problem = make_problem("radio-closure", {"data": "m87", "num_steps": 2})
    assert "visibilities are left out that are not longer than 0.1 Glambda" in caplog.text
    operator = problem.likelihood.operator
    assert operator.num_phases > 100 and problem.measurements.shape[1] - operator.num_phases > 100
    ring = torch.zeros(1, 1, 16, 16)
    assert bool(torch.isfinite(problem.log_likelihood(ring + 0.1, torch.zeros(1, dtype=torch.int64))).all())


def test_the_example_of_the_page_of_instruments_images_a_file(table, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "instruments.md").read_text(encoding="utf-8")
    section = page.split("## Radio interferometry")[1].split("\n## ")[0]
    table.rename(table.parent / "visibilities.txt")
    monkeypatch.chdir(table.parent)
    exec(re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0], {})
    output = capsys.readouterr().out
    assert "59 visibilities, 1 flagged" in output and "brightest pixel (8, 6)" in output
