import numpy as np
import pytest
import torch
from astropy.io import fits

from envs.data import MissingDataError
from envs.data.point_spread import (
    PointSpread,
    checked_point_spread,
    gaussian_point_spread,
    read_point_spread,
    read_point_spreads,
)
from envs.data.sky_images import pixel_scale_of, read_mask, read_noise_map, read_sky_image


@pytest.fixture
def write(tmp_path):
    """Writes a FITS file with images [H, W] in units of their own, and returns its path."""

    def write(name="file.fits", header=None, **images):
        units = [fits.PrimaryHDU()]
        for unit, values in images.items():
            units.append(fits.ImageHDU(np.asarray(values), name=unit))
            units[-1].header.update(header or {})
        fits.HDUList(units).writeto(tmp_path / name, overwrite=True)
        return tmp_path / name

    return write


IMAGE = np.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize(
    ("header", "scale"),
    [
        ({"CD1_1": -1e-5, "CD2_2": 1e-5}, 0.036),
        ({"CD1_1": 0.0, "CD1_2": 2e-5, "CD2_1": 2e-5, "CD2_2": 0.0}, 0.072),
        ({"PC1_1": -1e-5, "PC2_2": 1e-5, "CDELT1": 1.0, "CDELT2": 1.0}, 0.036),
        ({"CDELT1": -2e-5, "CDELT2": 2e-5}, 0.072),
        ({"CDELT1": 0.05, "CDELT2": 0.05, "CUNIT1": "arcsec"}, 0.05),
        ({"CD1_1": -1e-5, "CD1_2": 1e-5, "CD2_1": 1e-5, "CD2_2": 1e-5}, 0.036 * 2**0.5),
    ],
)
def test_the_pixel_scale_is_that_of_the_header(write, header, scale):
    image = read_sky_image(write(header=header, SCI=IMAGE), "SCI")
    assert image.pixel_scale == pytest.approx(scale) and image.values.tolist() == IMAGE.tolist()


def test_an_image_without_a_pixel_scale_takes_the_one_that_is_given(write):
    path = write(SCI=IMAGE)
    assert read_sky_image(path, 1, 0.1).pixel_scale == 0.1
    with pytest.raises(ValueError, match=r"file.fits\[1\]: the header has no pixel scale"):
        read_sky_image(path, 1)


@pytest.mark.parametrize(
    ("header", "values", "message"),
    [
        ({}, np.where(IMAGE == 6, np.nan, IMAGE), r"file.fits\[SCI\]: 1 of 12 values are not finite, .* at \[1, 2\]"),
        ({"CDELT1": -1e-5, "CDELT2": 1e-5}, IMAGE, r"scale of 0.1 arcsec is asked for, the header has 0.036"),
        ({"CDELT1": -1e-5, "CDELT2": 2e-5}, IMAGE, "pixels must be square, got 0.036 x 0.072 arcsec"),
        (
            {"CDELT1": 1.0, "CDELT2": 1.0, "CUNIT1": "Hz", "CTYPE1": "RA---TAN"},
            IMAGE,
            "must be in deg or arcsec, CUNIT1 says Hz",
        ),
        ({"BUNIT": "MJy/sr"}, IMAGE, "values must be in electrons, BUNIT says MJy/sr"),
        ({"BUNIT": "electrons / s"}, IMAGE, "values must be in electrons, BUNIT says electrons / s"),
        ({"CDELT1": 0.0, "CDELT2": 0.0}, IMAGE, r"file.fits\[SCI\]: the pixel scale in the header .* must not be 0"),
        ({}, np.zeros((2, 3, 4)), r"must be an image of 2 axes, got ImageHDU of shape \[2, 3, 4\]$"),
    ],
)
def test_an_image_that_is_not_what_it_should_be_is_refused(write, header, values, message):
    with pytest.raises(ValueError, match=message):
        read_sky_image(write(header=header, SCI=values), "SCI", 0.1, ("electrons", "electron"))


