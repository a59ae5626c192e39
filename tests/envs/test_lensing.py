import math
import sys
import warnings

import numpy as np
import pytest
import torch
from scipy import signal, stats

from envs import make_problem
from envs.data import MissingDataError
from envs.data.point_spread import gaussian_point_spread
from envs.exact.mixture import condition_mixture
from envs.operators.lensing import LensedImage, LensedSource, lens_parameters
from envs.problems.galaxy_density import galaxy_density, sersic_galaxies

caustics = pytest.importorskip("caustics")

LENS = lens_parameters(0.8, (0.12, -0.07), (0.05, -0.1), (0.03, -0.02))
CAMERA = {"pixels": 12, "pixel_scale": 0.25, "subsampling": 2, "source_pixels": 8, "source_pixel_scale": 0.2}
TINY = {"galaxies": 12, "source_pixels": 4, "source_size": 1.6, "pixels": 8, "pixel_scale": 0.45, "num_steps": 3}


def simulator(scene, image, lens=LENS):
    """Caustics' own simulation of the same scene, float64, from its classes."""
    radius, first, second, x0, y0, shear_1, shear_2 = lens.tolist()
    ellipticity = math.hypot(first, second)
    cosmology = caustics.FlatLambdaCDM(name="cosmology")
    given = {"cosmology": cosmology, "x0": x0, "y0": y0, "q": (1 - ellipticity) / (1 + ellipticity), "Rein": radius}
    given["phi"] = 0.5 * math.atan2(second, first)
    main = caustics.SIE(**given) if scene.slope == 1 else caustics.EPL(t=scene.slope, **given)
    shear = caustics.ExternalShear(cosmology=cosmology, x0=0.0, y0=0.0, gamma_1=shear_1, gamma_2=shear_2)
    plane = caustics.SinglePlane(cosmology=cosmology, lenses=[main, shear], z_l=0.5, z_s=1.0)
    middle = {"x0": scene.source_centre[0], "y0": scene.source_centre[1], "pixelscale": scene.source_pixel_scale}
    spread = [[1.0]] if scene.point_spread is None else scene.point_spread.kernel
    made = caustics.LensSource(
        plane,
        caustics.Pixelated(image=image, **middle),
        pixelscale=scene.pixel_scale,
        pixels_x=scene.pixels,
        upsample_factor=scene.subsampling,
        psf=spread,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of redshifts, which deflections in arcsec do not need
        return made.to(dtype=torch.float64)()


@pytest.mark.parametrize("slope", [1.0, 1.2])
@pytest.mark.parametrize("fwhm", [0.0, 0.4])
def test_the_sparse_matrix_is_the_simulation_of_caustics(slope, fwhm, generator):
    """Also for rays from the half pixel within the edges and from beyond them; caustics' grid is single precision."""
    spread = gaussian_point_spread(fwhm, 0.125) if fwhm else None
    scene = LensedImage(**CAMERA, point_spread=spread, source_centre=(0.1, -0.05), slope=slope)
    source = torch.rand(8, 8, generator=generator, dtype=torch.float64)
    operator = scene.matrix(LENS)
    seen = operator(source[None, None])[0]
    assert seen.numpy() == pytest.approx(simulator(scene, source).numpy(), abs=1e-5)
    assert 0.3 < float(seen.max()) < 1 and float((seen == 0).double().mean()) < 0.9
    single = operator(source[None, None].float())
    assert single.dtype == torch.float32
    assert single[0].numpy() == pytest.approx(seen.numpy(), abs=1e-6)


def test_a_point_spread_of_whole_pixels_blurs_the_means_over_their_points(generator):
    spread = gaussian_point_spread(0.5, 0.25)
    scene = LensedImage(**CAMERA, point_spread=spread)
    half = len(spread.kernel) // 2
    wide = LensedImage(**(CAMERA | {"pixels": 12 + 2 * half}))
    source = torch.rand(8, 8, generator=generator, dtype=torch.float64)
    lopsided = spread.kernel * torch.linspace(0.5, 1.5, len(spread.kernel), dtype=torch.float64)
    object.__setattr__(spread, "kernel", lopsided / lopsided.sum())
    expected = signal.convolve2d(simulator(wide, source).numpy(), spread.kernel.numpy(), mode="valid")
    assert scene.matrix(LENS)(source[None, None])[0].numpy() == pytest.approx(expected, abs=1e-5)


def test_the_adjoint_is_that_of_the_inner_product(generator):
    operator = LensedImage(**CAMERA, point_spread=gaussian_point_spread(0.5, 0.25)).matrix(LENS)
    value = torch.randn(3, 1, 8, 8, generator=generator, dtype=torch.float64)
    measurement = torch.randn(3, 12, 12, generator=generator, dtype=torch.float64)
    left = (operator(value) * measurement).flatten(1).sum(1)
    right = (value * operator.adjoint(measurement)).flatten(1).sum(1)
    assert left.numpy() == pytest.approx(right.numpy(), rel=1e-11)


@pytest.mark.parametrize("slope", [1.0, 0.8])
def test_source_and_lens_together_are_the_matrix_of_that_lens(slope, generator):
    scene = LensedImage(**CAMERA, point_spread=gaussian_point_spread(0.5, 0.25), slope=slope)
    scale = torch.tensor([0.1, 0.05, 0.05, 0.1, 0.1, 0.02, 0.02], dtype=torch.float64)
    joint = LensedSource(scene, LENS, scale)
    value = torch.randn(3, 64 + 7, generator=generator, dtype=torch.float64)
    seen = joint(value)
    for row in range(3):
        operator = scene.matrix(LENS + scale * value[row, 64:])
        expected = operator(value[row, :64].reshape(1, 1, 8, 8))[0]
        assert seen[row].numpy() == pytest.approx(expected.numpy(), abs=1e-12)


def test_the_gradient_through_the_lens_is_that_of_finite_differences(generator):
    """Along the source and each parameter; the source's brightness bends at its pixels, and steps are far smaller."""
    problem = make_problem("lensing-joint", TINY | {"noise_std": 0.3})
    likelihood, y = problem.likelihood, problem.measurements.double()
    value = problem.prior.denoiser.sample(1, generator)
    found = likelihood.gradient(value.expand(3, -1), y.expand(3, -1, -1))
    assert found[0].numpy() == pytest.approx(found[2].numpy(), rel=1e-12)
    for element in (0, 5, 10, *range(16, 23)):
        step = torch.zeros_like(value)
        step[0, element] = 1e-7
        difference = (likelihood.log_prob(value + step, y) - likelihood.log_prob(value - step, y)) / 2e-7
        assert float(found[0, element]) == pytest.approx(float(difference), rel=1e-3, abs=1e-3)
    assert float(found[0, 16:].abs().min()) > 1e-3


def test_with_a_lens_that_is_known_well_the_joint_problem_is_that_of_the_source(generator):
    narrow = {name: 1e-9 for name in ("radius_std", "ellipticity_std", "centre_std", "shear_std")}
    shared = TINY | {"subsampling": 2, "noise_std": 0.2}
    joint, source = make_problem("lensing-joint", shared | narrow), make_problem("lensing-source", shared)
    value = joint.prior.denoiser.sample(5, generator)
    assert value.shape == (5, 23)
    y = joint.measurements.double()
    expected = source.likelihood.log_prob(value[:, :16].reshape(5, 1, 4, 4), y)
    assert joint.likelihood.log_prob(value, y).numpy() == pytest.approx(expected.numpy(), rel=1e-6)
    pixels = value[:, :16].reshape(5, 1, 4, 4)
    lens = stats.norm(scale=joint.prior.data_std).logpdf(value[:, 16:].numpy()).sum(1)
    both = source.prior.denoiser.log_prob(pixels).numpy() + lens
    assert joint.prior.denoiser.log_prob(value).numpy() == pytest.approx(both, rel=1e-9)


def test_the_evidence_of_source_and_lens_is_that_of_exact_ones_averaged_over_lenses(generator):
    """Prior draws of all of x, and of the lens alone with the source integrated in closed form."""
    problem = make_problem("lensing-joint", TINY | {"noise_std": 0.5, "ellipticity_std": 0.1, "centre_std": 0.1})
    y, likelihood, density = problem.measurements[0].double(), problem.likelihood, problem.prior.denoiser
    weight = likelihood.log_prob(density.sample(6_000, generator), y[None])
    plain, plain_error = _mean_and_error(weight.numpy())
    lenses, exact = density.sample(100, generator), []
    for parameters in likelihood.operator.parameters_of(lenses):
        matrix = likelihood.operator.image.matrix(parameters).as_matrix()
        parts = (density.means[:, :16], density.covariance[:16, :16], density.log_weights, matrix, 0.5)
        exact.append(condition_mixture(*parts, y.flatten(), (1, 4, 4)).log_partition)
    closed, closed_error = _mean_and_error(np.array(exact))
    assert plain == pytest.approx(closed, abs=4 * math.hypot(plain_error, closed_error))
    assert plain_error < 0.1 and closed_error < 0.1


def _mean_and_error(log_values):
    values = np.exp(log_values - log_values.max())
    return math.log(values.mean()) + log_values.max(), values.std() / values.mean() / math.sqrt(len(values))


def test_the_evidence_of_a_lensed_source_is_the_sum_over_the_galaxies():
    problem = make_problem("lensing-source", TINY | {"noise_std": 0.2, "truth": "held-out"})
    density, matrix = problem.prior.denoiser, problem.likelihood.operator.as_matrix().numpy()
    covariance = matrix @ density.covariance.numpy() @ matrix.T + 0.2**2 * np.eye(64)
    y = problem.measurements[0].double().flatten().numpy()
    logs = stats.multivariate_normal(np.zeros(64), covariance).logpdf(y - density.means.numpy() @ matrix.T)
    expected = np.logaddexp.reduce(logs) - math.log(12)
    assert problem.exact[0].log_partition == pytest.approx(expected, rel=1e-6)
    assert problem.truth.numpy() == pytest.approx(
        sersic_galaxies(76, 4, torch.Generator().manual_seed(0))[12:13].numpy()
    )


def test_residuals_of_exact_samples_have_a_reduced_chi_square_of_one(generator):
    problem = make_problem("lensing-source", TINY | {"noise_std": 0.1})
    truths = problem.prior.denoiser.sample(60, generator).float()
    problem = problem.at(problem.simulate(truths, generator)).solved()
    squares = []
    for row, measurement in enumerate(problem.measurements):
        draws = problem.exact[row].sample(20, generator).float()
        squares.append(float(problem.likelihood.standardised(draws, measurement[None]).square().mean()))
    error = np.std(squares) / 60**0.5
    assert np.mean(squares) == pytest.approx(1, abs=4 * error) and error < 0.05


def test_simulated_galaxies_hold_half_of_their_light_within_their_radius():
    """One whose index, radius and ratio are those of the first draws, at high resolution."""
    generator = torch.Generator().manual_seed(3)
    image = sersic_galaxies(1, 64, generator)[0, 0].double()
    again = torch.Generator().manual_seed(3)
    _, radius, ratio, angle, peak = (torch.rand(1, 1, 1, generator=again, dtype=torch.float64) for _ in range(5))
    radius, ratio, angle, peak = 0.08 + 0.12 * radius, 0.3 + 0.7 * ratio, math.pi * angle, 0.3 + 0.7 * peak
    centre = 0.03 * torch.randn(2, 1, 1, 1, generator=again, dtype=torch.float64)
    line = (torch.arange(64, dtype=torch.float64) + 0.5) / 64 - 0.5
    right, up = line - centre[0, 0, 0, 0], line[:, None] - centre[1, 0, 0, 0]
    along, across = right * angle.cos() + up * angle.sin(), up * angle.cos() - right * angle.sin()
    within = (ratio * along.square() + across.square() / ratio).sqrt()[0] < float(radius)
    assert float(image[within].sum() / image.sum()) == pytest.approx(0.5, abs=0.04)
    assert float(image.max()) == pytest.approx(float(peak), rel=1e-6) and float(image.min()) >= 0


def test_without_caustics_it_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "caustics"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDataError, match=r"rtb\[astronomy\]"):
        LensedImage(**CAMERA).matrix(LENS)


