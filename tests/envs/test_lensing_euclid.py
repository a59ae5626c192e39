import json
import logging
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits

from envs import make_problem
from envs.data import MissingDataError
from envs.data.point_spread import gaussian_point_spread
from envs.operators.lensing import LensedImage, lens_parameters
from envs.problems.lens_fit import WIDTHS, LensFit, fit_lens, lens_light, read_lens_fit
from envs.problems.lensing_euclid import read_band

needs_lens = pytest.mark.skipif(
    not Path(os.environ.get("RTB_DATA", "nowhere"), "lens_euclid_q1").is_dir(), reason="RTB_DATA has no lens_euclid_q1"
)
TRUE = LensFit(
    lens=tuple(lens_parameters(0.8, (0.1, -0.05), (0.02, 0.03), (0.02, 0.03)).tolist()),
    light_shape=(0.02, 0.03, 0.1, 0.0),
    light=(0.5, 0.0, 0.3, 0.1, 0.0, 0.0, 0.0, 0.0),
    source=(0.15, 0.05, 0.1, 0.0, 0.15, 1.0),
    brightness=0.1,
    reduced_chi2=1.0,
)
SPREAD = gaussian_point_spread(0.25, 0.1)
SMALL = {"pixels": 24, "source_pixels": 4, "galaxies": 12, "num_steps": 3}


def source_light(camera, fit):
    """The lensed Sersic source of a fit by the source plane's own formula."""
    size, scale = camera.source_pixels, camera.source_pixel_scale
    line = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) * scale
    x, y = line + camera.source_centre[0] - fit.source[0], line[:, None] + camera.source_centre[1] - fit.source[1]
    ellipticity, angle = math.hypot(*fit.source[2:4]), 0.5 * math.atan2(fit.source[3], fit.source[2])
    ratio = (1 - ellipticity) / (1 + ellipticity)
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    radius, index = fit.source[4:]
    distance = (ratio * along.square() + across.square() / ratio).sqrt() / radius
    brightness = fit.brightness * (-(2 * index - 1 / 3) * (distance ** (1 / index) - 1)).exp()
    return camera.matrix(torch.tensor(fit.lens, dtype=torch.float64))(brightness[None, None])[0]


def camera(pixels=24, source_pixels=128, size=2.0):
    return LensedImage(
        pixels=pixels,
        pixel_scale=0.1,
        point_spread=SPREAD,
        source_pixels=source_pixels,
        source_pixel_scale=size / source_pixels,
        source_centre=TRUE.source[:2],
    )


@pytest.fixture
def write(tmp_path):
    """Writes a file of one band of 30 x 30 pixels, with changes; and the fit beside it."""

    def write(**changes):
        units = {"VIS_BGSUB": np.zeros((30, 30)), "VIS_PSF": SPREAD.kernel.numpy(), "VIS_RMS": np.full((30, 30), 0.01)}
        made = [fits.PrimaryHDU()]
        for name, values in (units | changes).items():
            made.append(fits.ImageHDU(values, name=name))
        made[1].header["CD1_1"], made[1].header["CD2_2"] = -0.1 / 3600, 0.1 / 3600
        fits.HDUList(made).writeto(tmp_path / "lens.fits", overwrite=True)
        TRUE.write(tmp_path / "fit.json")
        return {"path": str(tmp_path / "lens.fits"), "fit": str(tmp_path / "fit.json")}

    return write


@pytest.mark.slow
def test_a_fit_finds_the_lens_that_made_the_image(generator):
    """Bilinear between source pixels of 0.016 arcsec stands for the source: an independent way to its image."""
    scene = camera()
    clean = lens_light(scene, TRUE) + source_light(scene, TRUE)
    noise = 0.003
    image = clean + noise * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    fit = fit_lens(scene, image, torch.full_like(clean, noise), torch.ones_like(clean).bool(), (0.75, 0.1, 0.0))
    assert fit.lens[0] == pytest.approx(0.8, abs=0.01)
    assert fit.source[:2] == pytest.approx(TRUE.source[:2], abs=0.02)
    assert fit.reduced_chi2 == pytest.approx(1, abs=5 * (2 / 576) ** 0.5)