@pytest.mark.parametrize(
    ("header", "scale"),
    [
        ({"PIXELSCL": 0.03}, 0.03),
        ({"PIXSCALE": 0.2, "CDELT1": 1.0, "CDELT2": 1.0}, 0.2),  # 1: nobody has set these
        ({"PIXELSCL": 0.1, "CTYPE1": "LINEAR", "CD1_1": 0.1, "CD2_2": 0.1}, 0.1),
        ({"PIXELSCL": 0.036, "CDELT1": -1e-5, "CDELT2": 1e-5, "CTYPE1": "RA---TAN"}, 0.036),
        ({"CDELT1": 0.5, "CDELT2": 0.5, "CUNIT1": "arcmin"}, 30.0),
        ({"CDELT1": 1e-5, "CDELT2": 1e-5, "CUNIT1": "DEG", "CTYPE1": "GLON-CAR"}, 0.036),
        ({"CTYPE1": "LINEAR", "CD1_1": 0.1, "CD2_2": 0.1}, None),
        ({"CTYPE1": "DETX", "CDELT1": 0.5, "CDELT2": 0.5}, None),
        ({"CDELT1": 1.0, "CDELT2": 1.0}, None),
        ({"CTYPE1": "LINEAR", "CUNIT1": "pixel", "CDELT1": 2.0, "CDELT2": 2.0}, None),
        ({"CTYPE1": "DETX", "CUNIT1": "um", "CDELT1": 15.0, "CDELT2": 15.0, "PIXELSCL": 0.06}, 0.06),
    ],
)
def test_the_pixel_scale_may_be_a_keyword_and_what_is_no_angle_is_none(write, header, scale):
    path = write(header=header, SCI=IMAGE)
    assert pixel_scale_of(path, "SCI") == (None if scale is None else pytest.approx(scale))
    if scale is None:
        with pytest.raises(
            ValueError, match=r"no pixel scale on the sky \(CD, PC or CDELT with CTYPE or CUNIT, or PIXE"
        ):
            read_sky_image(path, "SCI")
        assert read_sky_image(path, "SCI", 0.05).pixel_scale == 0.05


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"PIXELSCL": 0.025, "CDELT1": 1e-5, "CDELT2": 1e-5}, r"two pixel scales, 0.025 \(PIXELSCL\) and 0.036 \(CD"),
        ({"PIXELSCL": -1.0}, r"the pixel scale in the header \(PIXELSCL\) must be above 0, got -1 arcsec"),
        ({"CDELT1": "abc", "CDELT2": 1e-5}, r"CDELT1 must be a number, got 'abc'"),
    ],
)
def test_pixel_scales_that_contradict_each_other_or_are_no_numbers_are_refused(write, header, message):
    with pytest.raises(ValueError, match=message):
        read_sky_image(write(header=header, SCI=IMAGE), "SCI")


