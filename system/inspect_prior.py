"""`rtb prior inspect`: samples of a stored prior, its schedule, and what a finite number of steps costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffusion.denoising_error import DenoisingError, measure_denoising_error
from diffusion.discretisation import discretisation_error, noise_left, smallest_num_steps
from diffusion.imported.base import ImportedDenoiser
from diffusion.prior import Prior
from diffusion.schedule import Schedule, make_schedule
from diffusion.stored_prior import OWN, StoredPrior, load_prior, read_prior
from envs.data import MissingDataError, load_dataset
from envs.data.readers import read_x
from evaluation.figures import Picture, discretisation_picture, draws_picture, schedule_picture
from system.config_file import import_plugins
from system.errors import UserError

__all__ = ["BOUND", "NUM_STEPS", "STEPS", "Inspection", "inspect_prior"]

SCHEDULE = "vp-cosine-zero-snr"  # that of the problems, as is
NUM_STEPS = 50
STEPS = (5, 10, 20, 50, 100, 200, 500, 1000)
BOUND = 0.01  # nats per dimension: of Gaussians, a standard deviation that is wrong by a tenth
SAMPLES = 64
FEWEST, MOST = 2, 4_000  # steps that the smallest number is sought among
ROUNDING = 1e-3  # that x may be beyond their limits by
OWN_DRAWS, OWN_STEPS = 128, 200  # x that the error is measured on where there are no data


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What was found."""

    lines: tuple[str, ...]
    """It in words."""
    steps: tuple[int, ...]
    """Numbers of steps T."""
    errors: tuple[float, ...]
    """Discretisation error of each, nats per dimension."""
    smallest: int | None
    """The smallest T under the bound; None if there is none up to 4,000."""
    pictures: tuple[Picture, ...]
    """Samples, schedule, discretisation error."""


@torch.no_grad()
def inspect_prior(
    name: str,
    *,
    steps: Sequence[int] = STEPS,
    num_steps: int = NUM_STEPS,
    schedule: str | None = None,
    bound: float = BOUND,
    data: Path | None = None,
    seed: int = 0,
    plugins: Sequence[str] = (),
) -> Inspection:
    """Looks at the prior called `name`, or in that folder.

    Samples are drawn with `num_steps` on `schedule`: vp-cosine-zero-snr, or that of an imported prior, if None. `data`
    is a file of x to measure the denoiser's error on, in the place of what the prior states.

    Raises:
        UserError: no such prior, schedule or data.
    """
    import_plugins(plugins)
    if not bound > 0:
        raise UserError(f"--bound must be positive, got {bound}")
    if min(*steps, num_steps) < FEWEST:
        raise UserError(f"numbers of steps must be at least {FEWEST}, got {min(*steps, num_steps)}")
    try:
        stored = read_prior(name)
        prior = load_prior(name, num_steps, schedule or SCHEDULE)
        if schedule is None and isinstance(prior.denoiser, ImportedDenoiser):
            schedule = OWN
            prior = load_prior(name, num_steps, OWN)
        schedule = schedule or SCHEDULE
        samples = prior.sample(SAMPLES if len(stored.event_shape) > 1 else 2_000, torch.Generator().manual_seed(seed))
        error, measured = _error(stored, prior, data, seed)
    except (ValueError, OSError) as problem:
        raise UserError(" ".join(str(problem).split())) from problem
    if not bool(torch.isfinite(samples).all()):
        raise UserError(
            f"prior {name} draws values that are not finite on schedule {schedule}; take another --schedule"
        )

    def levels(count: int) -> Schedule:
        return _schedule(prior, schedule, count, stored.data_std)

    mean_square = float(samples.double().square().mean())

    def error_of(count: int) -> float:
        return discretisation_error(
            levels(count), error, stored.data_std, presumed=stored.denoising_error, mean_square=mean_square
        )

    counts = tuple(sorted(set(steps)))
    errors = tuple(error_of(count) for count in counts)
    left = tuple(noise_left(levels(count), stored.denoising_error) / stored.data_std for count in counts)
    smallest = smallest_num_steps(error_of, bound, FEWEST, MOST)
    held_out = None if data is not None else _held_out(stored, len(samples))
    pictures = (
        draws_picture(samples.numpy(), None if held_out is None else held_out.numpy()),
        schedule_picture(
            prior.schedule.alpha.numpy(),
            prior.schedule.sigma.numpy(),
            prior.std.numpy(),
            prior.uncertainty.numpy(),
            stored.data_std,
        ),
        discretisation_picture(counts, errors, left, bound, smallest),
    )
    lines = (
        *_description(name, stored, prior, schedule, measured),
        *_table(counts, errors, left, torch.Size(stored.event_shape).numel()),
        _verdict(smallest, bound),
    )
    return Inspection(lines=lines, steps=counts, errors=errors, smallest=smallest, pictures=pictures)


