"""`rtb prior train`: a prior from draws of x, in a run directory as that of a posterior.

config.yaml, metrics.jsonl, tensorboard/, checkpoints/ and figures/ are those of any run (`system.run_directory`); the
prior itself, with its card, is the folder `prior` in it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from diffusion.denoising_error import DenoisingError, measure_denoising_error
from diffusion.prior import Prior
from diffusion.registry import make_denoiser
from diffusion.schedule import make_schedule
from diffusion.stored_prior import StoredPrior, StoredPriorError, save_prior
from envs.data import Dataset, load_dataset
from evaluation.figures import Picture, draws_picture
from learner import Diverged
from learner.prior_training import PriorTrainer, validation_loss
from system.assembly import find_device, stream_seed
from system.checkpoint import Checkpoint, CheckpointStore
from system.config_file import config_from_tree, import_plugins, load_config
from system.errors import ConfigError, DivergedError, UserError
from system.loop import require_same, terminated_is_interrupted, train_to_the_end, way_on
from system.metrics import MetricsWriter
from system.part import Part, write_part
from system.prior_card import card
from system.prior_config import PriorConfig
from system.progress import Progress
from system.run_directory import RunDirectory, write_text
from system.runner import run_progress, state_part

__all__ = ["PriorRunner", "build_data", "is_prior_run", "prior_of", "resume_prior", "train_prior"]

SLICE_SECONDS = 1.0
SCHEDULE = "vp-cosine-zero-snr"  # of the chains that samples are drawn with


def train_prior(
    config: PriorConfig, directory: Path | None = None, *, command: str = "", quiet: bool = False
) -> RunDirectory:
    """Trains `config` in a new run directory (`runs/<name>-<n>` if None) and stores the prior.

    `command` is what its card says that trains it.
    """
    runner = PriorRunner(config, build_data(config), command)
    run = RunDirectory.create(directory, config.name)
    write_text(run.config, config.to_yaml())
    try:
        _train(runner, run, None, quiet)
    except UserError:
        run.discard_unless_begun()
        raise
    return run


def resume_prior(directory: Path, *, quiet: bool = False) -> RunDirectory:
    """Goes on with the training in `directory` from its newest sound checkpoint.

    Raises:
        ConfigError: its configuration is not the one its checkpoint was made with.
        CheckpointError: there is no sound checkpoint.
    """
    run = RunDirectory.open(directory)
    config = load_config(run.config, (), PriorConfig)
    checkpoint = CheckpointStore(run.checkpoints, config.checkpoint.keep).load()
    saved = config_from_tree(yaml.safe_load(checkpoint.parts["run"].scalars["config"]), "checkpoint", (), PriorConfig)
    ours, theirs = (yaml.safe_load(each.to_yaml()) for each in (config, saved))
    require_same(ours, theirs, "rtb prior train", _MAY_DIFFER)
    _train(PriorRunner(config, build_data(config)), run, checkpoint, quiet)
    return run


def is_prior_run(directory: Path) -> bool:
    """Whether `directory` is a run that trains a prior; False where it is no run at all."""
    path = directory / "config.yaml"
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(tree, dict) and "data" in tree


def prior_of(run: RunDirectory) -> Path:
    """The folder of the prior that a run has trained."""
    return run.path / "prior"


def build_data(config: PriorConfig) -> Dataset:
    """The data set; one that is missing, or that cannot be read, is a `ConfigError`."""
    import_plugins(config.plugins)
    try:
        data = load_dataset(config.data.name, **config.data.options)
    except (ValueError, OSError) as error:
        raise ConfigError(f"data {config.data.name!r}: {' '.join(str(error).split())}") from None
    if not data.data_std > 0:
        raise ConfigError(
            f"data {config.data.name!r}: all {len(data.train):,} x are the same, there is nothing to learn"
        )
    return data


class PriorRunner:
    """The trainer of a prior, as the loop of a run sees it: see `system.runner.Trains`."""

    def __init__(self, config: PriorConfig, data: Dataset, command: str = "") -> None:
        torch.set_num_threads(1)  # processes share the cores; more threads each are many times slower
        self.config, self.data, self.command = config, data, command or "rtb prior train"
        self.device = find_device(config)
        self.data_std = (data.data_std**2 + config.training.bandwidth**2) ** 0.5
        self.description = {
            "kind": "network",
            "centred": True,
            "network": {"kind": config.network.kind, **config.network.options},
        }
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(stream_seed(config, "network"))
            denoiser = self._denoiser()
        denoiser.get_buffer("mean").copy_(data.train.double().mean(0))
        seed = stream_seed(config, "training")
        self.trainer = PriorTrainer(denoiser.to(self.device), data.train, self.data_std, config.training, seed)
        self._clock = time.process_time if config.clock == "cpu" else time.perf_counter
        self._seconds_before = 0.0
        self._start: float | None = None  # of the clock

    def _denoiser(self) -> nn.Module:
        try:
            return make_denoiser(self.description, self.data.event_shape, self.data_std)
        except ValueError as error:
            raise ConfigError(f"network: {error}") from None

    @property
    def updates(self) -> int:
        """See `Trains`."""
        return self.trainer.updates

    @property
    def seconds(self) -> float:
        """See `Trains`."""
        return self._seconds_before + (0.0 if self._start is None else self._clock() - self._start)

    @property
    def progress(self) -> float:
        """Fraction of the training that is done."""
        return run_progress(self.updates, self.seconds, self.config.updates, self.config.max_seconds)

    @property
    def finished(self) -> bool:
        """See `Trains`."""
        return self.progress >= 1.0

    def advance(self) -> dict[str, float]:
        """See `Trains`."""
        if self._start is None:
            self._start = self._clock()
        start = time.perf_counter()
        losses: list[float] = []
        while not self.finished and (not losses or time.perf_counter() - start < SLICE_SECONDS):
            try:
                losses.append(self.trainer.update())
            except Diverged as error:
                raise DivergedError(f"training diverged: {error}") from error
        return {
            "learner/updates": float(self.updates),
            "learner/loss": sum(losses) / max(len(losses), 1),
            "learner/set_aside": float(self.trainer.set_aside),
            "system/progress": self.progress,
        }

    def averaged(self) -> nn.Module:
        """The denoiser with its averaged weights, frozen."""
        return self.trainer.averaged(self._denoiser().to(self.device))

    def held_out(self) -> Tensor:
        """[N, *D] x of the validation, on the device of the network, with the noise of `training.bandwidth`."""
        clean, generator = self.data.held_out, torch.Generator().manual_seed(stream_seed(self.config, "held out"))
        rows = torch.randperm(len(clean), generator=generator)[: self.config.validation.rows]
        noise = torch.randn(len(rows), *self.data.event_shape, generator=generator)
        return (clean[rows] + self.config.training.bandwidth * noise).to(self.device)

    def validation_loss(self, denoiser: nn.Module) -> float:
        """The loss of `denoiser` on held-out x, at the same levels and with the same noise every time."""
        seed = stream_seed(self.config, "validation")
        return validation_loss(denoiser, self.held_out(), self.data_std, self.config.training, seed)

    def picture(self, denoiser: nn.Module, error: DenoisingError | None = None, share: int = 1) -> Picture:
        """Samples of the prior beside held-out x. Without the table of its `error` it is measured coarsely."""
        settings = self.config.validation
        count = settings.samples // share
        if error is None:
            error = measure_denoising_error(denoiser, self.held_out()[:32], self.data_std, COARSE)
        schedule = make_schedule(SCHEDULE, settings.num_steps, scale=self.data_std)
        prior = Prior(denoiser, schedule, self.data.event_shape, error, self.data_std).to(self.device)
        generator = torch.Generator(self.device).manual_seed(stream_seed(self.config, "samples"))
        samples = prior.sample(count, generator).cpu().numpy()
        return draws_picture(samples, self.held_out().cpu().numpy())

    def save(self, directory: Path) -> tuple[str, ...]:
        """See `Trains`."""
        run = {"seconds": self.seconds, "command": self.command, "config": self.config.to_yaml()}
        parts = {"run": Part(scalars=run), "learner": state_part(self.trainer.state_dict())}
        for name, part in parts.items():
            write_part(directory, name, part)
        return tuple(parts)

    def load(self, parts: Mapping[str, Part]) -> None:
        """See `Trains`."""
        run = parts["run"].scalars
        self._seconds_before, self.command = float(run["seconds"]), str(run["command"])
        self.trainer.load_state_dict(parts["learner"].arrays, parts["learner"].scalars)


_MAY_DIFFER = ("device", "updates", "max_seconds")  # of a training that goes on, longer than was meant if need be
COARSE = tuple(float(level) for level in range(-6, 8))  # levels, where the samples are only to be looked at


@terminated_is_interrupted()
def _train(runner: PriorRunner, run: RunDirectory, checkpoint: Checkpoint | None, quiet: bool) -> None:
    config = runner.config
    store = CheckpointStore(run.checkpoints, config.checkpoint.keep)
    title = f"prior {config.name} - {runner.device.type} - {run.path}"
    progress = Progress(title, budget_seconds=config.max_seconds, budget_updates=config.updates, quiet=quiet)

    def validate() -> dict[str, float]:
        denoiser = runner.averaged()
        _draw(run, runner.picture(denoiser, share=4))
        return {"eval/validation_loss": runner.validation_loss(denoiser)}

    try:
        with MetricsWriter(run, None if checkpoint is None else checkpoint.step) as writer, progress:
            if checkpoint is not None:
                runner.load(checkpoint.parts)
                for line in checkpoint.warnings:
                    progress.warn(line)
            train_to_the_end(
                runner,
                store,
                writer,
                progress,
                validate=validate,
                validation_seconds=config.validation.interval_seconds,
                checkpoint_seconds=config.checkpoint.interval_seconds,
            )
        _store(runner, run)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(way_on(run, store)) from None


def _store(runner: PriorRunner, run: RunDirectory) -> None:
    """Writes the prior, its card and its figure."""
    config, data = runner.config, runner.data
    denoiser, clean = runner.averaged(), runner.held_out()
    error = measure_denoising_error(denoiser, clean, runner.data_std)
    stored = StoredPrior(
        event_shape=data.event_shape,
        data_std=runner.data_std,
        denoiser=runner.description,
        denoising_error=error,
        value_range=data.value_range,
        data={"name": config.data.name, **_found_from_anywhere(config.data.options)},
    )
    text = card(
        config,
        runner.command,
        data,
        stored,
        weights=sum(value.numel() for value in denoiser.state_dict().values()),
        updates=runner.updates,
        seconds=runner.seconds,
        device=runner.device.type,
        validation_loss=runner.validation_loss(denoiser),
    )
    try:
        save_prior(prior_of(run), stored, denoiser, text)
    except StoredPriorError as problem:
        raise UserError(str(problem)) from None
    _draw(run, runner.picture(denoiser, error))


def _found_from_anywhere(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a data set with a relative path made whole, as the prior is used from other folders too."""
    return {key: str(Path(value).resolve()) if key == "path" and value else value for key, value in options.items()}


def _draw(run: RunDirectory, picture: Picture) -> None:
    run.figures.mkdir(exist_ok=True)
    (run.figures / f"{picture.name}.png").write_bytes(picture.png)