def sky(right, up, scale=0.1):
    """The header of an image of 4 x 3 pixels whose middle is there (degrees)."""
    step = {"CDELT1": -scale / 3600, "CDELT2": scale / 3600, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"}
    return step | {"CRPIX1": 2.5, "CRPIX2": 2.0, "CRVAL1": right, "CRVAL2": up}


def test_images_of_other_places_on_the_sky_are_not_put_together(write):
    image = read_sky_image(write(header=sky(150.0, 60.0), SCI=IMAGE), "SCI")
    assert image.centre == pytest.approx((150.0, 60.0))
    near = write("near.fits", sky(150.0 + 0.09 / 3600 / np.cos(np.radians(60)), 60.0), RMS=np.ones((3, 4)))
    assert not read_noise_map(near, "RMS", (3, 4), image)[1].any()
    far = write("far.fits", sky(150.0 + 0.3 / 3600 / np.cos(np.radians(60)), 60.0), RMS=np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"far.fits\[RMS\]: the middle must be where that of .*, 0.3 arcsec away"):
        read_noise_map(far, "RMS", (3, 4), image)
    plain = read_sky_image(write("plain.fits", SCI=IMAGE), "SCI", 0.1)
    image.check_centre(plain)  # which does not say where it is
    plain.check_centre(image)
    lost = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CPDIS1": "LOOKUP", "DP1": "EXTVER: 1"}
    assert read_sky_image(write("lost.fits", sky(150.0, 60.0) | lost, SCI=IMAGE), "SCI").values.shape == (3, 4)


def test_the_only_image_of_a_file_may_be_in_an_extension_compressed_or_behind_an_axis_of_one(write, tmp_path):
    assert read_sky_image(write(SCI=IMAGE[None]), 0, 0.1).values.tolist() == IMAGE.tolist()
    packed = fits.CompImageHDU(np.arange(100 * 90, dtype=np.int32).reshape(100, 90))
    fits.HDUList([fits.PrimaryHDU(), packed]).writeto(tmp_path / "image.fits.fz")
    image = read_sky_image(tmp_path / "image.fits.fz", pixel_scale=0.1)
    assert image.values.shape == (100, 90) and image.values[1, 2] == 92 and image.place.endswith("image.fits.fz[1]")


def test_units_are_compared_without_signs_of_powers(write):
    path = write(header={"BUNIT": "CM**2 S", "CDELT1": 1e-4, "CDELT2": 1e-4}, SCI=IMAGE)
    assert read_sky_image(path, "SCI", units=("cm^2 s",)).unit == "CM**2 S"
    with pytest.raises(ValueError, match=r"values must be in s, BUNIT says CM\*\*2 S"):
        read_sky_image(path, "SCI", units=("s",))
    for scale in (0.0, -0.1, np.nan):
        with pytest.raises(ValueError, match=rf"a pixel scale must be positive, in arcsec, got {scale}"):
            read_sky_image(path, "SCI", scale)


def test_what_is_no_file_no_unit_or_no_fits_is_named(write, tmp_path):
    with pytest.raises(MissingDataError, match=r"there is no file .*none.fits"):
        read_sky_image(tmp_path / "none.fits")
    with pytest.raises(ValueError, match=r"has no unit 'ERR', only PRIMARY, SCI"):
        read_sky_image(write(SCI=IMAGE), "ERR")
    with pytest.raises(
        ValueError, match=r"\[0\] must be .* of 2 axes, got PrimaryHDU .* images in 1 \(SCI\), 2 \(B\): write"
    ):
        read_sky_image(write(SCI=IMAGE, B=IMAGE))
    whole = write("short.fits", SCI=np.zeros((100, 100)))
    whole.write_bytes(whole.read_bytes()[:6000])
    with pytest.raises(ValueError, match=r"cannot read .*short.fits as FITS, is all of it there\?"):
        read_sky_image(whole, "SCI", 0.1)
    (tmp_path / "text.fits").write_text("no FITS")
    with pytest.raises(ValueError, match=r"cannot read .*text.fits as FITS"):
        read_sky_image(tmp_path / "text.fits")


def test_a_huge_standard_deviation_means_that_nothing_was_measured(write):
    noise = np.full((3, 4), 0.2)
    noise[1, 3] = 1e16
    found, unseen = read_noise_map(write(RMS=noise), "RMS", (3, 4))
    assert np.argwhere(unseen).tolist() == [[1, 3]]
    assert found[1, 3] == 1 and found[0, 0] == 0.2
    most = np.where(IMAGE > 3, 1e16, 0.2)  # of which the median is 10^16
    assert read_noise_map(write(RMS=most), "RMS", (3, 4))[1].tolist() == (IMAGE > 3).tolist()


@pytest.mark.parametrize("wrong", [-0.2, 0.0, np.nan, np.inf])
def test_what_is_hidden_may_be_anything(write, wrong):
    hidden = IMAGE == 6
    path = write(SCI=np.where(hidden, wrong, IMAGE), RMS=np.where(hidden, wrong, np.where(IMAGE == 1, 1e16, 0.2)))
    image = read_sky_image(path, "SCI", 0.1, blank=True)
    assert image.without(hidden).values.tolist() == np.where(hidden, 0, IMAGE).tolist()
    std, unseen = read_noise_map(path, "RMS", (3, 4), image, hidden)
    assert unseen.tolist() == (IMAGE == 1).tolist()
    assert std.tolist() == np.where(hidden | unseen, 1.0, 0.2).tolist()
    assert not read_noise_map(path, "RMS", (3, 4), image, np.ones((3, 4), bool))[1].any()
    if not np.isfinite(wrong):
        with pytest.raises(ValueError, match=r"\[SCI\]: 1 of 12 values are not finite, the first at \[1, 2\]; what is"):
            image.without(IMAGE == 7)


@pytest.mark.parametrize("wrong", [-0.2, 0.0, np.nan, np.inf])
def test_a_noise_map_is_positive_and_finite(write, wrong):
    noise = np.full((3, 4), 0.2)
    noise[2, 1] = wrong
    with pytest.raises(ValueError, match=rf"file.fits\[RMS\]: .* positive and finite, got {wrong:g} at \[2, 1\]"):
        read_noise_map(write(RMS=noise), "RMS", (3, 4))


def test_a_noise_map_is_in_the_unit_and_the_pixels_of_its_image(write):
    def header(unit, scale):
        return {"BUNIT": unit, "CDELT1": -scale / 3600, "CDELT2": scale / 3600}

    image = read_sky_image(write(header=header("uJy", 0.1), SCI=IMAGE), "SCI")
    other = write("other.fits", header("mJy", 0.1), RMS=np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"other.fits\[RMS\]: BUNIT must be that of .*\[SCI\], uJy, got mJy"):
        read_noise_map(other, "RMS", (3, 4), image)
    other = write("other.fits", header("ujy", 0.2), RMS=np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"other.fits\[RMS\]: pixels must be those of .*, of 0.1 arcsec, got 0.2"):
        read_noise_map(other, "RMS", (3, 4), image)
    assert read_noise_map(write("plain.fits", RMS=np.ones((3, 4))), "RMS", (3, 4), image)[0].sum() == 12


def test_masks_and_noise_maps_have_the_shape_of_the_image(write):
    path = write(RMS=np.ones((4, 3)), MASK=np.ones((4, 3)))
    for read, unit in ((read_noise_map, "RMS"), (read_mask, "MASK")):
        with pytest.raises(ValueError, match=rf"\[{unit}\] must be of the image's shape \[3, 4\], got \[4, 3\]"):
            read(path, unit, (3, 4))


def test_a_mask_is_of_ones_and_zeros(write):
    mask = (IMAGE > 9).astype(float)
    assert read_mask(write(MASK=mask), "MASK", (3, 4)).tolist() == (IMAGE > 9).tolist()
    mask[0, 2] = 2
    with pytest.raises(ValueError, match=r"a mask is of 0 \(kept\) and 1 \(left out\), got 2.0 at \[0, 2\]"):
        read_mask(write("other.fits", MASK=mask), "MASK", (3, 4))


def test_a_point_spread_is_read_and_its_sum_is_one(write):
    kernel = gaussian_point_spread(0.3, 0.1).kernel.numpy()
    kernel[0, 0] = -1e-6
    spread = read_point_spread(write(PSF=0.97 * kernel), 0.1, "PSF")
    assert float(spread.kernel.sum()) == pytest.approx(1, abs=1e-12) and float(spread.kernel.min()) == 0
    assert spread.kernel.numpy() == pytest.approx(kernel.clip(0), abs=2e-6) and spread.pixel_scale == 0.1


def test_a_point_spread_whose_peak_is_beside_its_middle_is_told_of(write, caplog):
    kernel = gaussian_point_spread(0.3, 0.1).kernel.numpy()
    read_point_spread(write(PSF=kernel), 0.1, "PSF")
    assert not caplog.text
    read_point_spread(write(PSF=np.roll(kernel, 2, 1)), 0.1, "PSF")
    assert "[PSF]: the peak is at [6, 8], not in the middle of [13, 13]: what is seen through it" in caplog.text


def test_a_stack_of_point_spreads_is_read_and_what_is_wrong_in_it_has_its_number(tmp_path):
    stack = np.stack([gaussian_point_spread(fwhm, 0.1).middle(7).numpy() for fwhm in (0.2, 0.3, 0.4)])
    stack /= stack.sum((1, 2), keepdims=True)
    path = tmp_path / "stack.fits"
    fits.PrimaryHDU(stack).writeto(path)
    spreads = read_point_spreads(path, 0.1)
    assert [spread.kernel.numpy() for spread in spreads] == [pytest.approx(kernel) for kernel in stack]
    fits.PrimaryHDU(stack[0]).writeto(path, overwrite=True)
    assert len(read_point_spreads(path, 0.1)) == 1
    for place, value, message in (
        ((1, 2, 3), np.nan, r"stack.fits\[0\], number 1: 1 of 49 values are not finite, the first at \[2, 3\]"),
        ((2, 0, 0), -0.1, r"stack.fits\[0\], number 2: a point spread is not negative, got -0.1 at \[0, 0\]"),
    ):
        wrong = stack.copy()
        wrong[place] = value
        fits.PrimaryHDU(wrong).writeto(path, overwrite=True)
        with pytest.raises(ValueError, match=message):
            read_point_spreads(path, 0.1)


def _moved(kernel, pixels):
    return torch.from_numpy(np.roll(kernel.numpy(), pixels, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda kernel: 5 * kernel, r"psf: a point spread must have the sum one, to 0.1, got 5: normalise it"),
        (lambda kernel: kernel[1:], r"psf: a point spread must have odd sizes, .* got \[12, 13\]"),
        (lambda kernel: _moved(kernel, 3), r"psf: the peak .* to 2 pixels, got \[6, 9\] of \[13, 13\]"),
        (lambda kernel: kernel - 0.02, r"psf: a point spread is not negative, got -0.02 at \[0, 0\]"),
    ],
)
def test_what_is_no_point_spread_is_refused(change, message):
    kernel = gaussian_point_spread(0.3, 0.1).kernel
    assert kernel.shape == (13, 13)
    with pytest.raises(ValueError, match=message):
        checked_point_spread(change(kernel), 0.1, "psf")


