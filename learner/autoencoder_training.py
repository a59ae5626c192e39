r"""A prior of a latent: a small variational autoencoder of images, and the kernel density of what it encodes them to.

    L(v) = E_q(x|v) |v - D(x)|^2 / (2 s^2) + KL(q(x | v) || N(0, I)),   q(x | v) = N(m(v), diag(r(v)^2)),

the negative evidence bound, up to a constant, of images v of which pixels have noise of standard deviation s (Kingma
and Welling 2013, arXiv 1312.6114). The prior is not N(0, I) but the density of the means m(v), as in latent diffusion
(Rombach et al. 2022, arXiv 2112.10752): what N(0, I) has between them the decoder has never seen. Each of the means'
elements is moved and scaled to a mean of zero and a standard deviation of one, and the decoder with it. A latent of few
elements needs no network for its prior: a kernel density has an exact score.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from envs.data import Dataset
from envs.decoder import Decoder, save_decoder
from learner.kernel_density import store_kernel_density

__all__ = ["store_autoencoder", "train_autoencoder"]

PIXEL_STD = 0.25  # s
BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY = 128, 2e-3, 0.05


def train_autoencoder(
    data: Dataset, *, latent: int = 8, hidden: int = 128, updates: int = 10_000, seed: int = 0
) -> tuple[nn.Module, Decoder]:
    """(encoder, decoder) of the images of `data` after `updates` steps of AdamW; both have one layer of `hidden`.

    The encoder maps images [N, C, H, W] to x [N, latent] of mean zero and standard deviation one over the data.
    """
    images = data.train
    pixels = images[0].numel()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        last = nn.Linear(hidden, 2 * latent)
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, hidden), nn.SiLU(), last)
        decoder = Decoder(latent, data.event_shape, hidden, data.name)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        batch = images[torch.randint(len(images), (BATCH_SIZE,), generator=generator)]
        mean, log_std = encoder(batch).chunk(2, 1)
        noise = torch.randn(mean.shape, generator=generator)
        misfit = (decoder(mean + log_std.exp() * noise) - batch).square().flatten(1).sum(1) / (2 * PIXEL_STD**2)
        divergence = 0.5 * (mean.square() + (2 * log_std).exp() - 2 * log_std - 1).sum(1)
        optimizer.zero_grad(set_to_none=True)
        (misfit + divergence).mean().backward()
        optimizer.step()
        schedule.step()
    return _standardised(encoder, last, decoder, images)


@torch.no_grad()
def _standardised(
    encoder: nn.Sequential, last: nn.Linear, decoder: Decoder, images: Tensor
) -> tuple[nn.Module, Decoder]:
    """The encoder of means, of mean zero and standard deviation one over `images`, and the decoder to go with it."""
    means = encoder(images).chunk(2, 1)[0]
    latent = means.shape[1]
    centre, scale = means.mean(0), means.std(0, correction=0)
    of_mean = nn.utils.skip_init(nn.Linear, last.in_features, latent)  # takes nothing from the global random stream
    first = decoder.layers[0]
    assert isinstance(of_mean, nn.Linear) and isinstance(first, nn.Linear)
    of_mean.weight.copy_(last.weight[:latent] / scale[:, None])
    of_mean.bias.copy_((last.bias[:latent] - centre) / scale)
    first.bias.add_(first.weight @ centre)
    first.weight.mul_(scale)
    encoder[-1] = of_mean
    return encoder.requires_grad_(False).eval(), decoder.requires_grad_(False).eval()


def store_autoencoder(data: Dataset, decoder_folder: Path, prior_folder: Path, *, updates: int = 10_000) -> Path:
    """Trains an autoencoder of `data`; writes its decoder, and the kernel density of all encoded training images."""
    encoder, decoder = train_autoencoder(data, updates=updates)
    (latent,) = decoder.event_shape
    errors = [
        float((decoder(encoder(images)) - images).square().mean().sqrt()) for images in (data.train, data.held_out)
    ]
    made_by = f'learner.autoencoder_training.store_autoencoder(load_dataset("{data.name}"), decoder, prior)'
    count = sum(parameter.numel() for parameter in decoder.parameters())
    card = f"""# Decoder of {data.name}

From {latent} numbers through a hidden layer of {decoder.hidden} to an image {list(decoder.measurement_shape)},
{count:,} parameters: the decoding half of a variational autoencoder, {updates:,} updates of AdamW, seed 0.
Pixels are in [-1, 1].

| images | root mean square error of a pixel, encoded and decoded | standard deviation of a pixel |
| --- | ---: | ---: |
| trained on | {errors[0]:.3f} | {_spread(data.train):.3f} |
| held out | {errors[1]:.3f} | {_spread(data.held_out):.3f} |

- Data: {data.source}.
- Split: {data.split}.
- Licence of the data: {data.licence}.
- Made by `{made_by}`.
"""
    save_decoder(decoder_folder, decoder, card)
    latents = replace(
        data,
        name=f"{data.name}-latent",
        train=encoder(data.train),
        held_out=encoder(data.held_out),
        source=f"{data.source}; encoded to {latent} numbers of standard deviation one",
        value_range=None,
    )
    return store_kernel_density(latents, len(latents.train), prior_folder, made_by=made_by)


def _spread(images: Tensor) -> float:
    """Root of the mean variance of a pixel."""
    return float(images.var(0, correction=0).mean().sqrt())
