import re

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from safetensors.torch import load_file, save_file

from diffusion.imported.diffusers_pipeline import read_pipeline
from diffusion.imported.importer import save_imported
from diffusion.stored_prior import load_prior


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_stored_prior_of_a_pipeline_makes_the_steps_of_its_scheduler(pipeline, tmp_path, variance):
    DDPMScheduler(num_train_timesteps=20, variance_type=variance).save_pretrained(pipeline / "scheduler")
    folder = tmp_path / "prior"
    save_imported(folder, read_pipeline(pipeline), "somewhere")
    prior = load_prior(folder, 20, "own")
    unet = UNet2DModel.from_pretrained(pipeline / "unet")
    scheduler = DDPMScheduler.from_pretrained(pipeline / "scheduler")
    ours = theirs = prior.sample_base(2, torch.Generator().manual_seed(0))
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    for index in range(19):
        with torch.no_grad():
            output = unet(theirs, 19 - index).sample
        theirs = scheduler.step(output, 19 - index, theirs, generator=generators[0]).prev_sample
        ours = prior.sample_transition(ours, torch.full((2,), index), generators[1])
        assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        last = scheduler.step(unet(theirs, 0).sample, 0, theirs).prev_sample  # without noise
    step = torch.full((2,), 19)
    assert torch.allclose(prior.mean(ours, step, prior.denoised(ours, step)), last, atol=1e-5, rtol=1e-5)
    assert float(prior.std[-1]) == pytest.approx(0.01, rel=1e-3)


def test_a_part_of_the_training_steps_is_a_chain_and_its_ends_are_theirs(pipeline, tmp_path):
    save_imported(tmp_path / "prior", read_pipeline(pipeline), "somewhere")
    prior, whole = (load_prior(tmp_path / "prior", count, "own") for count in (5, 20))
    assert prior.num_steps == 5
    assert prior.alpha[[0, -1]].tolist() == whole.alpha[[0, -1]].tolist()
    assert set(prior.alpha.tolist()) < set(whole.alpha.tolist())
    with pytest.raises(ValueError, match="the training grid has 20 steps, got num_steps 21"):
        load_prior(tmp_path / "prior", 21, "own")


def test_a_pipeline_with_ddim_is_read_with_what_it_says(pipeline):
    DDIMScheduler(prediction_type="v_prediction", clip_sample=False).save_pretrained(pipeline / "scheduler")
    found = read_pipeline(pipeline)
    assert (found.denoiser.prediction, found.denoiser.clip, found.variance) == ("v_prediction", None, "small")
    assert found.event_shape == (2, 8, 8)
    assert "It predicts v_prediction; the estimate of x is not clipped." in found.statements
    clipped = DDIMScheduler(clip_sample_range=2.0, beta_schedule="squaredcos_cap_v2")
    clipped.save_pretrained(pipeline / "scheduler")
    found = read_pipeline(pipeline)
    assert found.denoiser.clip == 2.0
    assert "It predicts epsilon; the estimate of x is clipped to [-2, 2] (clip_sample)." in found.statements
    assert torch.allclose(torch.sigmoid(2 * found.denoiser.levels).float(), clipped.alphas_cumprod, rtol=1e-6)


def test_keys_that_an_old_file_does_not_state_have_the_library_s_defaults(pipeline, edit):
    edit(pipeline / "scheduler" / "scheduler_config.json", clip_sample="gone", prediction_type="gone")
    found = read_pipeline(pipeline)
    assert (found.denoiser.prediction, found.denoiser.clip) == ("epsilon", 1.0)


def test_attention_weights_under_their_old_names_are_read(pipeline):
    path = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    expected = read_pipeline(pipeline).denoiser.state_dict()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {
        re.sub("|".join(map(re.escape, old)), lambda found: old[found[0]], name): value
        for name, value in load_file(path).items()
    }
    assert any("proj_attn" in name for name in weights)
    save_file(weights, path)
    found = read_pipeline(pipeline).denoiser.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_shape_is_asked_for_where_the_network_does_not_state_it(pipeline, edit):
    edit(pipeline / "unet" / "config.json", sample_size=None)
    assert read_pipeline(pipeline, (2, 4, 4)).event_shape == (2, 4, 4)
    with pytest.raises(ValueError, match="does not state its sample_size; give the shape of x: --shape C H W"):
        read_pipeline(pipeline)