def test_a_point_spread_of_other_pixels_is_resampled_only_by_name():
    fine = gaussian_point_spread(0.3, 0.02)
    with pytest.raises(ValueError, match=r"pixels of 0.02 arcsec, the image ones of 0.1: resample it"):
        fine.at(0.1)
    coarse = fine.resampled(0.1).at(0.1)
    full = len(fine.kernel)
    half = -(-(full - 5) // 10)
    padded = np.pad(fine.kernel.numpy(), (10 * half + 5 - full) // 2)
    expected = padded.reshape(2 * half + 1, 5, 2 * half + 1, 5).sum((1, 3))
    assert coarse.kernel.numpy() == pytest.approx(expected, abs=1e-12)
    offset = torch.arange(len(coarse.kernel), dtype=torch.float64) - len(coarse.kernel) // 2
    variance = float(coarse.kernel.sum(0) @ offset.square()) * 0.1**2
    assert variance == pytest.approx((0.3 / 2.3548) ** 2 + (0.1**2 - 0.02**2) / 12, rel=0.01)


def test_the_middle_of_a_point_spread_is_as_bright_as_it_was():
    spread = gaussian_point_spread(0.3, 0.1)
    assert torch.equal(spread.middle(5), spread.kernel[4:9, 4:9])
    assert spread.middle(99).shape == (13, 13)
    with pytest.raises(ValueError, match="odd number of pixels, got 4"):
        spread.middle(4)
    with pytest.raises(ValueError, match=r"sum one, got 0\.5"):
        PointSpread(0.5 * spread.kernel, 0.1)
