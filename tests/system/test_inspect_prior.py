"""What `rtb prior inspect` says of a prior, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffusion.denoising_error import LOG_SNR, DenoisingError, levels_at
from diffusion.discretisation import discretisation_error
from diffusion.registry import make_denoiser, make_network
from diffusion.schedule import make_schedule
from diffusion.stored_prior import StoredPrior, save_prior
from system.__main__ import main
from system.inspect_prior import inspect_prior

MLP = {"kind": "network", "network": {"kind": "mlp", "hidden": 8, "depth": 1, "embedding": 4}}
VARIANCES = torch.tensor([0.02, 1.0, 1.98], dtype=torch.float64)  # mean 1


def _error():
    """The table of an exact denoiser of Gaussian data with these variances."""
    alpha, sigma = levels_at(LOG_SNR, 1.0)
    errors = (VARIANCES / (1 + (alpha / sigma)[:, None] ** 2 * VARIANCES)).mean(1)
    return DenoisingError(data_std=1.0, log_snr=LOG_SNR, mean_squared=tuple(errors.tolist()))


def _saved(folder, shape=(3,)):
    torch.manual_seed(0)
    stored = StoredPrior(event_shape=shape, data_std=1.0, denoiser=MLP, denoising_error=_error())
    return save_prior(folder, stored, make_denoiser(MLP, shape, 1.0), "# A card\n")


@pytest.fixture
def folder(tmp_path):
    return _saved(tmp_path / "p")


def test_the_fewest_steps_under_the_bound_are_found_and_the_figures_drawn(folder, tmp_path, capfd):
    out = tmp_path / "figures"
    command = ["prior", "inspect", str(folder), "--out", str(out), "--steps", "20", "5", "--bound", "0.02"]
    assert main([*command, "--num-steps", "5"]) == 0
    text, err = capfd.readouterr()
    assert err == "" and sorted(path.name for path in out.iterdir()) == [
        "discretisation.png",
        "samples.png",
        "schedule.png",
    ]

    def exact(count):
        return discretisation_error(make_schedule("vp-cosine-zero-snr", count), _error(), 1.0)

    fewest = next(count for count in range(2, 1_000) if exact(count) <= 0.02)
    assert f"\n{fewest} steps are the fewest with a discretisation error of at most 0.02 nats per dimension\n" in text
    rows = [line.split() for line in text.splitlines() if line[:7].strip() in ("5", "20")]
    assert [row[0] for row in rows] == ["5", "20"]  # in order, whatever was asked
    assert [float(row[1]) for row in rows] == pytest.approx([exact(5), exact(20)], abs=1e-5)
    assert float(rows[0][2]) == pytest.approx(3 * exact(5), abs=1e-3)


def test_another_schedule_and_a_bound_that_no_chain_keeps(folder):
    found = inspect_prior(str(folder), steps=(3,), num_steps=3, schedule="ve", bound=1e-9)
    assert "schedule ve, 3 steps" in found.lines[1]
    assert found.smallest is None and found.lines[-1].startswith("no number of steps up to 4,000 keeps")


def test_an_imported_prior_is_on_its_own_schedule_and_measured_on_its_own_draws_or_on_data(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    stated = {"kind": "flow", "event_shape": [3], "data_at": 1, "network": MLP["network"]}
    (source / "network.json").write_text(json.dumps(stated))
    torch.manual_seed(0)
    save_file(make_network(MLP["network"], (3,)).state_dict(), source / "network.safetensors")
    assert main(["prior", "import", str(source), "--out", str(tmp_path / "p"), "--quiet"]) == 0
    found = inspect_prior(str(tmp_path / "p"), steps=(4, 8), num_steps=4)
    assert "schedule own, 4 steps" in found.lines[1] and "measured on 128 x of its own" in found.lines[1]
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 3)))
    other = inspect_prior(str(tmp_path / "p"), steps=(4, 8), num_steps=4, data=tmp_path / "x.npy")
    assert f"measured on the 40 x of {tmp_path / 'x.npy'}" in other.lines[1]
    assert other.errors != found.errors and np.isfinite(other.errors).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bound", "0"], "--bound must be positive, got 0.0"),
        (["--steps", "1"], "numbers of steps must be at least 2, got 1"),
        (["--schedule", "cosine"], "unknown schedule 'cosine'; expected one of vp-linear"),
        (["--schedule", "own"], "schedule 'own' is for imported priors"),
        (["--data", "nowhere.npy"], "nowhere.npy"),
    ],
)
def test_what_cannot_be_inspected_is_said_in_one_line(folder, options, message, capfd):
    assert main(["prior", "inspect", str(folder), *options]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err


def test_data_of_another_shape_and_names_that_are_none_are_refused(folder, tmp_path, capfd):
    np.save(tmp_path / "x.npy", np.zeros((4, 2)))
    assert main(["prior", "inspect", str(folder), "--data", str(tmp_path / "x.npy")]) == 2
    assert "expected x [N, 3], got [4, 2]" in capfd.readouterr().err
    np.save(tmp_path / "x.npy", np.full((4, 1, 8, 8), 16.0))  # as scikit-learn has them
    assert main(["prior", "inspect", "digits", "--data", str(tmp_path / "x.npy")]) == 2
    assert "x.npy: expected x within [-1, 1], got 16 to 16\n" in capfd.readouterr().err
    assert main(["prior", "inspect", "lorenz36"]) == 2
    assert "no prior named 'lorenz36' ships; did you mean 'lorenz" in capfd.readouterr().err
