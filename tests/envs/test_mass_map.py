"""Mass maps: shear is that of a potential, the posterior is calibrated and exact, maps are read or refused by name."""

import logging
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits

from diffusion.field_denoiser import FieldDenoiser, hartley
from envs import make_problem
from envs.data.convergence import convergence_spectrum, kappa_tng, lognormal_power, pixel_power
from envs.data.shear_maps import ShearMap, cosmos_shear
from envs.operators import Shear
from envs.problems.mass_map import LognormalConvergence

ARCMINUTE = math.pi / 180 / 60
SMALL = {"size": 8, "binning": 20, "num_steps": 3}
LENSING = Path(os.environ.get("RTB_DATA", "nowhere")) / "weak_lensing_jaxlensing"
needs_maps = pytest.mark.skipif(not LENSING.is_dir(), reason="RTB_DATA has no weak_lensing_jaxlensing")


def _potential(right, down):
    """A smooth periodic potential without a symmetry."""
    return (right.cos() + 0.7 * (down + 0.4).sin() + 0.5 * (right - 2 * down).cos()).exp()


@pytest.mark.parametrize("shape", [(33, 33), (32, 40)])
def test_shear_is_that_of_a_potential_by_its_second_derivatives(shape):
    """kappa = (psi_11 + psi_22) / 2, gamma_1 = (psi_11 - psi_22) / 2, gamma_2 = psi_12, by autograd."""
    lines = [2 * math.pi * torch.arange(length, dtype=torch.float64) / length for length in shape]
    # The operator's frequencies are per pixel, so that a box that is not square is one of square pixels.
    stretch = shape[1] / shape[0]
    down, right = (
        line.requires_grad_(True) for line in [part.flatten() for part in torch.meshgrid(*lines, indexing="ij")]
    )
    (by_right, by_down) = torch.autograd.grad(_potential(right, down).sum(), (right, down), create_graph=True)
    right_right, right_down = torch.autograd.grad(by_right.sum(), (right, down), retain_graph=True)
    (down_down,) = torch.autograd.grad(by_down.sum(), down)
    right_down, down_down = stretch * right_down, stretch**2 * down_down
    convergence = ((right_right + down_down) / 2).reshape(1, 1, *shape)
    expected = torch.stack([(right_right - down_down) / 2, right_down]).reshape(1, 2, *shape)
    found = Shear((1, *shape))(convergence)
    assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-4 * float(expected.abs().max()))


def test_shear_around_a_round_lens_is_tangential_and_the_mean_within_less_what_is_there():
    """gamma_t(r) = mean of kappa within r - kappa(r): (s^2 / r^2)(1 - exp(-r^2 / 2 s^2)) 2 - exp(-r^2 / 2 s^2)."""
    size, width = 128, 4.0
    line = torch.arange(size, dtype=torch.float64) - size // 2
    right, down = line[None], line[:, None]
    square = right.square() + down.square()
    kappa = (-square / (2 * width**2)).exp()
    gamma = Shear((1, size, size))(kappa[None, None])[0]
    angle = torch.atan2(down.expand(size, size), right.expand(size, size))
    tangential = -(gamma[0] * (2 * angle).cos() + gamma[1] * (2 * angle).sin())
    crossed = gamma[0] * (2 * angle).sin() - gamma[1] * (2 * angle).cos()
    ring = (square > 4) & (square < 20**2)
    expected = 2 * width**2 / square * (1 - kappa) - kappa
    missing = 2 * math.pi * (width / size) ** 2  # the mean of kappa, which makes no shear here
    assert float((tangential - expected)[ring].abs().max()) < missing
    assert float(crossed[ring].abs().max()) < missing


@pytest.mark.parametrize("shape", [(1, 7, 7), (1, 8, 6)])
def test_the_adjoint_and_the_spectrum_of_shear_are_those_of_its_matrix(shape, generator):
    shear = Shear(shape)
    value = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    other = torch.randn(3, *shear.measurement_shape, generator=generator, dtype=torch.float64)
    forward = (shear(value) * other).flatten(1).sum(1)
    assert forward.numpy() == pytest.approx((value * shear.adjoint(other)).flatten(1).sum(1).numpy(), abs=1e-12)
    spectrum, matrix = shear.spectrum(), shear.as_matrix()
    dense = matrix @ matrix.T
    product = spectrum.synthesise(spectrum.values * spectrum.analyse(other)).flatten(1)
    assert product.numpy() == pytest.approx((other.flatten(1) @ dense).numpy(), abs=1e-12)
    assert spectrum.synthesise(spectrum.analyse(other)).numpy() == pytest.approx(other.numpy(), abs=1e-12)
    assert float(torch.linalg.eigvalsh(dense).sort().values.sub(spectrum.values.sort().values).abs().max()) < 1e-12
    with pytest.raises(ValueError, match=r"convergence must be a map \[1, H, W\], got x of shape \(2, 4, 4\)"):
        Shear((2, 4, 4))


