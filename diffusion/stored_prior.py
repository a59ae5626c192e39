"""A prior at rest: a folder that holds all that its denoiser needs, and what people need to know about it.

prior.json           shape and scale of x, how the denoiser is built, a table of its errors (`StoredPrior`)
weights.safetensors  the denoiser's weights
README.md            its card: data, licence, how it was trained, how good it is

What is stored is the denoiser, not a chain: number of steps and schedule are chosen when it is loaded. A prior that
ships with this package is known by its name, any other by the path of its folder. Nothing is unpickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion.denoising_error import DenoisingError
from diffusion.imported.base import ImportedDenoiser
from diffusion.imported.variance import SamplerVariance
from diffusion.prior import Prior
from diffusion.registry import make_denoiser, nearest
from diffusion.schedule import SCHEDULES, Schedule, make_schedule

__all__ = [
    "OWN",
    "SHIPPED",
    "StoredPrior",
    "StoredPriorError",
    "load_denoiser",
    "load_prior",
    "prior_folder",
    "prior_names",
    "read_prior",
    "save_prior",
]

FORMAT = 1
OWN = "own"
"""The schedule that an imported prior was trained on."""
SHIPPED = Path(__file__).with_name("priors")
"""Folder of the priors that ship."""
DESCRIPTION, WEIGHTS, CARD = "prior.json", "weights.safetensors", "README.md"
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")


class StoredPriorError(ValueError):
    """A folder is not a prior that can be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPrior:
    """What `prior.json` says."""

    event_shape: tuple[int, ...]
    """Shape of x."""
    data_std: float
    """Standard deviation of x per dimension, in its units."""
    denoiser: Mapping[str, Any]
    """How the denoiser is built: `kind` and arguments, see `diffusion.registry`."""
    denoising_error: DenoisingError | SamplerVariance
    """Mean squared error of the denoiser against the noise level, or what a sampler of another library takes for it."""
    value_range: tuple[float, float] | None = None
    """Smallest and largest value that x can have, where there are such."""
    data: Mapping[str, Any] | None = None
    """The data set that it was trained on, `name` and options of `envs.data.load_dataset`, where there is one."""

    def to_json(self) -> str:
        """The text of `prior.json`."""
        error = self.denoising_error
        tree = {
            "format": FORMAT,
            "event_shape": list(self.event_shape),
            "data_std": self.data_std,
            "value_range": None if self.value_range is None else list(self.value_range),
            "data": None if self.data is None else dict(self.data),
            "denoiser": dict(self.denoiser),
            "denoising_error": (
                {"sampler": error.name}
                if isinstance(error, SamplerVariance)
                else {"log_snr": list(error.log_snr), "mean_squared": list(error.mean_squared)}
            ),
        }
        return json.dumps(tree, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> StoredPrior:
        """What `to_json` gave.

        Raises:
            ValueError: it is not such a text, or one of another format.
        """
        try:
            tree = json.loads(text)
            if tree["format"] != FORMAT:
                raise ValueError(f"it has format {tree['format']}, this version reads {FORMAT}")
            data_std, table = float(tree["data_std"]), tree["denoising_error"]
            error: DenoisingError | SamplerVariance
            if "sampler" in table:
                error = SamplerVariance(name=table["sampler"], data_std=data_std)
            else:
                error = DenoisingError(
                    data_std=data_std, log_snr=tuple(table["log_snr"]), mean_squared=tuple(table["mean_squared"])
                )
            limits, data = tree["value_range"], tree.get("data")
            return cls(
                event_shape=tuple(int(size) for size in tree["event_shape"]),
                data_std=data_std,
                denoiser=dict(tree["denoiser"]),
                denoising_error=error,
                value_range=None if limits is None else (float(limits[0]), float(limits[1])),
                data=None if data is None else {"name": str(data["name"]), **data},
            )
        except json.JSONDecodeError as problem:
            raise ValueError(f"it is not JSON: {problem}") from None
        except KeyError as problem:
            raise ValueError(f"it has no {problem.args[0]!r}") from None
        except (TypeError, AttributeError) as problem:
            raise ValueError(f"a value in it has the wrong type: {problem}") from None


def prior_names() -> tuple[str, ...]:
    """Names of the priors that ship, sorted."""
    return tuple(sorted(path.parent.name for path in SHIPPED.glob(f"*/{DESCRIPTION}")))


def prior_folder(name_or_folder: str | Path) -> Path:
    """The folder of a prior: a text without a slash is the name of one that ships, all else a path.

    Raises:
        StoredPriorError: there is no such name, or no folder with a prior.
    """
    if isinstance(name_or_folder, str) and "/" not in name_or_folder and name_or_folder not in prior_names():
        if Path(name_or_folder).exists():
            raise StoredPriorError(
                f"no prior named {name_or_folder!r} ships; for the folder of that name say ./{name_or_folder}"
            )
        raise StoredPriorError(f"no prior named {name_or_folder!r} ships; {nearest(name_or_folder, prior_names())}")
    if isinstance(name_or_folder, str) and "/" not in name_or_folder:
        return SHIPPED / name_or_folder
    folder = Path(name_or_folder)
    if folder.suffix in PICKLED:
        raise StoredPriorError(_refusal(folder))
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise StoredPriorError(f"expected the folder of a prior, but {folder} {what}")
    if not (folder / DESCRIPTION).is_file():
        raise StoredPriorError(f"expected the folder of a prior, but {folder} has no {DESCRIPTION}")
    return folder


def read_prior(name_or_folder: str | Path) -> StoredPrior:
    """What is known of a stored prior, without its weights.

    Raises:
        StoredPriorError: there is no such prior, or its description cannot be read.
    """
    path = prior_folder(name_or_folder) / DESCRIPTION
    try:
        return StoredPrior.from_json(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise StoredPriorError(f"cannot read {path}: {error}") from None


def load_denoiser(name_or_folder: str | Path) -> nn.Module:
    """The denoiser of a stored prior, frozen.

    Raises:
        StoredPriorError: no such prior, an unknown kind, or weights that are not those of that kind.
    """
    folder, stored = prior_folder(name_or_folder), read_prior(name_or_folder)
    try:
        with torch.random.fork_rng(devices=[]):  # the weights it starts with are thrown away
            denoiser = make_denoiser(stored.denoiser, stored.event_shape, stored.data_std)
    except ValueError as error:
        raise StoredPriorError(f"cannot build the denoiser of {folder}: {error}") from error
    _load_weights(denoiser, folder)
    return denoiser.requires_grad_(False).eval()


def load_prior(
    name_or_folder: str | Path, num_steps: int = 50, schedule: str | Schedule = "vp-cosine-zero-snr"
) -> Prior:
    """The stored prior as a chain of `num_steps` transitions on `schedule`.

    A schedule is a name (`diffusion.schedule.SCHEDULES`), which is scaled to the data; or "own", the one that an
    imported prior was trained on; or a `Schedule`, whose number of steps counts then.

    Raises:
        StoredPriorError: no such prior, or one that cannot be read.
        ValueError: no such schedule.
    """
    stored, denoiser = read_prior(name_or_folder), load_denoiser(name_or_folder)
    if schedule == OWN:
        if not isinstance(denoiser, ImportedDenoiser):
            raise ValueError(
                f"schedule {OWN!r} is for imported priors, which were trained on one; expected one of "
                f"{', '.join(SCHEDULES)}"
            )
        schedule = denoiser.own_schedule(num_steps)
    elif isinstance(schedule, str):
        schedule = make_schedule(schedule, num_steps, scale=stored.data_std)
    return Prior(denoiser, schedule, stored.event_shape, stored.denoising_error, data_std=stored.data_std)


def save_prior(folder: Path, stored: StoredPrior, denoiser: nn.Module, card: str) -> Path:
    """Writes a prior to `folder`, replacing one that is there; `card` is the text of its README.

    Raises:
        StoredPriorError: `folder` exists and is no prior, `stored` does not build a denoiser like this one, or a weight
            is not finite.
    """
    if folder.exists() and not (folder / DESCRIPTION).is_file():
        raise StoredPriorError(f"{folder} exists and is not a prior; choose another folder")
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in denoiser.state_dict().items()}
    for name, value in weights.items():
        if not bool(torch.isfinite(value).all()):
            raise StoredPriorError(f"weight {name!r} is not finite; a prior with it is not written")
    with torch.random.fork_rng(devices=[]):
        _check_fit(make_denoiser(stored.denoiser, stored.event_shape, stored.data_std), weights, "the denoiser to save")
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    (temporary / DESCRIPTION).write_text(stored.to_json(), encoding="utf-8")
    (temporary / CARD).write_text(card, encoding="utf-8")
    save_file(weights, temporary / WEIGHTS)
    (temporary / WEIGHTS).chmod(temporary.stat().st_mode & 0o666)  # safetensors lets none but its owner read it
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)
    return folder


