"""A trained prior in the place of the one that a problem of an instrument makes by itself."""

from __future__ import annotations

from diffusion.prior import Prior
from diffusion.stored_prior import load_prior, read_prior

__all__ = ["trained_prior"]


def trained_prior(
    name: str, event_shape: tuple[int, ...], num_steps: int, schedule: str, data: str, **meaning: float
) -> Prior:
    """The stored prior called `name`, or in that folder, as a chain of `num_steps` on `schedule`.

    `event_shape` is that of the problem's x. A shape does not say what x means: where the prior states that it was
    trained on the data set `data`, its options must have the values of `meaning`. Other priors are taken at their word.

    Raises:
        ValueError: no such prior, or one of other x.
    """
    stored = read_prior(name)
    if stored.event_shape != event_shape:
        raise ValueError(
            f"prior {name!r} is of x of shape {list(stored.event_shape)}, but x of this problem has shape "
            f"{list(event_shape)}"
        )
    if stored.data is not None and stored.data["name"] == data:
        for key, value in meaning.items():
            if key in stored.data and stored.data[key] != value:
                theirs = f"{key} {stored.data[key]:g}"
                raise ValueError(f"prior {name!r} was trained with {theirs}, but {key} of this problem is {value:g}")
    return load_prior(name, num_steps, schedule)