def test_the_power_of_pixels_is_that_of_the_mean_over_each():
    """Against a field of 8 x 8 finer pixels, averaged: both powers are exact, frequency by frequency."""
    width, fine, size = 4 * ARCMINUTE, 8, 12
    field = pixel_power(size * fine, width / fine)
    cycles = torch.fft.fftfreq(size * fine, dtype=torch.float64)
    wave = torch.exp(2j * math.pi * cycles[:, None] * torch.arange(fine, dtype=torch.float64))
    mean = wave.mean(1).abs().square()
    folded = (field * mean[:, None] * mean).reshape(fine, size, fine, size).sum((0, 2)) / fine**2
    found = pixel_power(size, width)
    assert (folded / found).numpy() == pytest.approx(np.ones((size, size)), rel=3e-3)


def test_a_table_of_the_spectrum_is_read_or_refused(tmp_path):
    multipole = torch.logspace(1, 5.5, 400, dtype=torch.float64)
    np.save(tmp_path / "c.npy", torch.stack([multipole, convergence_spectrum(multipole)]).numpy())
    read = pixel_power(16, 4 * ARCMINUTE, str(tmp_path / "c.npy"))
    assert (read / pixel_power(16, 4 * ARCMINUTE))[1:, 1:].numpy() == pytest.approx(np.ones((15, 15)), rel=1e-3)
    np.save(tmp_path / "c.npy", np.ones((2, 4)))
    with pytest.raises(ValueError, match="must hold positive finite numbers, l ascending"):
        pixel_power(16, 4 * ARCMINUTE, str(tmp_path / "c.npy"))
    np.save(tmp_path / "c.npy", np.ones(4))
    with pytest.raises(ValueError, match=r"must hold l and C\(l\), \[2, K\], got shape \[4\]"):
        pixel_power(16, 4 * ARCMINUTE, str(tmp_path / "c.npy"))
    with pytest.raises(ValueError, match=r"there is no file nowhere\.npy"):
        pixel_power(16, 4 * ARCMINUTE, "nowhere.npy")


def test_a_lognormal_field_has_the_power_that_it_is_made_for(generator):
    power = pixel_power(16, 4 * ARCMINUTE)
    hidden = lognormal_power(power, 0.039)
    convergence = LognormalConvergence((1, 16, 16), math.sqrt(float(hidden.mean())), 0.039)
    drawn = FieldDenoiser(hidden).sample(4_000, generator)
    field = convergence(drawn)
    assert float(field.min()) > -0.039
    assert float((convergence.inverse(field) - drawn).abs().max()) < 1e-9
    found = hartley(field).square()
    error = found.std(0) / 4_000**0.5
    assert float(((found.mean(0) - power) / error).abs().max()) < 5.0  # of 256 frequencies


def test_the_exact_posterior_is_that_of_importance_sampling_and_covers_the_truth(generator):
    problem = make_problem("mass-map", SMALL | {"galaxies": 1.0})
    drawn = problem.prior.denoiser.sample(30_000, generator)
    log_weight = problem.log_likelihood(drawn, torch.zeros(30_000).long()).double()
    weight = (log_weight - log_weight.max()).exp()
    error = float(weight.std() / weight.mean()) / 30_000**0.5
    estimate = float(log_weight.max() + weight.mean().log())
    assert problem.exact[0].log_partition == pytest.approx(estimate, abs=4 * error) and error < 0.1
    squares = []
    for seed in range(20):
        one = make_problem("mass-map", SMALL | {"seed": seed})
        exact, truth = one.exact[0], one.truth[0].double()
        difference = (truth - exact.mean).flatten()
        squares.append(float(difference @ torch.linalg.solve(exact.covariance, difference)) / 64)
    assert np.mean(squares) == pytest.approx(1, abs=4 * (2 / 64 / 20) ** 0.5)
    assert problem.truth.shape == (1, 1, 8, 8) and problem.image is None


def test_masked_pixels_have_no_measurement_and_both_components_of_the_others_do():
    problem = make_problem("mass-map", {"num_steps": 2})
    picture = problem.measurement_image(problem.measurements[0])
    assert 2 * int((~picture.isnan()).sum()) == problem.measurements.shape[1] < 2 * 32 * 32
    noise = 0.305 / (72 * 2.9**2) ** 0.5
    assert problem.likelihood.noise_std.numpy() == pytest.approx(noise, rel=1e-9)
    lognormal = make_problem("mass-map", {"num_steps": 2, "prior": "lognormal"})
    assert lognormal.exact == () and lognormal.image(lognormal.truth).shape == (1, 32, 32)


