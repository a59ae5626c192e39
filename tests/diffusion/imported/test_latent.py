import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from diffusion.imported.importer import import_prior, save_imported
from diffusion.imported.latent import load_decoder
from diffusion.stored_prior import load_prior


def test_the_prior_lives_in_the_latent_space_and_the_decoder_is_kept_beside_it(latent_pipeline, tmp_path):
    found = import_prior(latent_pipeline)
    assert any("x is a latent: images are decoder(x / 0.3 + 0.1)" in line for line in found.statements)
    save_imported(tmp_path / "prior", found, "somewhere")
    prior, decoder = load_prior(tmp_path / "prior", 4, "own"), load_decoder(tmp_path / "prior")
    assert prior.event_shape == (2, 8, 8)
    assert (decoder.event_shape, decoder.measurement_shape) == ((2, 8, 8), (1, 16, 16))
    autoencoder = AutoencoderKL.from_pretrained(latent_pipeline / "vae")
    latent = prior.sample_base(3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = autoencoder.decode(latent / 0.3 + 0.1).sample
    assert decoder(latent).shape == (3, 1, 16, 16)
    assert torch.allclose(decoder(latent), expected, atol=1e-6)


def test_the_decoder_is_frozen_and_gradients_go_through_it(latent_pipeline, tmp_path):
    save_imported(tmp_path / "prior", import_prior(latent_pipeline), "somewhere")
    decoder = load_decoder(tmp_path / "prior")
    assert not any(parameter.requires_grad for parameter in decoder.parameters())
    latent = torch.randn(1, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda value: decoder.double()(value)[..., 3, 3], latent, fast_mode=True)


def test_a_prior_without_a_decoder_says_so(pipeline, tmp_path):
    save_imported(tmp_path / "prior", import_prior(pipeline), "somewhere")
    with pytest.raises(ValueError, match="has no vae folder: its prior is not one of a latent"):
        load_decoder(tmp_path / "prior")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "VQModel"}, "must be an AutoencoderKL, got VQModel in .*; its codebook has no gradient"),
        ({"latents_mean": [0.0, 1.0]}, r"normalises every channel of the latent \(latents_mean\)"),
    ],
)
def test_other_autoencoders_are_refused_by_name(latent_pipeline, edit, changes, message):
    edit(latent_pipeline / "vae" / "config.json", **changes)
    with pytest.raises(ValueError, match=message):
        import_prior(latent_pipeline)


def test_a_latent_of_other_channels_than_the_network_s_is_refused(latent_pipeline):
    AutoencoderKL(latent_channels=4, block_out_channels=(32,)).save_pretrained(latent_pipeline / "vae")
    with pytest.raises(ValueError, match="the U-Net's x has 2 channels, the autoencoder's latent 4"):
        import_prior(latent_pipeline)


def test_a_pickled_autoencoder_is_refused_with_the_line_that_converts_it(latent_pipeline):
    path = latent_pipeline / "vae" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"is a pickle.*import AutoencoderKL as M"):
        import_prior(latent_pipeline)
