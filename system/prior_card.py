"""The card of a prior: its data, their licence, how it was trained, and how good it is."""

from __future__ import annotations

from diffusion.denoising_error import DenoisingError
from diffusion.stored_prior import StoredPrior
from envs.data import Dataset
from system.prior_config import PriorConfig

__all__ = ["card"]

SHOWN = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 6.0)  # levels of the table of errors


def card(
    config: PriorConfig,
    command: str,
    data: Dataset,
    stored: StoredPrior,
    *,
    weights: int,
    updates: int,
    seconds: float,
    device: str,
    validation_loss: float,
) -> str:
    """The text, in Markdown. `command` trains it, `weights` is their number, `seconds` the time of `updates`."""
    shape, settings = " x ".join(map(str, stored.event_shape)), config.training
    error = stored.denoising_error
    assert isinstance(error, DenoisingError)
    rows = min(config.validation.rows, len(data.held_out))
    kernel = "" if not settings.bandwidth else f", with Gaussian noise of {settings.bandwidth:g} on each"
    limits = "" if stored.value_range is None else f", in [{stored.value_range[0]:g}, {stored.value_range[1]:g}]"
    network = ", ".join([config.network.kind, *(f"{key} {value}" for key, value in config.network.options.items())])
    lines = [
        f"# {config.name}",
        "",
        f"A prior over {shape} numbers{limits}, of standard deviation {stored.data_std:.4g}.",
        "",
        f"- Data: {data.source}. {_sentence(data.split)}",
        f"- Trained on {len(data.train):,} x{kernel}. Licence of the data: {data.licence}.",
        f"- Network: {network}; {weights:,} weights, averaged over training.",
        f"- Training: `{command}`; {updates:,} updates of {settings.batch_size} x, {_time(seconds, config, device)}.",
        f"- Validation loss: {validation_loss:.4f} on {rows:,} held-out x; Gaussian data of this variance in every "
        "direction would have 1.",
        "",
        f"Mean squared error of the estimate of x on {rows:,} held-out x, against lambda, the log signal-to-noise "
        "ratio, and as a share of what it is for those Gaussian data:",
        "",
        "| lambda | error | share |",
        "| ---: | ---: | ---: |",
        *(_row(error, level) for level in SHOWN),
        "",
    ]
    return "\n".join(lines)


def _row(error: DenoisingError, level: float) -> str:
    index = min(range(len(error.log_snr)), key=lambda row: abs(error.log_snr[row] - level))
    gaussian = error.data_std**2 / (1 + pow(2.718281828459045, 2 * error.log_snr[index]))
    value = error.mean_squared[index]
    return f"| {error.log_snr[index]:g} | {value:.3g} | {value / gaussian:.3f} |"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _time(seconds: float, config: PriorConfig, device: str) -> str:
    place = "one processor core" if device == "cpu" else f"one GPU ({device})"
    kind = "of processor time " if config.clock == "cpu" else ""
    return f"{seconds / 60:.1f} minutes {kind}on {place}"
