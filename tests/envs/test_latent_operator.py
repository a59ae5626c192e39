"""A latent prior's decoder in front of an instrument."""

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from diffusion.imported.latent import LatentDecoder
from envs.likelihoods import GaussianLikelihood
from envs.operators import Pixels, box_mask, compose


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=2,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        norm_num_groups=4,
        scaling_factor=0.3,
    )
    return LatentDecoder(autoencoder, (2, 4, 4)).double()


def test_the_likelihood_of_a_latent_is_that_of_its_image_and_its_gradient_goes_through_the_decoder(decoder):
    seen = Pixels(box_mask(decoder.measurement_shape, 3, 3, 2, 2))
    likelihood = GaussianLikelihood(compose(seen, decoder), 0.2)
    latent = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    measurement = seen(decoder(latent.roll(1, 0)))
    of_image = GaussianLikelihood(seen, 0.2).log_prob(decoder(latent), measurement)
    assert torch.allclose(likelihood.log_prob(latent, measurement), of_image, rtol=1e-12)
    direction = torch.randn(latent.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    step = 1e-5
    above, below = (likelihood.log_prob(latent + sign * step * direction, measurement) for sign in (1, -1))
    slope = (likelihood.gradient(latent, measurement) * direction).flatten(1).sum(1)
    assert torch.allclose(slope, (above - below) / (2 * step), rtol=1e-5)
