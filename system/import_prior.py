"""`rtb prior import`: a pretrained diffusion model of another library as a prior of ours."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from system.errors import UserError

__all__ = ["import_command"]


def import_command(
    source: Path,
    folder: Path,
    *,
    kind: str | None = None,
    shape: Sequence[int] | None = None,
    data: Path | None = None,
    data_std: float | None = None,
    plugins: Sequence[str] = (),
) -> list[str]:
    """Imports the prior in `source` to `folder`; the lines to print.

    `plugins` are modules that register networks. See `diffusion.imported.importer` for the rest.

    Raises:
        UserError: the source, its data or the folder is not what was expected.
    """
    import torch

    from diffusion.imported.importer import import_prior, save_imported
    from envs.data.readers import read_x

    for module in plugins:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"--plugins {module}: it cannot be imported: {error}") from None
    try:
        found = import_prior(source, kind, None if shape is None else tuple(shape))
        clean = None
        if data is not None:
            clean = torch.from_numpy(read_x(data))
        stored = save_imported(folder, found, str(source), data_std=data_std, clean=clean)
    except (ValueError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from error
    shape_text = " x ".join(map(str, stored.event_shape))
    return [*found.statements, f"{shape_text} numbers, standard deviation {stored.data_std:g}: {folder}"]