def _load_weights(denoiser: nn.Module, folder: Path) -> None:
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = sorted(entry for entry in folder.iterdir() if entry.suffix in PICKLED)
        raise StoredPriorError(_refusal(pickled[0]) if pickled else f"{folder} has no {WEIGHTS}")
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise StoredPriorError(f"cannot read {path}: {error}") from None
    _check_fit(denoiser, weights, str(path))
    denoiser.load_state_dict(weights)


def _check_fit(denoiser: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """StoredPriorError with the first weight that `denoiser` has not, or that has another shape."""
    expected = denoiser.state_dict()
    for name, value in expected.items():
        if name not in weights:
            raise StoredPriorError(f"{source} has no weight {name!r}, {list(value.shape)}, that prior.json asks for")
        if weights[name].shape != value.shape:
            raise StoredPriorError(
                f"weight {name!r} of {source} has shape {list(weights[name].shape)}, "
                f"prior.json asks for {list(value.shape)}"
            )
    for name in weights:
        if name not in expected:
            raise StoredPriorError(f"{source} has a weight {name!r} that a denoiser as in prior.json does not have")


def _refusal(path: Path) -> str:
    return (
        f"{path} may hold a pickle, which can run any code, and nothing is unpickled here; "
        f"store the weights as {WEIGHTS}"
    )
