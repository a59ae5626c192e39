import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits
from scipy import signal

from envs import make_problem
from envs.data import MissingDataError
from envs.data.point_spread import gaussian_point_spread
from envs.operators.convolution import Convolution
from envs.operators.space_variant import SpaceVariantBlur, corner_weights
from envs.problems.psf_deconvolution import NotNegative

TINY = {"galaxies": 12, "pixels": 8, "num_steps": 3}
CAMERA = {"exposure": 200.0, "background": 5.0, "read_std": 2.0, "gain": 1.0}
DATA = Path(os.environ.get("RTB_DATA", "nowhere"))
needs_hst = pytest.mark.skipif(not (DATA / "hst_hsc_scarlet").is_dir(), reason="RTB_DATA has no hst_hsc_scarlet")
needs_stack = pytest.mark.skipif(
    not (DATA / "galaxy_stack_sf_deconvolve").is_dir(), reason="RTB_DATA has no galaxy_stack_sf_deconvolve"
)


def test_counts_are_of_a_brightness_that_is_not_negative_and_blurred_as_by_scipy(generator):
    problem = make_problem("psf-deconvolution", TINY)
    value = 0.2 * torch.randn(3, 1, 8, 8, generator=generator, dtype=torch.float64)
    kernel = gaussian_point_spread(0.15, 0.06).kernel.numpy()
    positive = np.logaddexp(0, value.numpy() / 0.02) * 0.02
    expected = np.stack([signal.convolve2d(image[0], kernel, mode="same") for image in positive])
    mean = problem.likelihood.mean(value)[:, 0].numpy()
    assert mean == pytest.approx(200 * expected + 5, rel=1e-9)
    assert positive.min() > 0 and float(value.min()) < -0.1
    bright = value.clamp_min(0.2)
    assert NotNegative((1, 8, 8))(bright).numpy() == pytest.approx(bright.numpy(), abs=1e-6)


def test_light_that_leaves_the_field_is_lost_and_that_from_edge_to_edge_is_not(files, tmp_path):
    image, _, _ = files
    wide = 0.6 * np.eye(1, 41 * 41, 20 * 41 + 20).reshape(41, 41) + 0.4 / 41**2  # far wings
    unit = fits.PrimaryHDU(wide)
    unit.header["CDELT1"], unit.header["CDELT2"] = -0.1 / 3600, 0.1 / 3600
    unit.writeto(tmp_path / "wide.fits")
    mine = TINY | {"noise": "gaussian", "measured": str(image), "psf": str(tmp_path / "wide.fits")}
    operator = make_problem("psf-deconvolution", mine | {"row": 10, "column": 12}).likelihood.operator
    point = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    point[0, 0, 0, 0] = 1
    seen = operator(point)[0, 0]
    assert seen.numpy() == pytest.approx(wide[20:28, 20:28], rel=1e-6)


def test_simulated_counts_have_the_mean_and_the_variance_of_photons_and_of_reading(generator):
    problem = make_problem("psf-deconvolution", TINY | {"gain": 2.0, "read_std": 3.0})
    many = problem.simulate(problem.truth.expand(4_000, 1, 8, 8), generator).double()
    mean = 2 * problem.likelihood.mean(problem.truth.double())[0]
    assert many.mean(0).numpy() == pytest.approx(mean.numpy(), abs=5 * float(many.std(0).max()) / 4_000**0.5)
    variance = 2 * mean + 3**2
    assert (many.var(0) / variance).numpy() == pytest.approx(np.ones((1, 8, 8)), abs=5 * (2.5 / 4_000) ** 0.5)
    assert problem.exact == ()


def test_with_gaussian_noise_the_posterior_is_exact(generator):
    problem = make_problem("psf-deconvolution", TINY | {"noise": "gaussian", "noise_std": 0.3})
    assert isinstance(problem.likelihood.operator, Convolution)
    log_weight = problem.log_likelihood(problem.prior.denoiser.sample(50_000, generator), torch.zeros(50_000).long())
    weight = (log_weight - log_weight.max()).exp().numpy()
    error = weight.std() / weight.mean() / 50_000**0.5
    estimate = float(log_weight.max()) + np.log(weight.mean())
    assert problem.exact[0].log_partition == pytest.approx(estimate, abs=4 * error) and error < 0.05


