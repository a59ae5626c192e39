r"""`latent-<instrument>`: images through a decoder and an instrument, the prior being one of the decoder's latents.

    x ~ p(x),   y = B(D(x)) + noise,

with a decoder D (`envs.decoder`) and the operator B of a problem of images. The likelihood is that of pixels. B(D(x))
is not linear in x, where guidance without training is known to be biased: `docs/problems.md` has numbers.

The prior that ships, `digits-latent`, is the kernel density of 1,500 encoded digits in eight dimensions. Its score is
exact, so posterior and log Z are known by importance sampling (`envs.exact.weighted`), which no chain takes part in.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from diffusion.denoiser import MixtureDenoiser
from diffusion.stored_prior import load_prior
from envs.classifier import classifier_names, load_classifier
from envs.data import load_dataset
from envs.decoder import Decoder, load_decoder
from envs.exact.weighted import reference
from envs.likelihoods import GaussianLikelihood
from envs.operators import ForwardOperator, compose
from envs.problem import Classes, InverseProblem
from envs.problems.images.deblurring import deblurring
from envs.problems.images.image_problem import Shape, picture, register_operator
from envs.problems.images.inpainting import inpainting
from envs.problems.images.source import ImageSource
from envs.problems.images.super_resolution import super_resolution

__all__ = ["INSTRUMENTS"]

INSTRUMENTS = {"inpainting": inpainting, "super-resolution": super_resolution, "deblurring": deblurring}
"""Operators of images that latents are seen through, by what follows `latent-` in the problem's name."""
PRIOR = "prior"


def _problem(
    name: str,
    make_operator: Callable[[Shape], ForwardOperator],
    *,
    prior: str = "digits-latent",
    decoder: str = "digits",
    image: int = 0,
    count: int = 1,
    truth: str = PRIOR,
    noise_std: float = 0.2,
    num_steps: int = 50,
    schedule: str = "vp-cosine-zero-snr",
    seed: int = 0,
) -> InverseProblem:
    """Pixels are in about [-1, 1], and `noise_std` is in their units.

    Truth `prior`: decoded draws of the prior are measured; `held-out`: images that the decoder only comes near to.
    """
    chain, decode = load_prior(prior, num_steps, schedule), load_decoder(decoder)
    if chain.event_shape != decode.event_shape:
        raise ValueError(
            f"decoder {decoder!r} takes latents of shape {list(decode.event_shape)}, but x of prior {prior} has shape "
            f"{list(chain.event_shape)}"
        )
    source = ImageSource(
        prior=chain,
        held_out=None if truth == PRIOR else load_dataset(decode.data).held_out,
        density=chain.denoiser if isinstance(chain.denoiser, MixtureDenoiser) else None,
    )
    generator = torch.Generator().manual_seed(seed)
    drawn = source.truths(truth, image, count, generator)
    channels, rows, columns = decode.measurement_shape
    instrument = make_operator((channels, rows, columns))
    likelihood = GaussianLikelihood(compose(instrument, decode), noise_std)
    images = decode(drawn) if truth == PRIOR else drawn
    classes = _classes(decode)
    problem = InverseProblem(
        name=name,
        prior=chain,
        likelihood=likelihood,
        measurements=GaussianLikelihood(instrument, noise_std).sample(images, generator).float(),
        truth=drawn if truth == PRIOR else None,
        classes=classes,
        image_shape=(rows, columns) if channels == 1 else (channels, rows, columns),
        image=decode,
        measurement_image=picture(instrument, channels),
        solve=reference(chain, likelihood, None if classes is None else classes.probabilities),
    )
    return problem.solved()


def _classes(decode: Decoder) -> Classes | None:
    """Those of the decoded image, by the classifier that ships for the decoder's data."""
    if decode.data not in classifier_names():
        return None
    classifier = load_classifier(decode.data)
    return Classes(classifier.classes, lambda value: classifier(decode(value)).softmax(1).double())


for _name, _instrument in INSTRUMENTS.items():
    register_operator(f"latent-{_name}", _instrument, _problem)
