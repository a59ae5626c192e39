"""Priors at rest: what is stored comes back, and what is not a prior is refused with what is wrong."""

import json
import re
from pathlib import Path

import pytest
import torch
from hatchling.builders.wheel import WheelBuilder
from safetensors.torch import load_file, save_file
from torch import nn

from diffusion.denoising_error import DenoisingError
from diffusion.registry import NETWORKS, make_denoiser, make_network
from diffusion.schedule import make_schedule
from diffusion.stored_prior import (
    StoredPrior,
    StoredPriorError,
    load_denoiser,
    load_prior,
    prior_names,
    read_prior,
    save_prior,
)

MLP = {"kind": "network", "network": {"kind": "mlp", "hidden": 8, "depth": 2, "embedding": 4}}
CENTRED = MLP | {"centred": True}
UNET = {"kind": "network", "network": {"kind": "unet", "channels": [8, 8], "groups": 4}}
ERROR = DenoisingError(data_std=0.7, log_snr=(-2.0, 1.0), mean_squared=(0.4, 0.05))


def _stored(description, shape=(1, 4, 4)):
    return StoredPrior(
        event_shape=shape, data_std=0.7, denoiser=description, denoising_error=ERROR, value_range=(-1.0, 1.0)
    )


@pytest.fixture
def folder(tmp_path):
    stored = _stored(MLP)
    torch.manual_seed(3)
    return save_prior(tmp_path / "p", stored, make_denoiser(MLP, (1, 4, 4), 0.7), "# A card\n")


@pytest.mark.parametrize(("description", "shape"), [(MLP, (1, 4, 4)), (CENTRED, (5,)), (UNET, (2, 4, 4))])
def test_a_stored_denoiser_comes_back_bit_for_bit_frozen_and_leaves_the_random_stream_alone(
    tmp_path, generator, description, shape
):
    torch.manual_seed(1)
    denoiser = make_denoiser(description, shape, 0.7)
    stored = _stored(description, shape)
    before = torch.get_rng_state()
    folder = save_prior(tmp_path / "p", stored, denoiser, "# A card\n")
    loaded = load_denoiser(folder)
    assert torch.equal(torch.get_rng_state(), before)
    state, alpha, sigma = torch.randn(3, *shape, generator=generator), torch.rand(3), torch.rand(3)
    denoiser.requires_grad_(False).eval()  # a convolution that wants gradients may differ in its last bit
    assert torch.equal(loaded(state, alpha, sigma), denoiser(state, alpha, sigma))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert read_prior(folder) == stored
    assert (folder / "README.md").read_text() == "# A card\n"


def test_a_loaded_prior_is_a_chain_on_the_schedule_asked_for_with_the_stored_errors(folder):
    prior = load_prior(folder, num_steps=7, schedule="ve")
    expected = make_schedule("ve", 7, scale=0.7)
    assert torch.equal(prior.schedule.sigma, expected.sigma)
    assert prior.event_shape == (1, 4, 4) and prior.data_std == 0.7
    assert torch.equal(prior.uncertainty, ERROR(expected.alpha[:-1], expected.sigma[:-1]).sqrt())
    assert torch.equal(load_prior(folder, schedule=expected).schedule.sigma, expected.sigma)
    assert load_prior(str(folder)).num_steps == 50


def test_a_prior_is_replaced_and_a_folder_that_is_none_is_not(folder, tmp_path):
    denoiser = load_denoiser(folder)
    nn.init.ones_(denoiser.network.head.bias)
    save_prior(folder, read_prior(folder), denoiser, "# Newer\n")
    assert float(load_denoiser(folder).network.head.bias.mean()) == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
    (tmp_path / "thesis").mkdir()
    with pytest.raises(StoredPriorError, match="exists and is not a prior"):
        save_prior(tmp_path / "thesis", read_prior(folder), denoiser, "")


def test_a_denoiser_that_its_description_does_not_build_is_not_saved(tmp_path):
    other = {"kind": "network", "network": MLP["network"] | {"hidden": 9}}
    with pytest.raises(
        StoredPriorError, match=re.escape("'network.body.0.weight' of the denoiser to save has shape [8")
    ):
        save_prior(tmp_path / "p", _stored(other), make_denoiser(MLP, (1, 4, 4), 0.7), "")
    broken = make_denoiser(MLP, (1, 4, 4), 0.7)
    nn.init.constant_(broken.network.head.bias, float("nan"))
    with pytest.raises(StoredPriorError, match=r"'network.head.bias' is not finite"):
        save_prior(tmp_path / "p", _stored(MLP), broken, "")
    assert not (tmp_path / "p").exists()