def _schedule(prior: Prior, name: str, count: int, data_std: float) -> Schedule:
    """The schedule called `name` with `count` steps, as `load_prior` makes it."""
    if name == OWN:
        assert isinstance(prior.denoiser, ImportedDenoiser)
        return prior.denoiser.own_schedule(count)
    return make_schedule(name, count, scale=data_std)


def _error(stored: StoredPrior, prior: Prior, data: Path | None, seed: int) -> tuple[DenoisingError, str]:
    """The denoiser's error against the noise level, and how it is known."""
    if data is not None:
        clean = torch.from_numpy(read_x(data))
        if tuple(clean.shape[1:]) != stored.event_shape or not len(clean):
            raise UserError(f"--data {data}: expected x [N, {_shape(stored, ', ')}], got {list(clean.shape)}")
        if stored.value_range is not None:
            (low, high), (least, most) = stored.value_range, (float(clean.min()), float(clean.max()))
            if least < low - ROUNDING or most > high + ROUNDING:
                raise UserError(f"--data {data}: expected x within [{low:g}, {high:g}], got {least:g} to {most:g}")
        error = measure_denoising_error(prior.denoiser, clean, stored.data_std)
        return error, f"measured on the {len(clean):,} x of {data}"
    if isinstance(stored.denoising_error, DenoisingError):
        return stored.denoising_error, "as stored, measured on held-out x"
    chain = Prior(prior.denoiser, _fine(stored), stored.event_shape, stored.denoising_error, stored.data_std)
    clean = chain.sample(OWN_DRAWS, torch.Generator().manual_seed(seed))
    error = measure_denoising_error(prior.denoiser, clean, stored.data_std)
    return error, f"measured on {OWN_DRAWS} x of its own, as it came without; --data FILE measures it on x of yours"


def _fine(stored: StoredPrior) -> Schedule:
    return make_schedule(SCHEDULE, OWN_STEPS, scale=stored.data_std)


def _held_out(stored: StoredPrior, count: int) -> Tensor | None:
    """Held-out x of the prior's data set, None where it is not known or not on this machine."""
    if stored.data is None:
        return None
    try:
        options = dict(stored.data)
        return load_dataset(options.pop("name"), **options).held_out[:count]
    except (MissingDataError, KeyError):  # the samples are shown alone then
        return None


def _shape(stored: StoredPrior, between: str) -> str:
    return between.join(map(str, stored.event_shape))


def _description(name: str, stored: StoredPrior, prior: Prior, schedule: str, measured: str) -> list[str]:
    limits = "" if stored.value_range is None else f" in [{stored.value_range[0]:g}, {stored.value_range[1]:g}]"
    weights = sum(value.numel() for value in prior.denoiser.state_dict().values())
    data = "" if stored.data is None else f", trained on {stored.data['name']}"
    return [
        f"{name}: {_shape(stored, ' x ')} numbers{limits}, standard deviation {stored.data_std:.4g}, "
        f"{weights:,} weights{data}",
        f"schedule {schedule}, {prior.num_steps} steps in the figures; error of the estimate of x {measured}",
        "",
    ]


def _table(counts: Sequence[int], errors: Sequence[float], left: Sequence[float], dim: int) -> list[str]:
    head = f"{'steps':>7} {'nats/dimension':>15} {'nats':>10} {'noise left in x':>16}"
    rows = zip(counts, errors, left, strict=True)
    return [head, *(f"{count:7,} {error:15.5f} {error * dim:10.3f} {noise:16.5f}" for count, error, noise in rows), ""]


def _verdict(smallest: int | None, bound: float) -> str:
    if smallest is None:
        return f"no number of steps up to {MOST:,} keeps the discretisation error at {bound:g} nats per dimension"
    return f"{smallest:,} steps are the fewest with a discretisation error of at most {bound:g} nats per dimension"