def test_blocks_are_means_weighted_by_the_galaxies_in_them():
    number = np.array([[1.0, 4.0], [0.0, 2.0]])
    shear, seen = np.stack([number, -number]) / 10, number > 0
    std = np.where(seen, 0.3 / np.sqrt(np.maximum(number, 1)), 1.0)
    whole = ShearMap(shear=shear, std=np.stack([std, std]), seen=seen, pixel_scale=10.0)
    block = whole.field(1, 2)
    assert block.shear[:, 0, 0] == pytest.approx([2.1 / 7, -2.1 / 7])
    assert block.std[0, 0, 0] == pytest.approx(0.3 / 7**0.5) and block.pixel_scale == 20.0
    padded = whole.field(4, 1)
    assert padded.seen.sum() == 3 and padded.seen[1, 1] and padded.shear[0, 1, 2] == pytest.approx(0.4)
    assert not whole.field(1, 4).seen.any()  # three of sixteen pixels


@pytest.fixture
def files(tmp_path):
    """Files of 8 x 8 pixels of 3 arcmin, one of them masked."""
    random = np.random.default_rng(0)
    mask = np.zeros((8, 8))
    mask[2, 3] = 1
    images = {"e1": 0.02 * random.normal(size=(8, 8)), "e2": 0.02 * random.normal(size=(8, 8))}
    images |= {"noise": np.where(mask, 0.0, 0.02), "mask": mask}
    for name, values in images.items():
        unit = fits.PrimaryHDU(values)
        unit.header["CDELT1"], unit.header["CDELT2"] = -0.05, 0.05
        unit.writeto(tmp_path / f"{name}.fits")
    options = {name: str(tmp_path / f"{name}.fits") for name in images}
    return options | {"data": "files", "size": 8, "binning": 1, "num_steps": 3}, images


@pytest.mark.parametrize("hidden", [0.0, np.nan])
def test_files_of_ones_own_are_read(files, caplog, hidden):
    options, images = files
    for name in ("e1", "e2", "noise"):
        with fits.open(options[name], mode="update") as file:
            file[0].data[2, 3] = hidden
    with caplog.at_level(logging.INFO):
        problem = make_problem("mass-map", options)
    assert "mask.fits: 1 of 64 pixels are masked and left out" in caplog.text
    seen = images["mask"] == 0
    expected = np.concatenate([images["e1"][seen], images["e2"][seen]])
    assert problem.measurements[0].numpy() == pytest.approx(expected, rel=1e-6) and problem.truth is None
    assert problem.likelihood.noise_std.numpy() == pytest.approx(0.02)
    assert problem.exact[0].mean.isfinite().all()
    assert float(problem.prior.denoiser.power.mean()) == pytest.approx(float(pixel_power(8, 3 * ARCMINUTE).mean()))


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("e1", (1, 2), np.nan, r"e1.fits\[0\]: 1 of 64 values are not finite, the first at \[1, 2\]"),
        ("e2", (1, 2), 3.0, r"e2.fits\[0\]: mean ellipticities must be within -2 to 2, got 3 at \[1, 2\], one of 1"),
        ("noise", (1, 2), -1.0, r"noise.fits\[0\]: the noise must be positive where nothing is masked, got -1 at"),
        ("mask", (1, 2), 2.0, r"mask.fits\[0\]: a mask is of 0 \(kept\) and 1 \(left out\), got 2.0"),
        ("mask", slice(None), 1.0, r"e1.fits\[0\]: the mask leaves no pixel"),
    ],
)
def test_pixels_that_cannot_be_are_named(files, name, place, value, message):
    options, images = files
    images[name][place] = value
    fits.PrimaryHDU(images[name]).writeto(options[name], overwrite=True)
    if name == "e1":
        options["pixel_scale"] = 3.0
    with pytest.raises(ValueError, match=message):
        make_problem("mass-map", options | {"pixel_scale": 3.0})