def _corners():
    kernels = torch.stack([gaussian_point_spread(fwhm, 1.0).middle(5) for fwhm in (1.0, 2.0, 3.0, 1.5)])
    return kernels, corner_weights(6, 8)


def test_a_blur_that_varies_is_that_of_each_corner_there_and_has_its_adjoint(generator):
    kernels, weights = _corners()
    operator = SpaceVariantBlur((1, 6, 8), kernels, weights)
    assert torch.allclose(weights.sum(0), torch.ones(6, 8, dtype=torch.float64))
    for number, (row, column) in enumerate(((0, 0), (0, 7), (5, 0), (5, 7))):
        point = torch.zeros(1, 1, 6, 8, dtype=torch.float64)
        point[0, 0, row, column] = 1
        expected = signal.convolve2d(point[0, 0].numpy(), kernels[number].numpy(), mode="same")
        assert operator(point)[0, 0].numpy() == pytest.approx(expected, abs=1e-12)
    same = SpaceVariantBlur((1, 6, 8), kernels[:1].expand(4, 5, 5), weights)
    value = torch.randn(2, 1, 6, 8, generator=generator, dtype=torch.float64)
    assert same(value).numpy() == pytest.approx(Convolution((1, 6, 8), kernels[0], "zero")(value).numpy(), abs=1e-12)
    measurement = torch.randn(2, 1, 6, 8, generator=generator, dtype=torch.float64)
    left, right = (operator(value) * measurement).sum(), (value * operator.adjoint(measurement)).sum()
    assert float(left) == pytest.approx(float(right), rel=1e-11)
    with pytest.raises(ValueError, match=r"weights must be \[4, 6, 8\]"):
        SpaceVariantBlur((1, 6, 8), kernels, weights[:3])
    with pytest.raises(ValueError, match="sum one"):
        SpaceVariantBlur((1, 6, 8), kernels, 2 * weights)


@pytest.fixture
def files(tmp_path):
    """(image, point spread) as FITS files: 20 x 24 pixels of 0.1 arcsec, of which the header of the first says so."""
    values = np.random.default_rng(0).normal(size=(20, 24)).astype(np.float32)
    image = fits.PrimaryHDU(values)
    image.header["CDELT1"], image.header["CDELT2"] = -0.1 / 3600, 0.1 / 3600
    image.writeto(tmp_path / "image.fits")
    fits.PrimaryHDU(gaussian_point_spread(0.3, 0.1).kernel.numpy()).writeto(tmp_path / "psf.fits")
    return tmp_path / "image.fits", tmp_path / "psf.fits", values


