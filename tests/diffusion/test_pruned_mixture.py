"""Against the mixture that keeps all components, which `test_denoiser` checks by quadrature."""

import pytest
import torch

from diffusion.denoiser import MixtureDenoiser
from diffusion.pruned_mixture import PrunedMixtureDenoiser


@pytest.fixture(scope="module")
def pair():
    """6,000 components that vary most in three of twelve directions."""
    generator = torch.Generator().manual_seed(1)
    scale = torch.tensor([3.0] * 3 + [0.3] * 9, dtype=torch.float64)
    means = scale * torch.randn(6_000, 12, generator=generator, dtype=torch.float64)
    weights = torch.randn(6_000, generator=generator, dtype=torch.float64)
    shape = (3, 4)
    pruned = PrunedMixtureDenoiser(means, 0.01, weights, shape, directions=3)
    return MixtureDenoiser(means, 0.01, weights, shape), pruned


@pytest.mark.parametrize(("alpha", "sigma", "most"), [(0.1, 1.0, 6_000), (0.8, 0.3, 3_000), (0.99, 0.05, 200)])
def test_what_is_left_out_changes_nothing(pair, alpha, sigma, most, generator):
    full, pruned = pair
    state = alpha * full.sample(8, generator)
    state = state + sigma * torch.randn(state.shape, generator=generator, dtype=torch.float64)
    levels = torch.full((8,), alpha), torch.full((8,), sigma)
    vector = torch.randn(state.shape, generator=generator, dtype=torch.float64)
    expected, pulled = full.pull_back(state, *levels, lambda _: vector)
    found = pruned.pull_back(state, *levels, lambda _: vector)
    assert pruned(state, *levels).numpy() == pytest.approx(expected.numpy(), abs=1e-11)
    assert found[0].numpy() == pytest.approx(expected.numpy(), abs=1e-11)
    assert found[1].numpy() == pytest.approx(pulled.numpy(), rel=1e-9, abs=1e-9)
    kept = pruned._weights(state.flatten(1), levels[0][:, None], levels[1][:, None])[0].shape[1]
    assert kept <= most


def test_given_the_projection_alone_responsibilities_are_those_expected_of_the_state(pair):
    """w'_i = E[w_i(s) | P s], on which the bound rests: noise in all directions but P's, averaged.

    Two components and a state at a fixed projection: E over the other directions by Monte Carlo.
    """
    generator = torch.Generator().manual_seed(2)
    means = torch.tensor([[0.0, 0.0, 0.0], [0.6, 0.5, -0.4]], dtype=torch.float64)
    alpha, sigma, variance = 0.9, 0.5, 0.04
    total = alpha**2 * variance + sigma**2
    first = 0.4  # the state's first coordinate, P
    partial = (-0.5 * (first - alpha * means[:, 0]).square() / total).softmax(0)
    component = torch.multinomial(partial, 200_000, replacement=True, generator=generator)
    rest = alpha * means[component, 1:]
    rest = rest + total**0.5 * torch.randn(rest.shape, generator=generator, dtype=torch.float64)
    state = torch.cat([torch.full((200_000, 1), first, dtype=torch.float64), rest], 1)
    denoiser = MixtureDenoiser(means, variance)
    level = torch.full((200_000,), alpha), torch.full((200_000,), sigma)
    whole = denoiser.responsibilities(state, *level)
    error = float(whole[:, 1].std()) / 200_000**0.5
    assert float(whole[:, 1].mean()) == pytest.approx(float(partial[1]), abs=4 * error)


def test_responsibilities_and_the_density_are_of_all_components(pair, generator):
    full, pruned = pair
    value = full.sample(5, generator)
    assert pruned.classify(value).shape == (5, 6_000)
    assert pruned.classify(value).numpy() == pytest.approx(full.classify(value).numpy(), abs=1e-12)
    assert pruned.log_prob(value).numpy() == pytest.approx(full.log_prob(value).numpy())
