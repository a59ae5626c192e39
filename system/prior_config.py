"""Configuration of the training of a prior; see `system.config`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from learner.prior_config import PriorTrainingConfig
from system.config import CheckpointConfig, config_yaml, require

__all__ = ["DataConfig", "NetworkConfig", "PriorConfig", "ValidationConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Draws of x."""

    name: str = "digits"
    """A data set (`envs.data.DATASETS`), or the format of your own: images, npz, idx or fits, with its `path`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the data set's function; in YAML and on the command line they stand beside the name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """The network F of the denoiser (`diffusion.denoiser.NetworkDenoiser`)."""

    kind: str = "mlp"
    """mlp (vectors), ring (sites of a ring), plane (noise), unet (images), or a kind that a plug-in adds to
    `diffusion.registry.NETWORKS`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the network's builder; in YAML and on the command line they stand beside the kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationConfig:
    """What is measured on held-out x."""

    interval_seconds: float = 20.0
    """Time between validations while training; each draws samples too."""
    rows: int = 512
    """Held-out x of a validation, and of the table of the denoiser's errors at the end."""
    samples: int = 64
    """Samples that are drawn and shown at the end; a quarter of them while training."""
    num_steps: int = 50
    """Steps of the chains that they are drawn with."""

    def __post_init__(self) -> None:
        require(self, "validation", at_least={"interval_seconds": 0, "rows": 1, "samples": 4, "num_steps": 1})


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorConfig:
    """The training of a prior."""

    PROGRAM: ClassVar = "rtb prior train CONFIG"
    PLACE: ClassVar = "configs/priors/"

    name: str = "prior"
    """Name of the prior, and of the run's directory under `runs/`."""
    seed: int = 0
    """Seed of every random stream."""
    device: str = "auto"
    """Where the network is trained: cpu, a device of torch as cuda or cuda:1, or auto, which is cuda if there is a
    GPU."""
    updates: int = 2_000
    """Optimiser steps."""
    max_seconds: float | None = None
    """Training time after which the run ends early."""
    clock: Literal["wall", "cpu"] = "wall"
    """What max_seconds counts: wall-clock time, or processor time (cpu)."""
    plugins: tuple[str, ...] = ()
    """Modules to import first, which register networks of yours."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Network."""
    training: PriorTrainingConfig = field(default_factory=PriorTrainingConfig)
    """Denoising score matching."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Validation."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""

    def __post_init__(self) -> None:
        require(self, "", at_least={"updates": 1, "seed": 0})
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds must be positive or null, got {self.max_seconds}")

    def to_yaml(self) -> str:
        """The whole configuration, options beside the name of what they are the options of."""
        return config_yaml(self)
