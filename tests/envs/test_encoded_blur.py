"""The network of non-linear blur: that of its authors, on weights that are given."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from envs import make_problem
from envs.operators import EncodedBlur, NonlinearBlurSurrogate
from envs.operators.encoded_blur import BlurNetwork
from envs.problems.images.nonlinear_deblurring import nonlinear_deblurring


def _waves(state):
    """Weights of these names and shapes that can be written down: waves, of the size of a sound initialisation."""
    made = {}
    for number, name in enumerate(sorted(state)):
        count, fan = state[name].numel(), max(state[name][0].numel(), 1)
        wave = torch.sin(1.7 * torch.arange(count, dtype=torch.float64) + number) / (0.5 * fan) ** 0.5
        made[name] = wave.reshape(state[name].shape)
    return made


@pytest.fixture
def blur_weights(tmp_path):
    """A file of a network of width 4 with two and three blocks, as its authors' code names them."""
    path = tmp_path / "blur.safetensors"
    weights = _waves(BlurNetwork(4, 2, 3).state_dict())
    save_file({name: value.float() for name, value in weights.items()} | {"kernel_extractor.x": torch.ones(1)}, path)
    return path


def test_the_blur_of_a_network_is_that_of_its_authors_code(blur_weights):
    operator = EncodedBlur((3, 128, 256), blur_weights)
    assert operator.network.state_dict().keys() >= {
        "feature_extractor.7.conv2.bias",
        "adapter.model.up.1.bias",
        "adapter.model.submodule.submodule.submodule.submodule.down.1.weight",
        "recon_trunk.11.weight",
    }
    network = operator.network.double()
    network.load_state_dict(_waves(network.state_dict()))
    image = 0.5 + 0.5 * torch.sin(0.37 * torch.arange(3 * 128 * 256, dtype=torch.float64)).reshape(1, 3, 128, 256)
    code = 1.2 * torch.sin(torch.arange(64, dtype=torch.float64)).reshape(1, 32, 1, 2)
    change = (network(image, code) - image)[0]
    # By adaptKernel of github.com/VinAIResearch/blur-kernel-space-exploring with these weights, in float64.
    expected = [1.526132890683, -0.136211024291, -1.378398052059, 1.47326051404]
    found = [float(change[place]) for place in ((0, 0, 0), (1, 64, 100), (2, 127, 255), (0, 33, 200))]
    assert found == pytest.approx(expected, abs=1e-9)
    assert float(change.square().mean()) == pytest.approx(1.3241296624963184, rel=1e-9)


def test_the_blur_of_a_network_keeps_to_its_range_and_dtype_and_is_drawn_with_a_seed(blur_weights, generator):
    shape = (3, 128, 128)
    operator, other = (EncodedBlur(shape, blur_weights, seed) for seed in (0, 1))
    value = 0.3 * torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    seen = operator(value)
    assert seen.dtype == torch.float64 and seen.shape == value.shape and float(seen.abs().max()) <= 1
    expected = 2 * operator.network((value.float() + 1) / 2, operator.code) - 1
    assert torch.equal(seen.float(), expected.clamp(-1, 1))
    assert torch.allclose(operator(value[1:]), seen[1:], atol=1e-5)  # one code for all calls
    assert float((other(value) - seen).abs().max()) > 1e-3
    assert operator.code.std().item() == pytest.approx(1.2, rel=0.5)
    assert not [weight for weight in operator.parameters() if weight.requires_grad]
    leaf = value.clone().requires_grad_(True)
    operator(leaf).sum().backward()
    assert float(leaf.grad.abs().max()) > 0


def test_a_network_of_blur_that_cannot_be_is_refused(blur_weights, tmp_path):
    shape = (3, 128, 128)
    for wrong in ((1, 128, 128), (3, 64, 64), (128,)):
        with pytest.raises(ValueError, match=r"takes images \[3, H, W\] with H and W divisible by 128, got \["):
            EncodedBlur(wrong, blur_weights)
    with pytest.raises(ValueError, match=r"there is no file .*gone; the weights .* are GOPRO_wVAE.pth of github.com"):
        EncodedBlur(shape, tmp_path / "gone")
    (tmp_path / "GOPRO_wVAE.pth").write_bytes(b"pickled")
    with pytest.raises(ValueError, match=r"GOPRO_wVAE.pth is a pickle, .* make safetensors of it: python -c"):
        EncodedBlur(shape, tmp_path / "GOPRO_wVAE.pth")
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"has no weights of non-linear blur, expected GOPRO.*; got 1 tensors"):
        EncodedBlur(shape, tmp_path / "other.safetensors")
    weights = load_file(blur_weights)
    del weights["recon_trunk.11.bias"]
    save_file(weights, blur_weights)
    with pytest.raises(ValueError, match=r"1 missing, 'recon_trunk.11.bias' the first"):
        EncodedBlur(shape, blur_weights)


def test_the_problem_takes_the_network_where_its_weights_are_given(blur_weights):
    assert isinstance(nonlinear_deblurring((3, 128, 128), network=str(blur_weights)), EncodedBlur)
    assert isinstance(nonlinear_deblurring((1, 8, 8)), NonlinearBlurSurrogate)
    with pytest.raises(ValueError, match=r"divisible by 128, got \[1, 8, 8\]"):
        make_problem("image-nonlinear-deblurring", {"network": str(blur_weights)})
