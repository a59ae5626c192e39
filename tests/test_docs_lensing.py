"""The examples of lensing and deconvolution in docs/instruments.md, from files that a user would bring."""

import math
import re

import numpy as np
import pytest
import torch
from astropy.io import fits

from envs.data.point_spread import gaussian_point_spread
from envs.operators.lensing import LensedImage, lens_parameters
from envs.problems.lens_fit import LensFit, lens_light
from tests.test_docs import python, snippets

SPREAD = gaussian_point_spread(0.25, 0.1)
FIT = LensFit(
    lens=tuple(lens_parameters(0.8, (0.1, -0.05), (0.02, 0.03), (0.02, 0.03)).tolist()),
    light_shape=(0.02, 0.03, 0.1, 0.0),
    light=(0.5, 0.0, 0.3, 0.1, 0.0, 0.0, 0.0, 0.0),
    source=(0.15, 0.05, 0.0, 0.0, 0.15, 1.0),
    brightness=0.1,
    reduced_chi2=1.0,
)


def snippet(mark):
    """The one block of the page that holds `mark`."""
    (found,) = [block for block in snippets("docs/instruments.md") if mark in block]
    return found


def numbers(output):
    return [float(value) for value in re.findall(r"-?\d+\.\d+", output)]


@pytest.fixture
def lens(tmp_path):
    """A lens of 24 x 24 pixels with a round exponential source, as a file of three units, and its fit."""
    grid = {"source_pixels": 128, "source_pixel_scale": 2 / 128, "source_centre": FIT.source[:2]}
    camera = LensedImage(pixels=24, pixel_scale=0.1, point_spread=SPREAD, **grid)
    line = (torch.arange(128, dtype=torch.float64) - 63.5) * 2 / 128
    radius = torch.hypot(line, line[:, None]) / 0.15
    source = FIT.brightness * (-(5 / 3) * (radius - 1)).exp()
    clean = camera.matrix(torch.tensor(FIT.lens).double())(source[None, None])[0] + lens_light(camera, FIT)
    image = clean.numpy() + 0.003 * np.random.default_rng(0).normal(size=(24, 24))
    units = {"VIS_BGSUB": image, "VIS_PSF": SPREAD.kernel.numpy(), "VIS_RMS": np.full((24, 24), 0.003)}
    file = fits.HDUList([fits.PrimaryHDU(), *[fits.ImageHDU(values, name=name) for name, values in units.items()]])
    file[1].header["CD1_1"], file[1].header["CD2_2"] = -0.1 / 3600, 0.1 / 3600
    file.writeto(tmp_path / "lens.fits")
    FIT.write(tmp_path / "fit.json")
    return tmp_path


def test_the_source_of_a_lens_of_ones_own_is_as_bright_as_it_is(lens):
    """Its brightest pixel of 0.0625 arcsec: the exponential within it, over the unit 0.3."""
    evidence, brightest = numbers(python("-c", snippet('"path": "lens.fits"'), cwd=lens))
    expected = 0.1 * math.exp(5 / 3 * (1 - 0.0442 / 0.15)) / 0.3
    assert brightest == pytest.approx(expected, rel=0.2) and evidence > 0


def test_source_and_lens_of_a_lens_of_ones_own_are_unknown_together(lens):
    """16 x 16 pixels of the source and seven numbers of the lens."""
    output = python("-c", snippet('"lensing-joint"'), cwd=lens)
    assert output.strip().splitlines()[-1] == "263 unknown numbers, 576 pixels"


@pytest.mark.slow
def test_the_fit_of_a_lens_of_ones_own(lens):
    radius, square = numbers(python("-c", snippet("fit_lens(band.camera"), cwd=lens))
    assert radius == pytest.approx(0.8, abs=0.011) and square == pytest.approx(1, abs=0.3)


def test_an_image_of_ones_own_is_deconvolved(tmp_path):
    """A round Gaussian galaxy whose peak is 0.8 in units of 0.5, with a sky of 0.02 of them."""
    down, right = np.indices((60, 80)) - np.array([30, 40])[:, None, None]
    own, blur = 2.0**2, (2.5 / 2.3548) ** 2
    image = 0.4 * own / (own + blur) * np.exp(-0.5 * (down**2 + right**2) / (own + blur))
    image += 0.01 * np.random.default_rng(0).normal(size=image.shape)
    unit = fits.PrimaryHDU(image)
    unit.header["CDELT1"], unit.header["CDELT2"] = -0.1 / 3600, 0.1 / 3600
    unit.writeto(tmp_path / "galaxy.fits")
    fits.PrimaryHDU(SPREAD.kernel.numpy()).writeto(tmp_path / "psf.fits")
    _, brightest, spread = numbers(python("-c", snippet('"measured": "galaxy.fits"'), cwd=tmp_path))
    assert 0.005 < spread < 0.1 and brightest == pytest.approx(0.8, abs=4 * spread)
