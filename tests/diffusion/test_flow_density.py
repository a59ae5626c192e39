"""The density of a probability flow: that of closed forms, with its constant, whatever the denoiser."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from diffusion.denoiser import GaussianDenoiser, MixtureDenoiser, NetworkDenoiser
from diffusion.denoising_error import DenoisingError
from diffusion.flow_density import FINEST, FlowDensity, flow_density, trace_probes
from diffusion.network import MLP, Plane
from diffusion.registry import make_denoiser
from diffusion.stored_prior import StoredPrior, StoredPriorError, save_prior

TAU = math.tan(FINEST)  # noise of the density, in standard deviations of x


def _correlated(dim, generator):
    """A covariance of mean variance one whose eigenvalues spread over a factor of a hundred."""
    basis, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    values = torch.logspace(-1.5, 0.5, dim, dtype=torch.float64)
    covariance = (basis * values) @ basis.T
    covariance = covariance / covariance.diagonal().mean()
    return (covariance + covariance.T) / 2


def test_of_correlated_gaussian_x_it_is_the_multivariate_normal_and_more_steps_are_closer(generator):
    covariance = _correlated(12, generator)
    mean = torch.linspace(-2, 2, 12, dtype=torch.float64)
    denoiser = GaussianDenoiser(mean, covariance)
    x = denoiser.sample(20, generator)
    expected = stats.multivariate_normal(mean.numpy(), covariance.numpy() + TAU**2 * np.eye(12)).logpdf(x.numpy())
    errors = []
    for num_steps in (16, 32):
        found = FlowDensity(denoiser, (12,), 1.0, num_steps=num_steps).log_prob(x)
        assert found.dtype == torch.float64
        errors.append(np.abs(found.numpy() - expected).max())
    assert errors[0] < 2e-3 and errors[1] < errors[0] / 10
    apart = np.abs(denoiser.log_prob(x).numpy() - expected).max()  # what the noise of the density changes
    assert errors[1] < apart < 0.05


def test_of_a_mixture_it_is_the_mixture_and_its_integral_over_the_plane_is_one(plane_mixture, generator):
    x = plane_mixture.sample(50, generator)
    data_std = 1.5
    noise = (data_std * TAU) ** 2 * torch.eye(2, dtype=torch.float64)
    noised = MixtureDenoiser(plane_mixture.means, plane_mixture.covariance + noise, plane_mixture.log_weights)
    density = FlowDensity(plane_mixture, (2,), data_std)
    assert density.log_prob(x).numpy() == pytest.approx(noised.log_prob(x).numpy(), abs=2e-3)
    axis = torch.linspace(-6, 6, 60, dtype=torch.float64)
    total = density.log_prob(torch.cartesian_prod(axis, axis)).exp().sum() * (axis[1] - axis[0]) ** 2
    assert float(total) == pytest.approx(1, abs=1e-3)


def test_a_denoiser_that_is_wrong_has_a_density_all_the_same():
    torch.manual_seed(0)
    network = NetworkDenoiser(MLP(1, 1, hidden=16, depth=2), 0.7, torch.tensor([0.4])).double().requires_grad_(False)
    axis = torch.linspace(-10, 10, 1_000, dtype=torch.float64)[:, None]
    log_prob = FlowDensity(network, (1,), 0.7).log_prob(axis)
    assert float(log_prob.exp().sum() * (axis[1] - axis[0])) == pytest.approx(1, abs=1e-3)
    gaussian = torch.distributions.Normal(0.4, 0.7).log_prob(axis)[:, 0]
    near = (axis[:, 0] - 0.4).abs() < 2
    assert float((log_prob - gaussian)[near].abs().max()) > 0.05  # another density than that of F = 0


def test_of_a_network_in_float32_it_is_the_number_of_float64_and_alone_as_in_a_batch(generator):
    torch.manual_seed(1)
    network = NetworkDenoiser(Plane(1, 4, 1), 2.0).requires_grad_(False)
    x = 2 * torch.randn(3, 1, 4, 4, generator=generator)
    single = FlowDensity(network, (1, 4, 4), 2.0).log_prob(x)
    alone = FlowDensity(network, (1, 4, 4), 2.0).log_prob(x[2:])
    assert float(alone) == pytest.approx(float(single[2]), abs=1e-3)
    double = FlowDensity(network.double(), (1, 4, 4), 2.0).log_prob(x)
    assert single.tolist() == pytest.approx(double.tolist(), abs=2e-3)


@pytest.mark.parametrize(("shape", "spacing", "count"), [((2, 5, 7), 3, 18), ((4, 4), 9, 16), ((10,), 4, 4)])
def test_combs_have_teeth_that_far_apart_and_every_element_one(shape, spacing, count):
    probes = trace_probes(shape, spacing)
    assert probes.shape == (count, *shape)
    assert torch.equal(probes.square().sum(0), torch.ones(shape))
    for probe in probes:
        places = probe.nonzero().double()
        apart = (places[:, None] - places).abs()
        same = (apart == 0).all(-1)
        planes = apart[..., : len(shape) - 2] if len(shape) > 2 else apart[..., :0]
        assert bool((planes == 0).all())
        assert bool((apart.amax(-1)[~same] >= spacing).all())


def test_combs_wider_than_what_a_pixel_sees_are_exact(generator):
    torch.manual_seed(2)
    network = NetworkDenoiser(Plane(1, 3, 0), 1.0).double().requires_grad_(False)  # sees three pixels to each side
    x = torch.randn(3, 1, 8, 8, generator=generator, dtype=torch.float64)
    exact = FlowDensity(network, (1, 8, 8), 1.0, num_steps=4).log_prob(x)
    combed = FlowDensity(network, (1, 8, 8), 1.0, num_steps=4, spacing=4).log_prob(x)
    assert combed.tolist() == pytest.approx(exact.tolist(), abs=1e-9)


def test_of_combs_that_are_too_close_what_is_left_is_how_their_error_varies_with_x(generator):
    torch.manual_seed(2)
    network = NetworkDenoiser(Plane(1, 3, 1), 1.0).double().requires_grad_(False)
    x = torch.randn(6, 1, 8, 8, generator=generator, dtype=torch.float64)
    exact = FlowDensity(network, (1, 8, 8), 1.0, num_steps=4).log_prob(x)
    density = FlowDensity(network, (1, 8, 8), 1.0, num_steps=4, spacing=2)
    error = density.log_prob(x) - exact
    assert float(error.std()) > 1e-4
    assert float(error.abs().max()) < 0.5 * abs(density._offset)


def test_the_latent_of_gaussian_x_is_whitened_and_draws_are_those_of_the_density(generator):
    covariance = _correlated(6, generator)
    denoiser = GaussianDenoiser(torch.ones(6, dtype=torch.float64), covariance)
    density = FlowDensity(denoiser, (6,), 1.0)
    x = density.sample(8_000, generator)
    noised = covariance + TAU**2 * torch.eye(6)
    assert x.mean(0).numpy() == pytest.approx(np.ones(6), abs=0.07)
    assert torch.cov(x.T).numpy() == pytest.approx(noised.numpy(), abs=0.12)
    squared = ((x - 1) @ torch.linalg.inv(noised) * (x - 1)).sum(1)
    latent = density.latent(x)
    assert latent.square().sum(1).numpy() == pytest.approx(squared.numpy(), rel=1e-3)
    again = density.sample(3, torch.Generator().manual_seed(5))
    white = torch.randn(3, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert density.latent(again).numpy() == pytest.approx(white.numpy(), abs=1e-3)


def test_the_score_and_the_curvature_are_those_of_autograd_on_the_noised_density(plane_mixture, generator):
    x, level, data_std = plane_mixture.sample(8, generator), 0.2, 1.5
    noise = (level * data_std) ** 2 * torch.eye(2, dtype=torch.float64)
    noised = MixtureDenoiser(plane_mixture.means, plane_mixture.covariance + noise, plane_mixture.log_weights)
    score, product = FlowDensity(plane_mixture, (2,), data_std).score(x, level)
    leaf = x.clone().requires_grad_(True)
    components = torch.distributions.MultivariateNormal(noised.means, noised.covariance).log_prob(leaf[:, None])
    log_prob = (components + noised.log_weights).logsumexp(1)
    (expected,) = torch.autograd.grad(log_prob.sum(), leaf, create_graph=True)
    assert score.numpy() == pytest.approx(expected.detach().numpy(), rel=1e-6, abs=1e-8)
    vector = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    (curved,) = torch.autograd.grad(expected, leaf, vector)
    assert product(vector).numpy() == pytest.approx(-curved.numpy(), rel=1e-5, abs=1e-7)


def test_a_stored_prior_has_a_density_and_what_cannot_be_is_refused(tmp_path, generator):
    description = {"kind": "network", "network": {"kind": "plane", "width": 2, "depth": 1}}
    error = DenoisingError(data_std=0.7, log_snr=(-2.0, 1.0), mean_squared=(0.4, 0.05))
    stored = StoredPrior(event_shape=(1, 4, 4), data_std=0.7, denoiser=description, denoising_error=error)
    folder = save_prior(tmp_path / "noise", stored, make_denoiser(description, (1, 4, 4), 0.7), "# A card\n")
    density = flow_density(folder, num_steps=3, spacing=2)
    assert density.data_std == 0.7 and density.log_prob(torch.zeros(2, 1, 4, 4)).shape == (2,)
    with pytest.raises(ValueError, match=r"x must be \[N, 1, 4, 4\], got \[2, 4, 4\]"):
        density.log_prob(torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match="num_steps and spacing must be at least 1, got 16 and 0"):
        flow_density(folder, spacing=0)
    with pytest.raises(ValueError, match="data_std must be a positive finite"):
        FlowDensity(density.denoiser, (1, 4, 4), math.nan)
    with pytest.raises(StoredPriorError, match="does not exist"):
        flow_density(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"a plane network needs x of shape \[C, H, W\], got \(16,\)"):
        make_denoiser(description, (16,), 0.7)
    with pytest.raises(ValueError, match="width of at least 1 and depth of at least 0, got 0, 2"):
        Plane(1, 0)