def test_weights_that_are_not_those_of_the_config_are_refused_by_name(pipeline, edit):
    path = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    save_file({name: value for name, value in weights.items() if name != "conv_in.bias"}, path)
    with pytest.raises(ValueError, match=r"disagree: 1 missing keys, conv_in\.bias the first"):
        read_pipeline(pipeline)
    save_file(weights | {"conv_in.gain": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=r"disagree: 1 unexpected keys, conv_in\.gain the first"):
        read_pipeline(pipeline)
    save_file(weights | {"conv_in.bias": torch.ones(3)}, path)
    with pytest.raises(ValueError, match=r"conv_in.bias"):
        read_pipeline(pipeline)
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(ValueError, match="diffusers cannot read"):
        read_pipeline(pipeline)


def test_pickled_weights_are_refused_with_the_line_that_converts_them(pipeline):
    path = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.bin is a pickle.*UNet2DModel.*save_pretrained"):
        read_pipeline(pipeline)


def _unet(**changes):
    return lambda pipeline, edit: edit(pipeline / "unet" / "config.json", **changes)


def _scheduler(**changes):
    return lambda pipeline, edit: edit(pipeline / "scheduler" / "scheduler_config.json", **changes)


def _index(**changes):
    return lambda pipeline, edit: edit(pipeline / "model_index.json", **changes)


REFUSED = {
    "another scheduler": (
        lambda pipeline, edit: PNDMScheduler().save_pretrained(pipeline / "scheduler"),
        "unknown scheduler 'PNDMScheduler' in .*; expected DDPMScheduler or DDIMScheduler",
    ),
    "another prediction": (_scheduler(prediction_type="flow"), "unknown prediction_type 'flow'"),
    "other betas": (
        _scheduler(beta_schedule="sigmoid"),
        "unknown beta_schedule 'sigmoid' in .*; expected one of linear",
    ),
    "betas of nobody": (_scheduler(beta_schedule="steep"), "diffusers cannot make the scheduler in .*steep"),
    "learned variance": (_scheduler(variance_type="learned_range"), "unknown variance_type 'learned_range'"),
    "thresholding": (_scheduler(thresholding=True), "asks for dynamic thresholding"),
    "epsilon in pure noise": (_scheduler(rescale_betas_zero_snr=True), "says nothing of x where there is noise alone"),
    "text": (
        _index(unet=["diffusers", "UNet2DConditionModel"]),
        "must be a UNet2DModel, got UNet2DConditionModel: it is conditional, on text",
    ),
    "more parts": (
        _index(text_encoder=["transformers", "CLIPTextModel"]),
        "made of more than an unconditional prior is: text_encoder",
    ),
    "no network": (_index(unet=[None, None]), "must be a UNet2DModel, got None"),
    "class labels": (_unet(num_class_embeds=10), "must not be conditional, but the U-Net is on class labels"),
    "learned times": (
        _unet(time_embedding_type="learned", num_train_timesteps=20),
        "has a table of its time steps",
    ),
    "another embedding": (
        _unet(time_embedding_type="fourier"),
        r"must know its training step by its number \(positional\), got 'fourier'",
    ),
    "no index": (lambda pipeline, edit: (pipeline / "model_index.json").unlink(), "there is no model_index.json in"),
    "no config": (lambda pipeline, edit: (pipeline / "unet" / "config.json").unlink(), "there is no config.json in"),
    "no weights": (
        lambda pipeline, edit: (pipeline / "unet" / "diffusion_pytorch_model.safetensors").unlink(),
        "there are no safetensors in .*unet, which holds config.json",
    ),
    "no JSON": (lambda pipeline, edit: (pipeline / "model_index.json").write_text("{"), "is not JSON"),
    "a list": (
        lambda pipeline, edit: (pipeline / "model_index.json").write_text("[]"),
        "must hold a mapping, got a list",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_pipeline_that_is_no_prior_is_refused_by_name(pipeline, edit, name):
    change, message = REFUSED[name]
    change(pipeline, edit)
    with pytest.raises(ValueError, match=message):
        read_pipeline(pipeline)


def test_a_network_with_other_channels_out_than_in_is_refused(pipeline, unet_config):
    UNet2DModel(**(unet_config | {"out_channels": 4})).save_pretrained(pipeline / "unet")
    with pytest.raises(ValueError, match=r"in_channels 2 and out_channels 4.*twice as many out one that learned its"):
        read_pipeline(pipeline)
