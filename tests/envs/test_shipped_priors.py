"""The priors that ship: each is small, has a card, draws numbers, and errs as much as its table says."""

from pathlib import Path

import pytest
import torch

from diffusion.denoising_error import levels_at
from diffusion.stored_prior import load_prior, prior_folder, prior_names, read_prior
from envs.data import MissingDataError, load_dataset
from system.config_file import load_config
from system.prior_config import PriorConfig

CONFIGS = Path(__file__).parents[2] / "configs" / "priors"
ROWS = 48
LEVELS = (-4.0, -1.0, 0.0, 1.0, 3.0, 5.0)
DENSITIES = [name for name in prior_names() if read_prior(name).denoiser["kind"] == "mixture"]
TRAINED = [name for name in prior_names() if name not in DENSITIES]


def test_priors_ship():
    assert {"lorenz63", "lorenz96", "digits"} <= set(TRAINED)
    assert {"lorenz63-kde", "digits-latent"} <= set(DENSITIES)


@pytest.mark.parametrize("name", TRAINED)
def test_a_prior_that_ships_has_a_card_weighs_little_and_draws_numbers(name):
    folder, stored = prior_folder(name), read_prior(name)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {name}\n") and f"`rtb prior train configs/priors/{name}.yaml`" in card
    for part in ("Licence of the data: ", "Validation loss: ", "held out", "How good it is"):
        assert part in card, part
    assert (folder / "weights.safetensors").stat().st_size <= 5_000_000
    config = load_config(CONFIGS / f"{name}.yaml", (), PriorConfig)
    assert stored.data is not None and stored.data["name"] == config.data.name
    draws = load_prior(name, 10).sample(4, torch.Generator().manual_seed(0))
    assert draws.shape == (4, *stored.event_shape) and bool(torch.isfinite(draws).all())


@pytest.mark.parametrize("name", DENSITIES)
def test_a_kernel_density_that_ships_has_a_card_weighs_little_and_draws_numbers(name):
    folder, stored = prior_folder(name), read_prior(name)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# Kernel density of ")
    for part in ("Licence of the data: ", "held-out draws are", "Made by `learner."):
        assert part in card, part
    assert (folder / "weights.safetensors").stat().st_size <= 5_000_000
    prior = load_prior(name, 10)
    assert prior.sample(4, torch.Generator().manual_seed(0)).shape == (4, *stored.event_shape)
    draws = prior.denoiser.sample(4_000, torch.Generator().manual_seed(0))
    assert float(draws.var(0).mean().sqrt()) == pytest.approx(stored.data_std, rel=0.05)


@pytest.mark.parametrize("name", TRAINED)
def test_the_table_of_errors_of_a_prior_that_ships_is_that_of_held_out_data(name):
    stored = read_prior(name)
    try:
        clean = load_dataset(**stored.data).held_out[-ROWS:]
    except MissingDataError as error:
        pytest.skip(str(error))
    denoiser = load_prior(name, 2).denoiser
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    levels = levels_at(LEVELS, stored.data_std)
    for alpha, sigma, expected in zip(*levels, stored.denoising_error(*levels).tolist(), strict=True):
        estimate = denoiser(float(alpha) * clean + float(sigma) * noise, alpha.expand(ROWS), sigma.expand(ROWS))
        each = (estimate - clean).square().flatten(1).mean(1).double()
        error = float(each.std()) / ROWS**0.5
        assert float(each.mean()) == pytest.approx(expected, abs=4 * error)
        assert error < 0.35 * expected  # so that the check has power
