"""The training of a prior through the command: what it writes, that it goes on where it was, and what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import system.loop
from diffusion.denoising_error import LOG_SNR
from diffusion.stored_prior import load_prior, read_prior
from envs.data import load_dataset
from system.__main__ import main
from system.checkpoint import CheckpointStore
from system.config_file import load_config
from system.metrics import read_metrics
from system.prior_config import PriorConfig

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "priors").glob("*.yaml"))
TINY = [
    *("--network.hidden", "8", "--network.depth", "1", "--training.batch-size", "16", "--updates", "12"),
    *("--validation.rows", "16", "--validation.samples", "4", "--validation.num-steps", "3"),
    *("--validation.interval-seconds", "1000", "--quiet"),
]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "gauss.yaml"
    x = np.random.default_rng(0).normal([3.0, 0.0], [1.0, 0.2], size=(200, 2))
    np.save(tmp_path / "x.npy", x)
    path.write_text(f"name: gauss\ndata:\n  name: npz\n  path: {tmp_path / 'x.npy'}\nnetwork:\n  kind: mlp\n")
    return path


def _train(config, out, *more):
    return main(["prior", "train", str(config), "--out", str(out), *TINY, *more])


def _weights(run):
    part = CheckpointStore(run / "checkpoints").load().parts["learner"]
    return part.arrays


def test_a_prior_is_trained_and_stored_with_its_card_metrics_and_figure(config, tmp_path, capfd):
    assert _train(config, tmp_path / "run") == 0
    assert capfd.readouterr().err == ""
    stored, prior = read_prior(tmp_path / "run" / "prior"), load_prior(tmp_path / "run" / "prior", 4)
    data = load_dataset("npz", path=str(tmp_path / "x.npy"))
    assert stored.event_shape == (2,) and stored.data_std == pytest.approx(data.data_std)
    assert stored.data == {"name": "npz", "path": str(tmp_path / "x.npy"), "key": None, "limits": None}
    assert stored.denoising_error.log_snr == LOG_SNR
    assert prior.denoiser.mean.numpy() == pytest.approx(data.train.mean(0).numpy(), abs=1e-6)
    assert torch.isfinite(prior.sample(50)).all()
    text = (tmp_path / "run" / "prior" / "README.md").read_text()
    command = re.search(r"`(rtb prior train .*gauss.yaml --network.hidden 8 .*)`; 12 updates of 16 x", text)
    assert command is not None and "--out" not in command[1]
    assert "20 of 200 are held out" in text and "Licence of the data: not stated" in text
    assert (tmp_path / "run" / "figures" / "samples.png").read_bytes().startswith(b"\x89PNG")
    series = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert series["learner/updates"][2][-1] == 12
    loss = series["eval/validation_loss"][2][-1]
    assert f"Validation loss: {loss:.4f} on 16 held-out x" in text


def test_a_prior_trained_with_a_relative_path_finds_its_data_from_any_folder(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _train(config, tmp_path / "run", "--data.path", "x.npy") == 0
    assert read_prior(tmp_path / "run" / "prior").data["path"] == str(tmp_path / "x.npy")


def test_an_interrupted_training_that_is_resumed_is_the_uninterrupted_one_bit_for_bit(config, tmp_path, monkeypatch):
    monkeypatch.setattr("system.train_prior.SLICE_SECONDS", 0.0)  # an update a slice
    assert _train(config, tmp_path / "whole") == 0
    original = system.loop.save

    def save(runner, *arguments, **options):
        original(runner, *arguments, **options)
        if runner.updates == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(system.loop, "save", save)
        assert _train(config, tmp_path / "cut", "--checkpoint.interval-seconds", "0") == 130
    assert CheckpointStore(tmp_path / "cut" / "checkpoints").steps()[-1] == 5
    assert main(["resume", str(tmp_path / "cut"), "--quiet"]) == 0
    whole, cut = _weights(tmp_path / "whole"), _weights(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert [key for key in whole if not np.array_equal(whole[key], cut[key])] == []
    for name in ("prior.json", "weights.safetensors"):
        assert (tmp_path / "whole/prior" / name).read_bytes() == (tmp_path / "cut/prior" / name).read_bytes()
    assert "--checkpoint.interval-seconds 0" in (tmp_path / "cut" / "prior" / "README.md").read_text()


def test_a_training_that_is_told_to_end_saves_and_says_how_to_go_on(config, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "system", "prior", "train", str(config), "--out", str(run), *TINY[:-1]]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, "--updates", "1000000"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "updates=" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    step = int(re.search(r"interrupted; `rtb resume .*run` goes on from update (\d+)", err)[1])
    assert CheckpointStore(run / "checkpoints").load().step == step > 0
    assert not (run / "prior").exists()


def test_a_finished_training_goes_on_when_its_updates_are_raised_and_with_no_other_change(config, tmp_path, capfd):
    run = tmp_path / "run"
    assert _train(config, run) == 0
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("updates: 12\n", "updates: 15\n"))
    assert main(["resume", str(run), "--quiet"]) == 0
    assert CheckpointStore(run / "checkpoints").steps()[-1] == 15
    assert "15 updates of 16 x" in (run / "prior" / "README.md").read_text()
    (run / "config.yaml").write_text(text.replace("batch_size: 16", "batch_size: 17"))
    assert main(["resume", str(run), "--quiet"]) == 2
    assert "training.batch_size = 17, but its checkpoint was made with 16" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--network.hiden", "9"], "unknown option --network.hiden; did you mean --network.hidden?"),
        (["--network.kind", "mpl"], "network.kind: unknown kind of network 'mpl'; did you mean 'mlp'?"),
        (["--data.name", "minst"], "data.name: unknown data set 'minst'; did you mean 'mnist'?"),
        (["--data.path", "nowhere.npz"], "data 'npz': no data at nowhere.npz"),
        (["--network.kind", "ring"], "network: a ring network needs x of shape [D] with D of at least 5, got (2,)"),
        (["--device", "tpu"], "device must be auto, or one that this process has"),
        (["--updates", "0"], "updates must be at least 1, got 0"),
        (["--training.bandwidth", "-1"], "training.bandwidth must not be negative"),
        (["--validation.rows", "0"], "validation.rows must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line_and_leaves_nothing(config, tmp_path, capfd, options, message):
    given = TINY if "--network.kind" not in options else TINY[4:]
    assert main(["prior", "train", str(config), "--out", str(tmp_path / "run"), *given, *options]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("problem: {name: gmm-25}\n", "describes a run with a problem, which `rtb train` reads"),
        ("dat: {name: digits}\n", "unknown key 'dat'; did you mean 'data'?"),
        ("data: {name: npz, pth: x}\n", "unknown key 'data.pth'; did you mean 'path'?"),
        ("network: {kind: mlp, hidden: many}\n", "network.hidden must be int, got 'many'"),
        ("training: {learnin_rate: 1}\n", "unknown key 'training.learnin_rate'; did you mean 'learning_rate'?"),
        ("data: digits\n", "data must be a mapping with a name, got 'digits'"),
    ],
)
def test_a_key_that_is_none_is_named(tmp_path, text, message, capfd):
    (tmp_path / "a.yaml").write_text(text)
    assert main(["prior", "train", str(tmp_path / "a.yaml")]) == 2
    assert message in capfd.readouterr().err


def test_data_that_are_missing_are_named_with_where_they_come_from(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("RTB_DATA", raising=False)
    assert main(["prior", "train", str(ROOT / "configs/priors/mnist.yaml"), "--out", str(tmp_path / "run")]) == 2
    err = capfd.readouterr().err
    assert "data 'mnist': needs mnist/train-images-idx3-ubyte.gz: set RTB_DATA" in err and "LeCun" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.zeros((20, 6, 6), np.uint8), [], "all 18 x are the same, there is nothing to learn"),
        (np.arange(20 * 30, dtype=np.uint16).reshape(20, 1, 5, 6), [], "H and W divisible by 2, got (1, 5, 6)"),
        (np.random.default_rng(0).random((20, 6, 6)), [], "needs x of shape [C, H, W]"),
        (np.full((20, 1, 6, 6), np.nan), [], "has values that are not finite"),
        (np.arange(720.0).reshape(20, 1, 6, 6), ["--data.limits", "1", "0"], "must increase, got 1.0 and 0.0"),
    ],
)
def test_images_of_the_wrong_size_or_range_are_refused_by_name(config, tmp_path, capfd, x, options, message):
    np.save(tmp_path / "x.npy", x)
    arguments = ["--network.kind", "unet", "--network.channels", "8", "8", *options]
    assert main(["prior", "train", str(config), "--out", str(tmp_path / "run"), *arguments]) == 2
    assert message in capfd.readouterr().err


def test_the_configurations_that_ship_are_of_these_priors():
    named = {
        "digits",
        "mnist",
        "galaxies",
        "cifar10",
        "lorenz63",
        "lorenz96",
        "latents",
        "hst-noise",
        "spectra",
        "clusters",
        "fields",
    }
    assert {path.stem for path in CONFIGS} == named


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_that_ships_trains_one_step(path, tmp_path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ") and load_config(path, (), PriorConfig).name == path.stem
    options = []
    if path.stem == "latents":
        np.savez(tmp_path / "latents.npz", x=np.random.default_rng(0).normal(size=(40, 4, 2, 2)))
        options = ["--data.path", str(tmp_path / "latents.npz")]
    elif path.stem in ("mnist", "galaxies", "cifar10"):
        if not os.environ.get("RTB_DATA"):
            pytest.skip("RTB_DATA is not set")
        options = ["--network.channels", "8", "8", "--network.groups", "4", "--network.layers-per-block", "1"]
    elif path.stem == "hst-noise" and not os.environ.get("RTB_DATA"):
        pytest.skip("RTB_DATA is not set")
    arguments = [*options, *TINY[4:], "--updates", "1", "--training.batch-size", "2", "--validation.rows", "2"]
    assert main(["prior", "train", str(path), "--out", str(tmp_path / "run"), *arguments]) == 0
    loss = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["learner/loss"]
    assert np.isfinite(loss)
    assert torch.isfinite(load_prior(tmp_path / "run" / "prior", 2).sample(2)).all()


def test_what_needs_a_posterior_says_that_the_run_of_a_prior_has_none_and_what_there_is(config, tmp_path, capfd):
    run = tmp_path / "run"
    assert _train(config, run) == 0
    npz = str(tmp_path / "exact.npz")
    for command in (["sample"], ["evaluate"], ["sample", "--exact", "--output", npz], ["train", "--init"]):
        assert main([*command, str(run)]) == 2
        out, err = capfd.readouterr()
        assert out == "" and err == (
            f"rtb: error: {run} is a run of `rtb prior train`, which trains a prior and no posterior: `rtb prior "
            f"inspect {run}/prior` shows it, `rtb resume {run}` goes on with it\n"
        )
