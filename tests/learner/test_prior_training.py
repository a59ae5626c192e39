"""Denoising score matching, against Gaussian data, of which the best loss is known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from diffusion.denoiser import GaussianDenoiser
from diffusion.registry import make_denoiser
from learner.guard import Diverged
from learner.prior_config import PriorTrainingConfig
from learner.prior_training import PriorTrainer, denoising_loss, draw_log_snr, validation_loss

VARIANCES = torch.tensor([0.05, 1.95], dtype=torch.float64)  # mean 1
MLP = {"kind": "network", "network": {"kind": "mlp", "hidden": 64, "depth": 2, "embedding": 16}}
CONFIG = PriorTrainingConfig(batch_size=128, warmup_updates=20, ema_decay=0.98, learning_rate=3e-3)


def _data(count, seed):
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    return noise * VARIANCES.sqrt().float()


def _trainer(config=CONFIG, data=None):
    torch.manual_seed(0)
    return PriorTrainer(make_denoiser(MLP, (2,), 1.0), _data(4_000, 1) if data is None else data, 1.0, config)


def test_levels_are_normal_but_for_a_uniform_share_and_stratified(generator):
    config = PriorTrainingConfig(batch_size=4_000, log_snr_mean=0.7, log_snr_std=1.5, uniform_share=0.5)
    levels = draw_log_snr(config, generator)
    normal, uniform = levels[:2_000], levels[2_000:]
    assert (float(normal.mean()), float(normal.std())) == pytest.approx((0.7, 1.5), abs=0.01)
    assert uniform.sort().values.numpy() == pytest.approx(np.linspace(-10, 7, 2_000), abs=0.02)


def test_the_loss_of_the_best_denoiser_of_isotropic_gaussian_data_is_one_at_every_level(generator):
    exact = GaussianDenoiser(torch.zeros(3), 0.49)
    clean, noise = (torch.randn(20_000, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    for level in (-8.0, 0.0, 6.0):
        levels = torch.full((20_000,), level, dtype=torch.float64)
        loss = denoising_loss(exact, 0.7 * clean, levels, noise, 0.7)
        assert float(loss.mean()) == pytest.approx(1.0, abs=4 * math.sqrt(2 / 60_000))


def test_training_reaches_the_loss_of_the_exact_denoiser_and_the_average_is_what_is_stored():
    held_out, exact = _data(2_000, 2), GaussianDenoiser(torch.zeros(2), torch.diag(VARIANCES))
    best = validation_loss(exact, held_out, 1.0, CONFIG, seed=5)
    trainer = _trainer()
    before = validation_loss(trainer.denoiser, held_out, 1.0, CONFIG, seed=5)
    for _ in range(400):
        trainer.update()
    stored = trainer.averaged(make_denoiser(MLP, (2,), 1.0))
    after = validation_loss(stored, held_out, 1.0, CONFIG, seed=5)
    assert before - best > 0.1
    assert best <= after < best + 0.02
    assert not any(parameter.requires_grad for parameter in stored.parameters())
    weights = torch.cat([parameter.flatten() for parameter in stored.parameters()]).clone()
    trainer.update()  # and it stays what it was
    assert torch.equal(torch.cat([parameter.flatten() for parameter in stored.parameters()]), weights)


def test_the_noise_of_the_bandwidth_widens_the_data():
    """With it the data are one point's kernel density: a Gaussian, of which the denoiser is known."""
    config = PriorTrainingConfig(
        batch_size=128, warmup_updates=20, ema_decay=0.98, learning_rate=3e-3, bandwidth=1.0, uniform_share=0.0
    )
    trainer = _trainer(config, torch.zeros(10, 2))
    losses = [trainer.update() for _ in range(200)]
    assert np.mean(losses[-50:]) == pytest.approx(1.0, abs=0.05)


def test_a_training_that_goes_on_is_the_uninterrupted_one_bit_for_bit():
    whole, first, second = _trainer(), _trainer(), _trainer(CONFIG)
    for _ in range(7):
        expected = whole.update()
    for _ in range(3):
        first.update()
    second.load_state_dict(*first.state_dict())
    for _ in range(4):
        last = second.update()
    assert last == expected and second.updates == 7
    arrays, others = whole.state_dict()[0], second.state_dict()[0]
    assert arrays.keys() == others.keys()
    assert [key for key in arrays if not np.array_equal(arrays[key], others[key])] == []


def test_a_gradient_that_is_never_finite_ends_the_training_and_changes_no_weight():
    trainer = _trainer()
    nn.init.constant_(trainer.denoiser.network.head.bias, float("nan"))
    before = trainer.denoiser.network.head.weight.clone()
    with pytest.raises(Diverged, match="20 updates in a row"):
        for _ in range(30):
            trainer.update()
    assert trainer.set_aside == trainer.updates == 20
    assert torch.equal(trainer.denoiser.network.head.weight, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "training.batch_size must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "training.learning_rate must be positive"),
        ({"bandwidth": -0.1}, "training.bandwidth must not be negative"),
        ({"uniform_share": 1.5}, r"training.uniform_share must be within \[0, 1\], got 1.5"),
    ],
)
def test_settings_that_cannot_be_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        PriorTrainingConfig(**changes)