def test_your_own_file_is_its_image_less_the_light_of_the_lens(write, caplog):
    noise = np.full((30, 30), 0.01)
    noise[10, 12], noise[0, 0] = 1e16, 1e16  # the second lies outside
    image = np.random.default_rng(0).normal(size=(30, 30))
    files = write(VIS_BGSUB=image, VIS_RMS=noise)
    with caplog.at_level(logging.INFO, logger="envs.problems.lensing_euclid"):
        problem = make_problem("lensing-euclid", SMALL | files | {"unit": 2.0, "noise_scale": 3.0})
    assert "1 of 576 pixels are masked and left out" in caplog.text
    assert problem.measurements.shape == (1, 575)
    light = lens_light(camera(), TRUE).numpy()
    expected = ((image[3:27, 3:27] - light) / 2).ravel()
    assert problem.measurements[0].numpy() == pytest.approx(np.delete(expected, 7 * 24 + 9), abs=1e-6)
    picture = problem.measurement_image(problem.measurements[0])
    assert picture.isnan().nonzero().tolist() == [[7, 9]]
    assert problem.likelihood.noise_std.unique().tolist() == [0.015]
    operator = problem.likelihood.operator
    assert operator.as_matrix().shape == (575, 16)
    covariance = operator.as_matrix() @ problem.prior.denoiser.covariance @ operator.as_matrix().T
    gaussian = torch.distributions.MultivariateNormal(torch.zeros(575).double(), covariance + 0.015**2 * torch.eye(575))
    means = problem.prior.denoiser.means @ operator.as_matrix().T
    logs = gaussian.log_prob(problem.measurements.double() - means)
    assert problem.exact[0].log_partition == pytest.approx(float(logs.logsumexp(0)) - math.log(12), rel=1e-6)


def test_source_and_lens_of_your_own_file_are_those_of_the_fit_where_the_lens_is_its_middle(write):
    noise = np.full((30, 30), 0.01)
    noise[10, 12] = 1e16
    files = SMALL | write(VIS_RMS=noise) | {"unit": 2.0, "source_size": 1.0, "subsampling": 2}
    known, joint = (make_problem(name, files) for name in ("lensing-euclid", "lensing-joint"))
    assert joint.measurements.tolist() == known.measurements.tolist() and joint.truth is None
    assert joint.likelihood.noise_std.tolist() == known.likelihood.noise_std.tolist()
    source = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value = torch.nn.functional.pad(source.flatten(1), (0, 7))
    expected = known.likelihood.log_prob(source, known.measurements)
    assert joint.likelihood.log_prob(value, joint.measurements).numpy() == pytest.approx(expected.numpy(), rel=1e-6)
    value[:, -7] = 1.0  # the Einstein radius: data_std is one standard deviation, of 2 % of 0.8 arcsec
    assert joint.likelihood.operator.inner.parameters_of(value)[0, 0] == pytest.approx(
        TRUE.lens[0] * (1 + 0.02 / joint.prior.data_std), rel=1e-6
    )
    for wrong, message in (
        ({"fit": ""}, r"a file of your own and a fit of its lens go together, got path '.*lens.fits' and fit ''"),
        ({"slope": 1.2}, "a fit is of an isothermal lens, of slope 1, got 1.2"),
        ({"band": "NIR_H"}, r"has no unit 'NIR_H_BGSUB'"),
    ):
        with pytest.raises(ValueError, match=message):
            make_problem("lensing-joint", files | wrong)


def test_a_mask_leaves_pixels_out(write, tmp_path):
    mask = np.zeros((30, 30))
    mask[5:8, 5:9] = 1
    fits.PrimaryHDU(mask).writeto(tmp_path / "mask.fits")
    problem = make_problem("lensing-euclid", SMALL | write() | {"mask": str(tmp_path / "mask.fits")})
    assert problem.measurements.shape == (1, 576 - 12)
    blank = {"VIS_BGSUB": np.where(mask, np.nan, 0.0), "VIS_RMS": np.where(mask, np.nan, 0.01)}
    blanked = make_problem("lensing-euclid", SMALL | write(**blank) | {"mask": str(tmp_path / "mask.fits")})
    assert torch.equal(blanked.measurements, problem.measurements)
    assert blanked.exact[0].log_partition == problem.exact[0].log_partition
    fits.PrimaryHDU(mask[1:]).writeto(tmp_path / "other.fits")
    with pytest.raises(ValueError, match=r"other.fits\[0\] must be of the image's shape \[30, 30\], got \[29, 30\]"):
        make_problem("lensing-euclid", SMALL | write() | {"mask": str(tmp_path / "other.fits")})


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"VIS_RMS": np.full((30, 30), -0.01)}, {}, r"lens.fits\[VIS_RMS\]: .* positive and finite, got -0.01"),
        ({"VIS_RMS": np.full((29, 30), 0.01)}, {}, r"lens.fits\[VIS_RMS\] must be of the image's shape"),
        ({"VIS_BGSUB": np.full((30, 30), np.nan)}, {}, r"lens.fits\[VIS_BGSUB\]: 900 of 900 values are not finite"),
        ({"VIS_PSF": 3 * SPREAD.kernel.numpy()}, {}, r"lens.fits\[VIS_PSF\]: a point spread must have the sum one"),
        ({}, {"band": "NIR_H"}, r"has no unit 'NIR_H_BGSUB', only PRIMARY, VIS_BGSUB"),
        ({}, {"pixels": 31}, r"lens.fits\[VIS_BGSUB\]: pixels must be within 1..30, got 31"),
        ({}, {"fit": ""}, "a file of your own needs a fit of its lens and light"),
        ({}, {"unit": 0.0}, "unit and noise_scale must be positive, got 0.0"),
    ],
)
def test_files_that_cannot_be_are_refused_by_name(write, changes, options, message):
    with pytest.raises(ValueError, match=message):
        make_problem("lensing-euclid", SMALL | write(**changes) | options)


