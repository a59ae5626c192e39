"""The priors that ship: each is small, has a card, draws numbers, and errs as much as its table says."""

import pytest
import torch

from diffusion.denoising_error import levels_at
from diffusion.stored_prior import load_prior, prior_folder, prior_names, read_prior
from envs.data import DATASETS, MissingDataError, load_dataset

ROWS = 48
LEVELS = (-4.0, -1.0, 0.0, 1.0, 3.0, 5.0)
TRAINED = tuple(name for name in prior_names() if read_prior(name).denoiser["kind"] != "mixture")


def test_priors_ship():
    assert {"lorenz63", "lorenz96", "digits"} <= set(prior_names())


@pytest.mark.parametrize("name", prior_names())
def test_a_prior_that_ships_has_a_card_weighs_little_and_draws_numbers(name):
    folder, stored = prior_folder(name), read_prior(name)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# ") and "Licence of the data: " in card and "held out" in card
    assert (folder / "weights.safetensors").stat().st_size <= 5_000_000
    assert stored.data is not None and stored.data["name"] in DATASETS
    draws = load_prior(name, 10).sample(4, torch.Generator().manual_seed(0))
    assert draws.shape == (4, *stored.event_shape) and bool(torch.isfinite(draws).all())


@pytest.mark.parametrize("name", TRAINED)
def test_the_card_of_a_prior_that_was_trained_says_how_and_how_good_it_is(name):
    card = (prior_folder(name) / "README.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {name}\n") and read_prior(name).data["name"] == name
    for part in (f"`rtb prior train configs/priors/{name}.yaml`", "Validation loss: ", "How good it is"):
        assert part in card, part


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
