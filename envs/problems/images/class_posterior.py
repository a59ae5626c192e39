r"""`image-class`: images of one class, by a classifier.

    p(y = c | x) = softmax(logits(x))_c,

y being one at c and zero elsewhere. The classifier is one of ours (`envs.classifier`), or `exact`: under a kernel
density of labelled images p(c | x) is the responsibility of the components of class c, so that the posterior is the
mixture of these components alone and Z their share. With a network Z is the mean of p(c | x) over the prior, which its
draws give to about 0.02 nats.

There is no truth to have been measured: y is a wish. Whether samples are right, the class probabilities of the exact
classifier tell, and the evidence.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffusion.denoiser import MixtureDenoiser
from envs.classifier import load_classifier
from envs.exact.mixture import MixturePosterior
from envs.exact.weighted import weighted_posterior
from envs.likelihoods import CategoricalLikelihood
from envs.problem import Classes, ExactPosterior, InverseProblem, Solve
from envs.problems.images.source import ImageSource, image_source
from envs.registry import register

__all__ = ["image_class"]

EXACT = "exact"
DIGITS = tuple("0123456789")
DRAWS = 60_000  # of the prior, about a tenth of which is of the class
COMPARED = 4_000  # draws of the posterior that give its class probabilities


@register("image-class")
def image_class(
    *,
    prior: str = "digits-kde",
    classifier: str = "digits",
    target: tuple[int, ...] = (3,),
    num_steps: int = 50,
    schedule: str = "vp-cosine-zero-snr",
) -> InverseProblem:
    """Digits of the class `target`, of each if there are several, by a `classifier` that is stored, or `exact`."""
    if not target or not all(0 <= each < len(DIGITS) for each in target):
        raise ValueError(f"target must be some of the classes 0..{len(DIGITS) - 1}, got {[*target]}")
    source = image_source(prior, num_steps, schedule, with_data=False)
    density, one_hot = source.density, source.one_hot
    logits: nn.Module
    if classifier == EXACT:
        if density is None or source.labels is None:
            raise ValueError(f"the exact classifier is that of a labelled kernel density, which prior {prior!r} is not")
        logits = Responsibilities(density, source.labels)
    else:
        network = load_classifier(classifier)
        if network.event_shape != source.prior.event_shape or network.classes != DIGITS:
            raise ValueError(
                f"classifier {classifier!r} is of x of shape {list(network.event_shape)} and of the classes "
                f"{', '.join(network.classes)}; prior {prior!r} has {list(source.prior.event_shape)} and the ten digits"
            )
        logits = network
    likelihood = CategoricalLikelihood(logits, len(DIGITS))
    shape = source.prior.event_shape
    problem = InverseProblem(
        name="image-class",
        prior=source.prior,
        likelihood=likelihood,
        measurements=nn.functional.one_hot(torch.tensor(target), len(DIGITS)).float(),
        classes=None if one_hot is None else Classes(DIGITS, source.classify),
        image_shape=(shape[1], shape[2]) if shape[0] == 1 else None,
        measurement_image=lambda value: value[None].float(),
        solve=_solve(source, likelihood, classifier == EXACT),
    )
    return problem.solved()


class Responsibilities(nn.Module):
    """log p(c | x) under a mixture of labelled components of one variance, up to a constant."""

    def __init__(self, density: MixtureDenoiser, labels: Tensor) -> None:
        """`labels` [components] is the class of each."""
        super().__init__()
        order = labels.argsort(stable=True)
        means, variance = density.means[order].double(), float(density.eigenvalues[0])
        self.sizes = labels.bincount(minlength=len(DIGITS)).tolist()
        self.register_buffer("slopes", means.T / variance, persistent=False)
        offsets = density.log_weights[order] - 0.5 * means.square().sum(1) / variance
        self.register_buffer("offsets", offsets, persistent=False)

    slopes: Tensor
    offsets: Tensor

    def forward(self, value: Tensor) -> Tensor:
        """[N, C] of x = `value` [N, *D]: the logarithm of the sum over the components of each class."""
        terms = torch.addmm(self.offsets.to(value), value.flatten(1), self.slopes.to(value))
        return torch.stack([part.logsumexp(1) for part in terms.split(self.sizes, 1)], 1)


def _solve(source: ImageSource, likelihood: CategoricalLikelihood, exact: bool) -> Solve | None:
    """The posterior of a class, in closed form or by draws of the prior, where that is a labelled kernel density."""
    density, one_hot = source.density, source.one_hot
    if density is None or one_hot is None:
        return None

    def solve(measurement: Tensor) -> tuple[ExactPosterior, Tensor]:
        if exact:
            mine = one_hot[:, int(measurement.argmax())] > 0
            log_weights = density.log_weights[mine]
            total = log_weights.logsumexp(0)
            posterior = MixturePosterior(
                density.means[mine], density.covariance, log_weights - total, float(total), source.prior.event_shape
            )
            return posterior, measurement.double()

        def log_likelihood(value: Tensor) -> Tensor:
            return likelihood.log_prob(value, measurement.expand(len(value), len(measurement)))

        weighted = weighted_posterior(density, log_likelihood, draws=DRAWS)
        drawn = weighted.sample(COMPARED, torch.Generator().manual_seed(0))
        return weighted, source.classify(drawn.reshape(-1, *source.prior.event_shape)).mean(0)

    return solve