def test_a_point_spread_or_a_noise_map_of_other_pixels_is_refused_by_its_unit(write):
    files = SMALL | write()
    for unit, message in (
        ("VIS_PSF", r"lens.fits\[VIS_PSF\]: pixels must be those of the image, of 0.1 .* of 0.05, got 0.03"),
        ("VIS_RMS", r"lens.fits\[VIS_RMS\]: pixels must be those of .*\[VIS_BGSUB\], of 0.1 arcsec, got 0.03"),
    ):
        for axis in (1, 2):
            fits.setval(files["path"], f"CDELT{axis}", value=0.03 / 3600, extname=unit)
        with pytest.raises(ValueError, match=message):
            make_problem("lensing-euclid", files | {"subsampling": 2})
        write()


def test_a_point_spread_may_be_at_the_scale_of_the_points(write):
    fine = gaussian_point_spread(0.2, 0.05)
    files = SMALL | write(VIS_PSF=fine.kernel.numpy()) | {"subsampling": 2}
    for axis in (1, 2):
        fits.setval(files["path"], f"CDELT{axis}", value=0.05 / 3600, extname="VIS_PSF")
    band = read_band(
        Path(files["path"]),
        "VIS",
        None,
        pixels=24,
        subsampling=2,
        source_pixels=4,
        source_size=1.0,
        source_centre=(0, 0),
    )
    assert band.camera.point_spread.pixel_scale == pytest.approx(0.05)
    assert make_problem("lensing-euclid", files).measurements.shape == (1, 576)


def test_a_mask_or_a_noise_map_that_leaves_nothing_is_named(write, tmp_path):
    fits.PrimaryHDU(np.ones((30, 30))).writeto(tmp_path / "all.fits")
    with pytest.raises(ValueError, match=r"lens.fits\[VIS_BGSUB\]: all of the 576 pixels are masked, or have no data"):
        make_problem("lensing-euclid", SMALL | write() | {"mask": str(tmp_path / "all.fits")})


def test_a_fit_is_read_as_it_was_written_and_nothing_else(tmp_path):
    TRUE.write(tmp_path / "fit.json")
    assert read_lens_fit(tmp_path / "fit.json") == TRUE and len(TRUE.light) == len(WIDTHS)
    for text, message in (("[]", "must be a fit"), ('{"lens": [1.0]}', "must be a fit")):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_lens_fit(tmp_path / "other.json")
    whole = (tmp_path / "fit.json").read_text()
    for name, value in (("lens", 3), ("light", None), ("source", ["a"] * 6), ("brightness", "bright")):
        (tmp_path / "other.json").write_text(json.dumps(json.loads(whole) | {name: value}))
        with pytest.raises(ValueError, match=rf"other.json: {name} must be \d finite number"):
            read_lens_fit(tmp_path / "other.json")
    short = (tmp_path / "fit.json").read_text().replace("0.8,", "", 1)
    (tmp_path / "other.json").write_text(short)
    with pytest.raises(ValueError, match="lens must be 7 finite numbers"):
        read_lens_fit(tmp_path / "other.json")


def test_without_the_data_it_says_what_is_missing(monkeypatch):
    monkeypatch.delenv("RTB_DATA", raising=False)
    with pytest.raises(MissingDataError, match=r"needs lens_euclid_q1/102018665_NEG570040238507752998\.fits"):
        make_problem("lensing-euclid", SMALL)


@needs_lens
def test_the_real_lens_leaves_little_once_its_source_is_known():
    """The noise map says more than there is: the residuals' mean square is 0.40 with the fit's own source."""
    problem = make_problem("lensing-euclid", {"num_steps": 3, "prior": "sersic-smooth"})
    assert problem.measurements.shape == (1, 1600)
    mean = problem.exact[0].mean[None]
    residual = problem.likelihood.standardised(mean, problem.measurements.double())
    nothing = problem.likelihood.standardised(torch.zeros_like(mean), problem.measurements.double())
    assert 0.35 < float(residual.square().mean()) < 0.5 < float(nothing.square().mean())