def _without(name):
    def change(folder):
        (folder / name).unlink()

    return change


def _described(**changes):
    def change(folder):
        tree = json.loads((folder / "prior.json").read_text())
        (folder / "prior.json").write_text(json.dumps(tree | changes))

    return change


def _weights(change):
    def changed(folder):
        path = folder / "weights.safetensors"
        weights = load_file(path)
        change(weights)
        save_file(weights, path)

    return changed


def _pickled(folder):
    (folder / "weights.safetensors").rename(folder / "weights.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("prior.json"), "p has no prior.json"),
        (_without("weights.safetensors"), "has no weights.safetensors"),
        (_pickled, "weights.pt may hold a pickle"),
        (_described(format=2), "format 2, this version reads 1"),
        (_described(denoiser={"kind": "netwrok"}), "unknown kind of denoiser 'netwrok' .*; did you mean 'network'?"),
        (_described(denoiser=MLP | {"network": {"kind": "mpl"}}), "unknown kind of network 'mpl' .*did you mean 'mlp'"),
        (_described(denoiser={}), "a denoiser needs a kind"),
        (_described(denoiser=MLP | {"hiden": 3}), "unknown argument 'hiden' of denoiser 'network'"),
        (_described(denoiser={"kind": "network"}), "cannot make denoiser 'network': .*missing 1 required"),
        (_described(data_std=-1.0), "data_std must be positive, got -1.0"),
        (_described(event_shape=None), "a value in it has the wrong type"),
        (
            _described(event_shape=[1, 4, 5]),
            r"'network.body.0.weight' .* has shape \[8, 20\], .* for \[8, 24\]",
        ),
        (_weights(lambda weights: weights.pop("network.head.bias")), "has no weight 'network.head.bias', \\[16\\]"),
        (_weights(lambda weights: weights.update(extra=torch.ones(1))), "has a weight 'extra' that a denoiser"),
        (lambda folder: (folder / "prior.json").write_text("{"), "it is not JSON"),
        (lambda folder: (folder / "prior.json").write_text('{"format": 1}'), "it has no 'data_std'"),
        (lambda folder: (folder / "weights.safetensors").write_bytes(b"no"), "cannot read .*weights.safetensors"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(folder, change, message):
    change(folder)
    with pytest.raises(StoredPriorError, match=message):
        load_prior(folder)


def test_what_is_not_a_folder_is_named(folder, tmp_path, monkeypatch):
    with pytest.raises(StoredPriorError, match="nowhere does not exist"):
        load_prior(tmp_path / "nowhere")
    with pytest.raises(StoredPriorError, match=r"weights.safetensors is a file"):
        load_prior(folder / "weights.safetensors")
    with pytest.raises(StoredPriorError, match=r"edm.pth may hold a pickle"):
        load_prior(tmp_path / "edm.pth")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoredPriorError, match=r"no prior named 'p' ships; for the folder of that name say ./p"):
        load_prior("p")
    assert load_prior("./p", num_steps=2).num_steps == 2


def test_a_network_of_ones_own_is_a_kind_once_it_is_registered(tmp_path, monkeypatch, generator):
    class Shift(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(size))

        def forward(self, value, level):
            return value * self.shift

    monkeypatch.setitem(NETWORKS, "shift", lambda event_shape, *, gain=1.0: Shift(event_shape))
    description = {"kind": "network", "network": {"kind": "shift", "gain": 2.0}}
    folder = save_prior(tmp_path / "p", _stored(description), make_denoiser(description, (1, 4, 4), 0.7), "")
    assert load_prior(folder, num_steps=3).denoiser.network.shift.shape == (1, 4, 4)
    monkeypatch.delitem(NETWORKS, "shift")
    with pytest.raises(StoredPriorError, match=r"unknown kind of network 'shift' .one of your own has to be imported"):
        load_prior(folder)


def test_a_unet_names_the_shapes_it_takes():
    with pytest.raises(ValueError, match=r"3 levels needs x of shape \[C, H, W\] .* divisible by 4, got \(1, 6, 8\)"):
        make_network({"kind": "unet"}, (1, 6, 8))


def test_every_prior_that_ships_loads_has_a_card_and_is_in_the_wheel():
    root = Path(__file__).parents[2]
    builder = WheelBuilder(str(root))
    shipped = {entry.relative_path for entry in builder.recurse_included_files()}
    for name in prior_names():
        assert load_prior(name, num_steps=3).num_steps == 3
        for file in ("prior.json", "weights.safetensors", "README.md"):
            assert f"diffusion/priors/{name}/{file}" in shipped
        assert sum(path.stat().st_size for path in (root / "diffusion" / "priors" / name).iterdir()) <= 5_000_000
