"""Problems of images: a forward operator, and all else that they share.

`@image_problem("image-...")` over a function of the image's shape and its own options that returns an operator makes a
problem of it. The options that all have are those of `_problem` below: the prior, which image is measured, the noise.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from envs.exact.mixture import MixturePosterior, condition_mixture
from envs.likelihoods import GaussianLikelihood, Likelihood, WithoutGradient
from envs.operators import ForwardOperator, FourierMagnitudes, LinearOperator, MaskedFourier, Matrix, Pixels
from envs.problem import Classes, InverseProblem, Solve
from envs.problems.images.source import ImageSource, image_source
from envs.registry import register

__all__ = ["Shape", "image_problem", "picture", "register_operator"]

Shape = tuple[int, int, int]
MakeOperator = Callable[..., ForwardOperator]
Surrogate = Callable[[Any, float], GaussianLikelihood]
"""(operator, standard deviation of the noise) -> see `InverseProblem.surrogate`."""


def image_problem(name: str, *, surrogate: Surrogate | None = None) -> Callable[[MakeOperator], MakeOperator]:
    """Registers the problem `name` of the operator that the decorated function makes for images [C, H, W].

    With a `surrogate` the likelihood has no gradient, as the operator's says nothing, and guides go by what it makes.
    """

    def decorate(make_operator: MakeOperator) -> MakeOperator:
        register_operator(name, make_operator, functools.partial(_problem, surrogate))
        return make_operator

    return decorate


def register_operator(name: str, make_operator: MakeOperator, build: Callable[..., InverseProblem]) -> None:
    """Registers `build`(name, function of the image's shape to its operator, **options) with the options of both.

    Those of the operator are the arguments of `make_operator` after the shape.
    """
    shared = [each for each in inspect.signature(build).parameters.values() if each.kind is each.KEYWORD_ONLY]
    own = list(inspect.signature(make_operator).parameters.values())[1:]

    def factory(**options: object) -> InverseProblem:
        given = {each.name: options.pop(each.name) for each in own if each.name in options}
        return build(name, lambda shape: make_operator(shape, **given), **options)

    plain = build.func if isinstance(build, functools.partial) else build
    hints = typing.get_type_hints(plain) | typing.get_type_hints(make_operator)
    factory.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    factory.__annotations__ = {each.name: hints[each.name] for each in (*own, *shared)}
    factory.__doc__, factory.__module__ = make_operator.__doc__, make_operator.__module__
    factory.__name__ = factory.__qualname__ = make_operator.__name__
    register(name)(factory)


def _problem(
    surrogate: Surrogate | None,
    name: str,
    make_operator: Callable[[Shape], ForwardOperator],
    *,
    prior: str = "digits-kde",
    image: int = 0,
    count: int = 1,
    truth: str | None = None,
    noise_std: float = 0.1,
    num_steps: int = 50,
    schedule: str = "vp-cosine-zero-snr",
    seed: int = 0,
) -> InverseProblem:
    """Pixels are in [-1, 1], and `noise_std` is in their units."""
    source = image_source(prior, num_steps, schedule, with_data=truth != "prior")
    shape = typing.cast(Shape, source.prior.event_shape)
    generator = torch.Generator().manual_seed(seed)
    images = source.truths(truth, image, count, generator)
    operator = make_operator(shape)
    gaussian = GaussianLikelihood(operator, noise_std)
    likelihood: Likelihood = gaussian if surrogate is None else WithoutGradient(gaussian)
    problem = InverseProblem(
        name=name,
        prior=source.prior,
        likelihood=likelihood,
        measurements=gaussian.sample(images, generator).float(),
        surrogate=None if surrogate is None else surrogate(operator, noise_std),
        truth=images.float(),
        classes=None if source.one_hot is None else Classes(tuple("0123456789"), source.classify),
        image_shape=shape[1:] if shape[0] == 1 else shape,
        measurement_image=picture(operator, shape[0]),
        solve=_exact(source, operator, noise_std),
    )
    return problem.solved()


def _exact(source: ImageSource, operator: ForwardOperator, noise_std: float) -> Solve | None:
    """The posterior in closed form, where the prior is a kernel density and the operator linear, and not too large."""
    density, one_hot = source.density, source.one_hot
    if density is None or one_hot is None or not (isinstance(operator, LinearOperator) and operator.has_matrix):
        return None

    def solve(measurement: Tensor) -> tuple[MixturePosterior, Tensor]:
        covariance, log_weights, shape = density.covariance, density.log_weights, source.prior.event_shape
        matrix, seen = operator.as_matrix(), measurement.flatten()
        exact = condition_mixture(density.means, covariance, log_weights, matrix, noise_std, seen, shape)
        return exact, exact.log_weights.exp() @ one_hot

    return solve


def picture(operator: ForwardOperator, channels: int) -> Callable[[Tensor], Tensor]:
    """A measurement of an image of `channels` as a picture: A^T y where it is none itself."""
    shape = operator.measurement_shape
    if isinstance(operator, Pixels):
        seen = operator.mask.float().masked_fill(~operator.mask, torch.nan)
        return lambda value: _grey_or_colour(operator.adjoint(value[None].float())[0] * seen)
    if isinstance(operator, MaskedFourier | Matrix):
        return lambda value: _grey_or_colour(operator.adjoint(value[None].float())[0])
    if isinstance(operator, FourierMagnitudes):
        return lambda value: value.reshape(-1, operator.size[1] // 2 + 1).float()
    if len(shape) == 3 and shape[0] == channels == 3:
        return lambda value: value.float()
    return lambda value: value.reshape(-1, shape[-1]).float()  # below one another, if there are several


def _grey_or_colour(image: Tensor) -> Tensor:
    """[H, W] of an image [1, H, W]; one of [3, H, W] as it is."""
    return image[0] if len(image) == 1 else image