def test_without_the_data_the_real_galaxies_say_what_is_missing(monkeypatch):
    monkeypatch.delenv("RTB_DATA", raising=False)
    with pytest.raises(MissingDataError, match=r"needs galaxies_sdss/gray32\.npz"):
        galaxy_density("galaxies", 16, 100)
    with pytest.raises(MissingDataError, match=r"needs lens_caustics/source_maps\.npz"):
        make_problem("lensing-source", TINY | {"truth": "source-map"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": "quasars"}, "unknown prior 'quasars'; expected one of galaxies, galaxies-smooth, sersic"),
        ({"truth": "real"}, "truth must be prior or held-out, got 'real'"),
        ({"truth": "held-out", "image": 64}, r"0\.\.63, got 64"),
        ({"einstein_radius": -1.0}, r"einstein_radius must be positive, in arcsec, got -1.0"),
        ({"ellipticity": (0.8, 0.6)}, r"together less than 0.9, got \(0.8, 0.6\)"),
        ({"shear": (0.1,)}, r"shear must be two numbers, together less than 1, got \(0.1,\)"),
        ({"slope": 2.0}, r"slope of a lens must be within \(0, 2\), got 2.0"),
        ({"pixel_scale": 0.0}, "pixel_scale"),
        ({"subsampling": 0}, "subsampling must be at least 1, got 0"),
        ({"noise_std": 0.0}, "noise_std must be a positive"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        make_problem("lensing-source", TINY | options)


def test_a_point_spread_of_another_pixel_scale_is_refused_and_a_resampled_one_is_not():
    spread = gaussian_point_spread(0.3, 0.1)
    message = r"point spread has pixels of 0.1 arcsec, but the image has ones of 0.25, and 0.125 between its points"
    with pytest.raises(ValueError, match=message):
        LensedImage(**CAMERA, point_spread=spread)
    LensedImage(**CAMERA, point_spread=spread.resampled(0.25))