def test_your_own_image_and_point_spread(files):
    image, spread, values = files
    mine = TINY | {"noise": "gaussian", "measured": str(image), "psf": str(spread), "row": 10, "column": 12}
    problem = make_problem("psf-deconvolution", mine | {"unit": 2.0})
    assert problem.measurements[0, 0].numpy() == pytest.approx(values[6:14, 8:16] / 2, rel=1e-6)
    assert problem.likelihood.noise_std == pytest.approx(1.4826 * stats_mad(values) / 2, rel=1e-5)
    assert problem.truth is None and len(problem.exact) == 1
    coarse = make_problem("psf-deconvolution", mine | {"binning": 2, "pixels": 4})
    blocks = values.reshape(10, 2, 12, 2).mean((1, 3))
    assert coarse.measurements[0, 0].numpy() == pytest.approx(blocks[3:7, 4:8], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("hidden", ["kept", np.nan, -np.inf])
@pytest.mark.parametrize("noise", ["gaussian", "poisson-gaussian"])
def test_masked_pixels_of_ones_own_image_have_no_measurement(files, tmp_path, caplog, noise, hidden):
    image, spread, values = files
    mask = np.zeros((20, 24))
    mask[7, 9], mask[0, 0] = 1, 1  # the second lies outside the field, and not in the sky either
    fits.PrimaryHDU(mask).writeto(tmp_path / "mask.fits")
    mine = TINY | {"noise": noise, "measured": str(image), "psf": str(spread), "row": 10, "column": 12} | CAMERA
    whole = make_problem("psf-deconvolution", mine)
    if hidden != "kept":  # pipelines blank what they mask
        with fits.open(image, mode="update") as file:
            file[0].data[mask == 1] = hidden
        with pytest.raises(ValueError, match=r"2 of 480 values are not finite, the first at \[0, 0\]; what is hidden"):
            make_problem("psf-deconvolution", mine)
    with caplog.at_level(logging.INFO):
        problem = make_problem("psf-deconvolution", mine | {"mask": str(tmp_path / "mask.fits")})
    assert "mask.fits: 1 of 64 pixels of the field are masked and left out" in caplog.text
    kept = np.delete(np.arange(64), 8 + 1)
    assert problem.measurements[0].tolist() == whole.measurements[0].flatten()[kept].tolist()
    assert problem.measurement_image(problem.measurements[0]).isnan().nonzero().tolist() == [[1, 1]]
    value = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = whole.likelihood.operator(value).flatten()[kept]
    assert problem.likelihood.operator(value)[0].numpy() == pytest.approx(seen.numpy(), rel=1e-6)
    if noise == "gaussian":
        expected = stats_mad(values.ravel()[np.delete(np.arange(480), [0, 7 * 24 + 9])])
        assert problem.likelihood.noise_std == pytest.approx(1.4826 * expected, rel=1e-5)
        coarse = mine | {"binning": 2, "pixels": 4, "mask": str(tmp_path / "mask.fits")}
        blocks = make_problem("psf-deconvolution", coarse)
        assert blocks.measurements.shape == (1, 15)  # a block with a masked pixel is left out
    assert torch.isfinite(problem.likelihood.log_prob(value, problem.measurements)).all()


def test_of_a_measured_image_the_camera_and_the_point_spread_are_not_those_of_the_simulated_one(files):
    image, spread, _ = files
    mine = TINY | {"measured": str(image), "row": 10, "column": 12}
    with pytest.raises(ValueError, match="needs psf, exposure, background, read_std, gain, got no exposure, read_std;"):
        make_problem("psf-deconvolution", mine | {"psf": str(spread), "background": 3.0, "gain": 1.0})
    with pytest.raises(ValueError, match="a measured image under gaussian noise needs psf, got no psf"):
        make_problem("psf-deconvolution", mine | {"noise": "gaussian"})


def test_a_mask_that_hides_all_or_has_nothing_to_hide_is_refused(files, tmp_path):
    image, spread, _ = files
    fits.PrimaryHDU(np.ones((20, 24))).writeto(tmp_path / "all.fits")
    mine = TINY | {"measured": str(image), "psf": str(spread), "row": 10, "column": 12} | CAMERA
    mine["mask"] = str(tmp_path / "all.fits")
    with pytest.raises(ValueError, match=r"all.fits masks all of the 8 x 8 pixels of the field"):
        make_problem("psf-deconvolution", mine)
    for changes in ({"measured": "simulated"}, {"noise": "learned"}):
        with pytest.raises(ValueError, match="a mask is of a measured image, and learned noise of a whole one"):
            make_problem("psf-deconvolution", mine | changes)


def test_four_point_spreads_of_ones_own_are_those_of_the_corners(files, tmp_path):
    image, _, _ = files
    kernels = [gaussian_point_spread(fwhm, 0.1).middle(9).numpy() for fwhm in (0.2, 0.25, 0.3, 0.35)]
    kernels = [kernel / kernel.sum() for kernel in kernels]
    fits.PrimaryHDU(np.stack(kernels)).writeto(tmp_path / "four.fits")
    mine = TINY | {"noise": "gaussian", "measured": str(image), "row": 10, "column": 12}
    blur = make_problem("psf-deconvolution", mine | {"psf": str(tmp_path / "four.fits")}).likelihood.operator
    for number, (row, column) in enumerate(((0, 0), (0, 7), (7, 0), (7, 7))):
        point = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
        point[0, 0, row, column] = 1
        assert float(blur(point)[0, 0, row, column]) == pytest.approx(kernels[number].max(), rel=1e-6)
    fits.PrimaryHDU(np.stack(kernels[:3])).writeto(tmp_path / "three.fits")
    with pytest.raises(ValueError, match=r"three.fits must hold one point spread or 4, those of the corners, got 3"):
        make_problem("psf-deconvolution", mine | {"psf": str(tmp_path / "three.fits")})


def stats_mad(values):
    flat = np.sort(values.ravel().astype(np.float64))
    middle = flat[(len(flat) - 1) // 2]
    return np.sort(np.abs(flat - middle))[(len(flat) - 1) // 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "shot"}, "noise must be poisson-gaussian, gaussian or learned, got 'shot'"),
        ({"unit": 0.0}, "unit must be positive, binning at least 1 and noise_std not negative, got 0.0, 1, 0.0"),
        ({"binning": 2}, "counts are not averaged: noise poisson-gaussian needs binning 1"),
        ({"read_std": -1.0}, "read_std must be positive and finite, got -1.0"),
        ({"psf_fwhm": 0.0}, "fwhm and pixel_scale must be positive"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        make_problem("psf-deconvolution", TINY | options)


def test_fields_beyond_the_image_and_another_pixel_scale_are_refused(files):
    image, spread, _ = files
    mine = TINY | {"measured": str(image), "psf": str(spread), "row": 10, "column": 12} | CAMERA
    with pytest.raises(ValueError, match=r"8 x 8 pixels around row 2 and column 12 do not lie within the 20 x 24"):
        make_problem("psf-deconvolution", mine | {"row": 2})
    with pytest.raises(
        ValueError, match=r"image.fits\[0\]: a pixel scale of 0.2 arcsec is asked for, the header has 0.1"
    ):
        make_problem("psf-deconvolution", mine | {"pixel_scale": 0.2})
    fits.setval(spread, "CDELT1", value=0.2 / 3600)
    fits.setval(spread, "CDELT2", value=0.2 / 3600)
    with pytest.raises(ValueError, match=r"psf.fits\[0\]: a pixel scale of 0.1 arcsec .*, the header has 0.2"):
        make_problem("psf-deconvolution", mine)


def test_a_point_spread_with_a_hole_and_a_sky_without_noise_are_refused(files):
    image, spread, _ = files
    mine = TINY | {"noise": "gaussian", "measured": str(image), "psf": str(spread), "row": 10, "column": 12}
    with fits.open(spread, mode="update") as file:
        file[0].data[2, 3] = np.nan
    with pytest.raises(ValueError, match=r"psf.fits\[0\]: 1 of \d+ values are not finite, the first at \[2, 3\]"):
        make_problem("psf-deconvolution", mine)
    with fits.open(image, mode="update") as file:
        file[0].data[:12] = 0
    with pytest.raises(ValueError, match=r"image.fits: half of the sky or more has one value: give its noise"):
        make_problem("psf-deconvolution", mine)


@needs_hst
def test_the_point_spread_of_hubble_is_refused_for_other_pixels_and_measures_its_stamp():
    with pytest.raises(ValueError, match=r"pixels of 0.03 arcsec, the image ones of 0.06"):
        make_problem("psf-deconvolution", TINY | {"psf": "hst"})
    hst = TINY | {"psf": "hst", "measured": "hst", "noise": "gaussian", "unit": 100.0}
    problem = make_problem("psf-deconvolution", hst)
    assert 0.005 < problem.likelihood.noise_std < 0.03 and float(problem.measurements.max()) > 0.2


@needs_stack
def test_each_galaxy_of_the_stack_has_its_point_spread():
    stack = TINY | {"psf": "stack", "measured": "stack", "noise": "gaussian", "image": 7, "unit": 0.05}
    problem = make_problem("psf-deconvolution", stack)
    kernels = np.load(DATA / "galaxy_stack_sf_deconvolve" / "example_psfs.npy")
    whole = kernels[7].clip(0) / kernels[7].clip(0).sum()
    assert problem.likelihood.operator.kernel.numpy() == pytest.approx(whole[13:28, 13:28], rel=1e-5)
    variant = make_problem("psf-deconvolution", TINY | {"psf": "variant", "image": 3})
    assert isinstance(variant.likelihood.operator.outer, SpaceVariantBlur)
    with pytest.raises(ValueError, match=r"one of the 100 of .*npy, got 100"):
        make_problem("psf-deconvolution", stack | {"image": 100})


def test_without_the_data_it_says_what_is_missing(monkeypatch):
    monkeypatch.delenv("RTB_DATA", raising=False)
    with pytest.raises(MissingDataError, match=r"needs hst_hsc_scarlet/Cut_HST1\.fits"):
        make_problem("psf-deconvolution", TINY | {"measured": "hst", "psf": "hst", "noise": "gaussian"})
