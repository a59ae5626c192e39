"""From the files of another library to a stored prior."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from diffusion.denoising_error import DenoisingError, measure_denoising_error
from diffusion.imported.diffusers_pipeline import INDEX, read_pipeline
from diffusion.imported.imported_prior import ImportedPrior
from diffusion.imported.latent import FOLDER
from diffusion.imported.network_folder import DESCRIPTION, read_network_folder
from diffusion.imported.score_checkpoint import HYPERPARAMETERS, read_score_checkpoint
from diffusion.imported.source import STATE_DICT_LINE, refuse_pickle
from diffusion.imported.variance import SamplerVariance
from diffusion.stored_prior import StoredPrior, save_prior

__all__ = ["KINDS", "import_prior", "save_imported"]

Reader = Callable[[Path, tuple[int, ...] | None], ImportedPrior]

KINDS: dict[str, tuple[str, Reader]] = {
    "diffusers": (INDEX, read_pipeline),
    "edm": (DESCRIPTION, read_network_folder),
    "flow": (DESCRIPTION, read_network_folder),
    "score-models": (HYPERPARAMETERS, read_score_checkpoint),
}
"""Sources by kind: the file by which one is known, and its reader."""

NVIDIA_LINE = (
    'in a checkout of github.com/NVlabs/edm, python -c "import pickle, safetensors.torch as s; '
    "net = pickle.load(open('{}', 'rb'))['ema']; s.save_file({k: v.contiguous() for k, v in "
    "net.model.state_dict().items()}, 'network.safetensors')\"; then write a network.json of kind edm beside it, "
    "whose network is net.model as a kind of your own (docs/priors.md)"
)


def import_prior(source: Path, kind: str | None = None, shape: tuple[int, ...] | None = None) -> ImportedPrior:
    """The prior in the folder `source`, of any of `KINDS` where `kind` is None.

    Raises:
        ValueError: it is none, or one that cannot be read; the message says what was expected.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind of source {kind!r}; expected one of {', '.join(KINDS)}")
    if shape is not None and not all(size >= 1 for size in shape):
        raise ValueError(f"the shape of x must be of sizes of at least 1, got {list(shape)}")
    if not source.is_dir():
        refuse_pickle(source, NVIDIA_LINE if source.suffix == ".pkl" else STATE_DICT_LINE)
        what = "is a file" if source.exists() else "does not exist"
        raise ValueError(f"expected a folder to import a prior from, but {source} {what}")
    marks = {name: mark for name, (mark, _) in KINDS.items() if kind in (None, name)}
    for name, mark in marks.items():
        if (source / mark).is_file():
            try:
                found = KINDS[name][1](source, shape)
            except (TypeError, KeyError, AttributeError) as error:
                raise ValueError(f"a value in {source / mark} is missing or of another type: {error}") from error
            if kind is not None and found.description["kind"] != kind:
                raise ValueError(f"{source} holds a prior of kind {found.description['kind']}, got --kind {kind}")
            return found
    if not any((source / mark).exists() for mark, _ in KINDS.values()):
        refuse_pickle(source)
    raise ValueError(
        f"{source} has none of the files that a source is known by: "
        + ", ".join(f"{mark} ({name})" for name, mark in marks.items())
    )


def save_imported(
    folder: Path,
    imported: ImportedPrior,
    source: str,
    *,
    data_std: float | None = None,
    clean: Tensor | None = None,
) -> StoredPrior:
    """Writes the prior to `folder`, with a card that says what is known of it; `source` is where it is from.

    Of `clean` [N, *D], x of the data that it was not trained on, its error is measured, and `data_std` where it is
    None; otherwise they are what the source's sampler presumes.

    Raises:
        ValueError: `folder` is something else, or `clean` is of another shape than x.
    """
    if clean is not None and tuple(clean.shape[1:]) != imported.event_shape:
        raise ValueError(f"the data must be [N, {', '.join(map(str, imported.event_shape))}], got {list(clean.shape)}")
    if data_std is None:
        data_std = imported.data_std if clean is None else float(clean.double().std())
    error: DenoisingError | SamplerVariance = SamplerVariance(name=imported.variance, data_std=data_std)
    measured = "not measured: what the sampler of its library takes for it"
    if clean is not None:
        error = measure_denoising_error(imported.denoiser, clean.float(), data_std)
        measured = f"measured on {len(clean)} x"
    stored = StoredPrior(
        event_shape=imported.event_shape, data_std=data_std, denoiser=imported.description, denoising_error=error
    )
    lines = [
        f"# {folder.name}",
        "",
        f"Imported from `{source}` (kind {imported.description['kind']}). Its licence, its data and how it was trained "
        "are those of its source, which is to be asked.",
        "",
        *(f"- {statement}" for statement in imported.statements),
        f"- Standard deviation of x: {data_std:g}. Error of the estimate of x: {measured}.",
        "",
    ]
    save_prior(folder, stored, imported.denoiser, "\n".join(lines))
    if imported.autoencoder is not None:
        imported.autoencoder.save_pretrained(folder / FOLDER, safe_serialization=True)
    return stored
