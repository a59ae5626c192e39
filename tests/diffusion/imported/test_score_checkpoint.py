"""Checkpoints as score_models writes them; reading one needs the package."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import save_file

from diffusion.imported.importer import import_prior, save_imported
from diffusion.imported.score_checkpoint import read_score_checkpoint
from diffusion.stored_prior import load_prior

installed = pytest.mark.skipif(
    importlib.util.find_spec("score_models") is None,
    reason="score_models is not installed, nor one of our dependencies",
)
MLP = {
    "dimensions": 3,
    "units": 8,
    "layers": 2,
    "sde": "ve",
    "sigma_min": 0.01,
    "sigma_max": 20.0,
    "T": 1.0,
    "model_architecture": "MLP",
}
DDPM = {"channels": 1, "dimensions": 2, "nf": 8, "ch_mult": [1, 1], "num_res_blocks": 1, "model_architecture": "DDPM"}


def _checkpoint(tmp_path, stated, number=7):
    """(folder, model) of the package's own."""
    from score_models import DDPM as Net
    from score_models import MLP as Perceptron
    from score_models import ScoreModel

    torch.manual_seed(number)
    network = (Perceptron if stated["model_architecture"] == "MLP" else Net)(**stated)
    options = {key: stated[key] for key in ("sigma_min", "sigma_max", "beta_min", "beta_max", "T") if key in stated}
    model = ScoreModel(network, sde=stated["sde"], device="cpu", **options).eval()
    folder = tmp_path / "checkpoint"
    folder.mkdir(exist_ok=True)
    (folder / "model_hparams.json").write_text(json.dumps(stated | model.hyperparameters))
    save_file(network.state_dict(), folder / f"checkpoint_1.0000e-01_{number:03d}.safetensors")
    return folder, model


@installed
@pytest.mark.parametrize(
    ("stated", "shape"),
    [
        (MLP, (3,)),
        (DDPM | {"sde": "vp", "beta_min": 0.1, "beta_max": 20.0, "T": 1.0}, (1, 8, 8)),
        (DDPM | {"sde": "ve", "sigma_min": 0.01, "sigma_max": 5.0, "T": 1.0}, (1, 8, 8)),
    ],
    ids=["mlp-ve", "ddpm-vp", "ddpm-ve"],
)
def test_the_stored_prior_has_the_score_of_the_package_along_its_own_times(tmp_path, stated, shape):
    folder, model = _checkpoint(tmp_path, stated)
    save_imported(tmp_path / "prior", import_prior(folder, shape=shape), "somewhere")
    prior = load_prior(tmp_path / "prior", 9, "own")
    time = torch.linspace(1.0, model.sde.epsilon, 9)
    alpha, sigma = model.sde.marginal_prob_scalars(time)
    assert torch.allclose(prior.alpha.float(), alpha, rtol=1e-4)
    assert torch.allclose(
        prior.sigma.float(), sigma, rtol=1e-2 if stated["sde"] == "vp" else 1e-4
    )  # 1 - e^-L at L 1e-6
    state = (alpha + sigma).view(-1, *[1] * len(shape)) * torch.randn(9, *shape)
    rows = slice(0, 8) if stated["sde"] == "vp" else slice(0, 9)
    with torch.no_grad():
        score = model.score(time, state)
    for row in range(9)[rows]:
        expected = (state[row] + sigma[row] ** 2 * score[row]) / alpha[row]
        found = prior.denoised(state[row : row + 1], torch.tensor([row]))[0]
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(state[row].abs().max() / alpha[row]))


@installed
def test_the_newest_checkpoint_is_read_and_one_saved_with_its_wrapper_too(tmp_path):
    folder, _ = _checkpoint(tmp_path, MLP, number=9)
    _, newest = _checkpoint(tmp_path, MLP, number=10)
    found = read_score_checkpoint(folder).denoiser.network.network.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in newest.model.state_dict().items())
    wrapped = {f"model.{name}": value + 1 for name, value in found.items()}
    save_file(wrapped, folder / "checkpoint_1e-02_011.safetensors")
    again = read_score_checkpoint(folder).denoiser.network.network.state_dict()
    assert all(torch.equal(value + 1, again[name]) for name, value in found.items())


@installed
def test_weights_of_another_network_are_refused_by_name(tmp_path):
    folder, _ = _checkpoint(tmp_path, MLP)
    (folder / "model_hparams.json").write_text(json.dumps(MLP | {"layers": 4}))
    with pytest.raises(ValueError, match="not those of the network that is stated: 4 missing"):
        read_score_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "shape", "message"),
    [
        ({"sde": "tsve"}, None, "unknown SDE 'tsve' in .*; expected ve or vp"),
        ({"sde": "gone", "t_star": 0.3}, None, "unknown SDE 'tsve'"),
        ({"conditioning": ["input"]}, None, "must not be conditional"),
        (
            {"model_architecture": "DDPM"},
            None,
            "does not store the shape of x; give it: --shape 1 and 3 sizes, got nothing",
        ),
        ({"model_architecture": "DDPM", "dimensions": 2}, (2, 8, 8), r"--shape 1 and 2 sizes, got \[2, 8, 8\]"),
        ({}, (4,), r"states x of shape \[3\], got --shape \[4\]"),
        ({}, None, r"checkpoint_2\.pt is a pickle.*python -c \"import sys, torch.*checkpoint_2\.pt"),
    ],
)
def test_a_checkpoint_that_is_no_prior_is_refused_by_name(tmp_path, changes, shape, message):
    stated = {key: value for key, value in (MLP | changes).items() if value != "gone"}
    (tmp_path / "model_hparams.json").write_text(json.dumps(stated))
    for number in (1, 2):
        (tmp_path / f"checkpoint_{number}.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        read_score_checkpoint(tmp_path, shape)


def test_a_folder_without_checkpoints_says_so(tmp_path):
    (tmp_path / "model_hparams.json").write_text(json.dumps(MLP))
    with pytest.raises(ValueError, match=r"there is no checkpoint\*\.safetensors in"):
        read_score_checkpoint(tmp_path)
