"""Pipelines of diffusers: a folder with model_index.json, a U-Net, a scheduler and, of latent ones, an autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion.imported.diffusers_network import PREDICTIONS, DiscreteDenoiser, training_levels
from diffusion.imported.diffusers_unet import DiffusersUNet, refuse_conditional
from diffusion.imported.imported_prior import ImportedPrior
from diffusion.imported.latent import read_autoencoder
from diffusion.imported.source import read_json, read_model

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d import UNet2DModel

__all__ = ["INDEX", "read_pipeline"]

INDEX = "model_index.json"
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
VARIANCES = {"fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large"}
AUTOENCODERS = ("vae", "vqvae")


def read_pipeline(source: Path, shape: tuple[int, ...] | None = None) -> ImportedPrior:
    """The prior that a pipeline's folder holds; `shape` [C, H, W] where the U-Net does not state its sample_size.

    Raises:
        ValueError: a part is missing, unknown, pickled or conditional, or config and weights disagree.
    """
    autoencoder = _check_parts(source)
    network, config = _unet(source / "unet")
    event_shape = _event_shape(config, shape)
    scheduler = _Scheduler(source / "scheduler")
    denoiser = DiscreteDenoiser(
        DiffusersUNet.of(network), training_levels(scheduler.alphas_cumprod), scheduler.prediction, scheduler.clip
    )
    description = {
        "kind": "diffusers",
        "config": config,
        "num_train_timesteps": len(scheduler.alphas_cumprod),
        "prediction": scheduler.prediction,
        "clip": scheduler.clip,
    }
    count = sum(parameter.numel() for parameter in network.parameters())
    statements = [
        f"Network: UNet2DModel of {count:,} parameters, x of shape {list(event_shape)}.",
        *scheduler.statements,
    ]
    vae = None
    if autoencoder is not None:
        vae = read_autoencoder(source / autoencoder)
        _check_latent(vae, event_shape)
        statements.append(
            f"x is a latent: images are decoder(x / {vae.config.scaling_factor:g} + {vae.config.shift_factor or 0:g}), "
            "see `diffusion.imported.latent.load_decoder`."
        )
    return ImportedPrior(
        denoiser=denoiser.requires_grad_(False).eval(),
        description=description,
        event_shape=event_shape,
        data_std=1.0,
        variance=scheduler.variance,
        statements=tuple(statements),
        autoencoder=vae,
    )


def _check_parts(source: Path) -> str | None:
    """Name of the autoencoder's folder, if there is one, after a look at what else the pipeline is made of."""
    index = read_json(source / INDEX)
    parts = {
        name: value[1] for name, value in index.items() if isinstance(value, list) and len(value) == 2 and value[1]
    }
    found = parts.get("unet")
    if found != "UNet2DModel":
        why = (
            "it is conditional, on text as a rule" if found == "UNet2DConditionModel" else "of these the prior is made"
        )
        raise ValueError(f"the unet of {source} must be a UNet2DModel, got {found}: {why}")
    autoencoders = [name for name in AUTOENCODERS if name in parts]
    others = sorted(parts.keys() - {"unet", "scheduler", *AUTOENCODERS})
    if others:
        raise ValueError(
            f"{source} is made of more than an unconditional prior is: {', '.join(others)}; "
            "expected unet, scheduler and, of a latent prior, vae"
        )
    return autoencoders[0] if autoencoders else None


def _unet(folder: Path) -> tuple[UNet2DModel, dict[str, Any]]:
    """The model and the arguments that it is made of."""
    from diffusers.models.unets.unet_2d import UNet2DModel  # diffusers takes seconds to import

    stated = read_json(folder / "config.json")
    refuse_conditional(stated)
    embedding = stated.get("time_embedding_type", "positional")
    if embedding != "positional":
        raise ValueError(f"the U-Net must know its training step by its number (positional), got {embedding!r}")
    network: UNet2DModel = read_model(UNet2DModel, folder)
    config = {name: value for name, value in network.config.items() if not name.startswith("_")}
    return network, {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}


def _event_shape(config: dict[str, Any], shape: tuple[int, ...] | None) -> tuple[int, ...]:
    size = config["sample_size"]
    if size is None and shape is None:
        raise ValueError("the U-Net does not state its sample_size; give the shape of x: --shape C H W")
    if size is None:
        assert shape is not None
        return shape
    stated = (config["in_channels"], *([size, size] if isinstance(size, int) else size))
    if shape is not None and shape != stated:
        raise ValueError(f"the U-Net states x of shape {list(stated)}, got --shape {list(shape)}")
    return tuple(stated)


def _check_latent(vae: AutoencoderKL, event_shape: tuple[int, ...]) -> None:
    channels = vae.config.latent_channels
    if channels != event_shape[0]:
        raise ValueError(f"the U-Net's x has {event_shape[0]} channels, the autoencoder's latent {channels}")


class _Scheduler:
    """The training grid, what the network predicts, and how its library samples."""

    def __init__(self, folder: Path) -> None:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        stated = read_json(folder / "scheduler_config.json")
        known = {"DDPMScheduler": DDPMScheduler, "DDIMScheduler": DDIMScheduler}
        name = stated.get("_class_name")
        if name not in known:
            raise ValueError(
                f"unknown scheduler {name!r} in {folder}; expected {' or '.join(known)}. Where it is a sampler for a "
                "network of one of these: pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)"
            )
        self.alphas_cumprod, config = _made(known[name], stated, folder)
        self.prediction, betas = config["prediction_type"], config["beta_schedule"]
        variance = config.get("variance_type", "fixed_small")
        _expect(folder, "prediction_type", self.prediction, PREDICTIONS)
        if config["trained_betas"] is None:
            _expect(folder, "beta_schedule", betas, BETAS)
        _expect(folder, "variance_type", variance, tuple(VARIANCES))
        if config["thresholding"]:
            raise ValueError(
                f"{folder} asks for dynamic thresholding, by which x^ depends on the quantiles of the whole image: it "
                "is not read here; a clipped x^ is (clip_sample)"
            )
        self.variance = VARIANCES[variance]
        self.clip = float(config["clip_sample_range"]) if config["clip_sample"] else None
        levels = "betas of its own" if config["trained_betas"] is not None else f"beta_schedule {betas}"
        if config["rescale_betas_zero_snr"]:
            levels += ", rescaled to zero terminal SNR"
        clipped = "not clipped" if self.clip is None else f"clipped to [{-self.clip:g}, {self.clip:g}] (clip_sample)"
        sampler = f"DDPM's {variance}" if name == "DDPMScheduler" else "DDIM's with eta = 1"
        self.statements = (
            f"Trained on the {len(self.alphas_cumprod)} steps of a {name}, {levels}.",
            f"It predicts {self.prediction}; the estimate of x is {clipped}.",
            f"The noise of its transitions is {sampler}; the last one, which has none there, keeps that of its level.",
        )


def _made(kind: Any, stated: dict[str, Any], folder: Path) -> tuple[Any, dict[str, Any]]:  # noqa: ANN401
    """The grid and the configuration with its defaults, of diffusers' own scheduler."""
    try:
        scheduler = kind.from_config(stated)
    except (NotImplementedError, ValueError, TypeError) as error:
        raise ValueError(f"diffusers cannot make the scheduler in {folder}: {error}") from None
    return scheduler.alphas_cumprod, dict(scheduler.config)


def _expect(folder: Path, key: str, found: str, known: tuple[str, ...]) -> None:
    if found not in known:
        raise ValueError(f"unknown {key} {found!r} in {folder}; expected one of {', '.join(known)}")