def test_files_that_do_not_go_together_and_options_that_cannot_be_are_refused(files):
    options, images = files
    fits.PrimaryHDU(images["e2"][:4]).writeto(options["e2"], overwrite=True)
    with pytest.raises(ValueError, match=r"e2.fits\[0\] must be of the shape \[8, 8\] of e1, got \[4, 8\]"):
        make_problem("mass-map", options)
    fits.setval(options["e1"], "BUNIT", value="percent")
    with pytest.raises(ValueError, match=r"e1.fits\[0\]: values must be in no unit, BUNIT says percent"):
        make_problem("mass-map", options)
    fits.delval(options["e1"], "BUNIT")
    with pytest.raises(ValueError, match="a pixel scale of 60 arcsec is asked for, the header has 180"):
        make_problem("mass-map", options | {"pixel_scale": 1.0})
    for wrong, message in (
        ({"data": "files"}, "data: files needs the FITS files e1, e2 and noise, got None"),
        ({"e1": "a.fits"}, "e1, e2, noise and mask are those of data: files"),
        ({"data": "euclid"}, "data must be simulated, cosmos or files, got 'euclid'"),
        ({"prior": "flat"}, "prior must be gaussian or lognormal, got 'flat'"),
        ({"truth": "sky"}, "truth must be prior or simulated, got 'sky'"),
        ({"sigma_e": 0.0}, "sigma_e must be positive and finite, got 0"),
        ({"binning": 0}, "binning must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make_problem("mass-map", wrong)


@needs_maps
def test_the_fit_is_the_theory_spectrum_and_its_pixels_vary_as_those_of_the_simulation():
    multipole, power = torch.from_numpy(np.load(LENSING / "ktng_PS_theory.npy"))
    inside = (multipole > 30) & (multipole < 6e4)
    assert (convergence_spectrum(multipole) / power)[inside].numpy() == pytest.approx(1, rel=0.04)
    field = kappa_tng()
    for binning in (4, 10):
        block = torch.nn.functional.avg_pool2d(field[None], binning)
        expected = float(pixel_power(360 // binning, 0.29 * binning * ARCMINUTE).mean().sqrt())
        assert float(block.std()) == pytest.approx(expected, rel=0.05)
        skewness = float((block - block.mean()).pow(3).mean() / block.std() ** 3)
        ratio = expected / 0.039  # of a lognormal
        assert skewness == pytest.approx(3 * ratio + ratio**3, rel=0.1)


@needs_maps
def test_a_cut_out_of_the_simulation_has_the_shear_of_the_whole_field():
    problem = make_problem("mass-map", {"truth": "simulated", "num_steps": 2, "size": 16, "image": 3})
    whole = torch.nn.functional.avg_pool2d(Shear((1, 360, 360))(kappa_tng()[None, None]), 10)[..., 16:32, 16:32]
    residual = (problem.measurements[0] - problem.likelihood.operator.outer(whole)[0]) / problem.likelihood.noise_std
    assert float(residual.square().mean()) == pytest.approx(1, abs=4 * (2 / len(residual)) ** 0.5)
    with pytest.raises(ValueError, match="image must be one of the 4 cut-outs of 160 x 160 pixels"):
        make_problem("mass-map", {"truth": "simulated", "size": 16, "image": 4})


@needs_maps
def test_cosmos_has_whole_numbers_of_galaxies_noise_of_its_size_and_waves_that_mass_can_make():
    """Signs and order of e1 and e2: E modes have more variance than B modes, and are skewed to high convergence."""
    cosmos = cosmos_shear()
    number = (0.305161 / cosmos.std[0][cosmos.seen]) ** 2
    assert np.abs(number - np.round(number)).max() < 1e-3 and np.round(number).sum() == 417_117
    residual = (cosmos.shear / cosmos.std)[:, cosmos.seen]
    assert (residual**2).mean() == pytest.approx(1.06, abs=0.01)  # 1, the shear's own variance, and what is not said
    blocks = cosmos.field(36, 10)
    weighted = torch.from_numpy(np.where(blocks.seen, blocks.shear, 0.0))[None]
    shear = Shear((1, 36, 36))
    smooth = (
        -0.5 * ((2 * math.pi * 0.6) ** 2) * (torch.fft.fftfreq(36)[:, None].square() + torch.fft.fftfreq(36).square())
    ).exp()

    def smoothed(gamma):
        return torch.fft.ifft2(torch.fft.fft2(shear.adjoint(gamma)[0, 0]) * smooth).real[torch.from_numpy(blocks.seen)]

    even = smoothed(weighted)
    odd = smoothed(torch.stack([weighted[:, 1], -weighted[:, 0]], 1))
    assert float(even.var()) > 1.7 * float(odd.var())
    assert float(((even - even.mean()) / even.std()).pow(3).mean()) > 0.5
    flipped = smoothed(torch.stack([weighted[:, 0], -weighted[:, 1]], 1))
    assert float(flipped.var()) < float(even.var())
