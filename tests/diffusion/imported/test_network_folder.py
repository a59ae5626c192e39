import json
import pickle

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from safetensors.torch import load_file, save_file

from diffusion.imported.importer import import_prior, save_imported
from diffusion.imported.network_folder import read_network_folder
from diffusion.registry import make_network
from diffusion.stored_prior import load_prior

MLP = {"kind": "mlp", "hidden": 8, "depth": 1, "embedding": 4}
EDM = {"kind": "edm", "event_shape": [5], "sigma_data": 0.7, "sigma_max": 50.0, "network": MLP}
FLOW = {"kind": "flow", "event_shape": [5], "data_at": 0, "time_scale": 1000.0, "network": MLP}


def _folder(tmp_path, stated, network):
    source = tmp_path / "source"
    source.mkdir()
    (source / "network.json").write_text(json.dumps(stated))
    save_file(network.state_dict(), source / "network.safetensors")
    return source


@pytest.fixture
def mlp():
    torch.manual_seed(0)
    return make_network(MLP, (5,)).requires_grad_(False)


@pytest.mark.parametrize("stated", [EDM, FLOW], ids=["edm", "flow"])
def test_the_stored_prior_gives_the_estimate_of_the_network_that_was_given(tmp_path, mlp, stated):
    found = read_network_folder(_folder(tmp_path, stated, mlp))
    save_imported(tmp_path / "prior", found, "somewhere")
    prior = load_prior(tmp_path / "prior", 6, "own")
    noise = torch.tensor([0.9, 0.5, 0.1])
    state = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    if stated["kind"] == "edm":
        total = (noise**2 + 0.49).sqrt()[:, None]
        output = mlp(state / total, noise.log() / 4)
        expected = 0.49 / total**2 * state + 0.7 * noise[:, None] / total * output
        assert float(prior.sigma[0]) == pytest.approx(50.0)
        assert prior.data_std == 0.7
        alpha = torch.ones(3)
    else:
        expected = state - noise[:, None] * mlp(state, 1000 * noise)
        assert prior.schedule.has_zero_terminal_snr
        alpha = 1 - noise
    assert torch.allclose(prior.denoiser(state, alpha.double(), noise.double()), expected, atol=1e-5)


def test_a_u_net_of_diffusers_is_a_network_under_its_own_names(tmp_path, unet_config):
    torch.manual_seed(0)
    unet = UNet2DModel(**unet_config).requires_grad_(False)
    network = {"kind": "diffusers-unet", "config": unet_config}
    stated = {"kind": "flow", "event_shape": [2, 8, 8], "data_at": 1, "network": network}
    denoiser = read_network_folder(_folder(tmp_path, stated, unet)).denoiser
    state, time = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0.3, 0.8])
    expected = state + (1 - time)[:, None, None, None] * unet(state, time).sample
    assert torch.allclose(denoiser(state, time.double(), 1 - time.double()), expected, atol=1e-5)


def test_the_shape_of_x_is_asked_for_where_the_file_does_not_state_it(tmp_path, mlp):
    stated = {key: value for key, value in EDM.items() if key != "event_shape"}
    source = _folder(tmp_path, stated, mlp)
    assert read_network_folder(source, (5,)).event_shape == (5,)
    with pytest.raises(ValueError, match="does not state event_shape, the shape of x; give it: --shape"):
        read_network_folder(source)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "ddpm"}, "unknown kind 'ddpm' in .*; expected one of edm, flow"),
        ({"sigma_dat": 0.5}, "unknown argument 'sigma_dat' of denoiser 'edm'; did you mean 'sigma_data'"),
        ({"sigma_data": -1.0}, "EDM needs 0 < sigma_min < sigma_max and sigma_data > 0"),
        ({"network": {"kind": "resnet"}}, "unknown kind of network 'resnet'"),
        ({"network": {**MLP, "depth": 2}}, r"network that is stated: 2 missing, 'body.2.bias' the first"),
        ({"network": {**MLP, "hidden": 9}}, r"'head.weight' must be \[5, 9\], got \[5, 8\]|'body.0.weight' must be"),
        ({"network": {**MLP, "kind": "diffusers-unet"}}, "unknown argument 'hidden' of network 'diffusers-unet'"),
        ({"network": {"kind": "diffusers-unet", "config": {}}}, r"needs x of shape \[3, H, W\], got \(5,\)"),
    ],
)
def test_a_file_that_states_no_network_or_another_one_is_refused(tmp_path, mlp, changes, message):
    with pytest.raises(ValueError, match=message):
        read_network_folder(_folder(tmp_path, EDM | changes, mlp))


def test_weights_that_are_missing_unknown_or_damaged_are_refused_by_name(tmp_path, mlp):
    source = _folder(tmp_path, EDM, mlp)
    path = source / "network.safetensors"
    save_file(load_file(path) | {"more": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="1 unknown, 'more' the first"):
        read_network_folder(source)
    path.write_bytes(b"tensors")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        read_network_folder(source)
    path.unlink()
    with pytest.raises(ValueError, match=r"there is no network.safetensors in .*, which holds network.json"):
        read_network_folder(source)
    (source / "network.pth").write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match=r"network.pth is a pickle"):
        read_network_folder(source)


def test_another_kind_than_asked_for_is_refused(tmp_path, mlp):
    source = _folder(tmp_path, FLOW, mlp)
    assert import_prior(source, "flow").description["kind"] == "flow"
    with pytest.raises(ValueError, match="holds a prior of kind flow, got --kind edm"):
        import_prior(source, "edm")
