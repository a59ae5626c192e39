import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diffusion.denoising_error import DenoisingError
from diffusion.registry import make_network
from diffusion.stored_prior import load_prior, read_prior
from system.__main__ import main

NETWORK = {"kind": "mlp", "hidden": 8, "depth": 1, "embedding": 4}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    stated = {"kind": "flow", "event_shape": [3], "data_at": 1, "network": NETWORK}
    (folder / "network.json").write_text(json.dumps(stated))
    torch.manual_seed(0)
    save_file(make_network(NETWORK, (3,)).state_dict(), folder / "network.safetensors")
    return folder


def test_a_prior_is_imported_and_said_what_it_is(source, tmp_path, capfd):
    assert main(["prior", "import", str(source), "--out", str(tmp_path / "prior")]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "It is of kind flow, data_at 1." in out
    assert out.endswith(f"3 numbers, standard deviation 1: {tmp_path / 'prior'}\n")
    prior = load_prior(tmp_path / "prior", 5, "own")
    assert prior.schedule.alpha.tolist() == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])


def test_with_data_the_error_is_measured(source, tmp_path, capfd):
    np.save(tmp_path / "x.npy", 2 * np.random.default_rng(0).standard_normal((64, 3)))
    options = ["--out", str(tmp_path / "prior"), "--data", str(tmp_path / "x.npy"), "--kind", "flow", "--quiet"]
    assert main(["prior", "import", str(source), *options]) == 0
    assert capfd.readouterr().out == ""
    stored = read_prior(tmp_path / "prior")
    assert isinstance(stored.denoising_error, DenoisingError)
    assert stored.data_std == pytest.approx(2.0, rel=0.1)


def test_a_network_of_one_s_own_is_brought_by_a_plug_in(source, tmp_path, monkeypatch, capfd):
    (tmp_path / "a_network_of_mine.py").write_text(
        "from torch import nn\nfrom diffusion.registry import NETWORKS\n"
        "class Mine(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.layer = nn.Linear(3, 3)\n"
        "    def forward(self, state, time):\n        return self.layer(state) + time[:, None]\n"
        "NETWORKS['mine'] = lambda event_shape: Mine()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("diffusion.registry.NETWORKS", dict(__import__("diffusion.registry").registry.NETWORKS))
    stated = {"kind": "edm", "event_shape": [3], "network": {"kind": "mine"}}
    (source / "network.json").write_text(json.dumps(stated))
    weight = torch.arange(9.0).reshape(3, 3)
    save_file({"layer.weight": weight, "layer.bias": torch.zeros(3)}, source / "network.safetensors")
    arguments = ["prior", "import", str(source), "--out", str(tmp_path / "prior"), "--plugins", "a_network_of_mine"]
    assert main(arguments) == 0
    denoiser = load_prior(tmp_path / "prior", 5, "own").denoiser
    state, spread = torch.ones(1, 3), 1.25**0.5  # sigma 1, sigma_data 0.5
    expected = 0.25 / spread**2 * state + 0.5 / spread * (state / spread) @ weight.T
    assert torch.allclose(denoiser(state, torch.ones(1), torch.ones(1)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kind", "edm"], "holds a prior of kind flow, got --kind edm"),
        (["--shape", "4"], "states x of shape [3], got --shape [4]"),
        (["--data", "nothing.npy"], "nothing.npy"),
        (["--data", "nan.npy"], "nan.npy: every number must be finite, got 3 NaN or infinite ones of 12"),
        (["--data", "bytes.npy"], "bytes.npy: expected x [N, *D] as floating-point numbers"),
        (["--data-std", "-1"], "data_std must be positive, got -1.0"),
        (["--shape", "0"], "the shape of x must be of sizes of at least 1, got [0]"),
        (["--plugins", "no_such_module"], "--plugins no_such_module: it cannot be imported"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(source, tmp_path, capfd, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    np.save("nan.npy", np.where(np.arange(12).reshape(4, 3) % 4, 1.0, np.nan))
    np.save("bytes.npy", np.zeros((4, 3), dtype=np.uint8))
    assert main(["prior", "import", str(source), "--out", str(tmp_path / "prior"), *options]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("rtb: error: ")
    assert message in err


def test_the_folder_is_asked_for(source, capfd):
    assert main(["prior", "import", str(source)]) == 2
    assert "--out" in capfd.readouterr().err
    assert main(["prior"]) == 2
    assert "ACTION" in capfd.readouterr().err
