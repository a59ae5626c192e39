import json

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler


def edited(path, **changes):
    """Changes keys of a JSON file; None takes one away."""
    tree = json.loads(path.read_text())
    tree.update(changes)
    path.write_text(json.dumps({key: value for key, value in tree.items() if value != "gone"}))


@pytest.fixture
def edit():
    return edited


@pytest.fixture
def unet_config():
    return {
        "sample_size": 8,
        "in_channels": 2,
        "out_channels": 2,
        "block_out_channels": [8, 8],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    }


@pytest.fixture
def pipeline(tmp_path, unet_config):
    """A DDPM pipeline as diffusers saves it, of random weights."""
    source = tmp_path / "pipeline"
    torch.manual_seed(0)
    UNet2DModel(**unet_config).save_pretrained(source / "unet")
    DDPMScheduler(num_train_timesteps=20).save_pretrained(source / "scheduler")
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": "0.40.0",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    (source / "model_index.json").write_text(json.dumps(index))
    return source


@pytest.fixture
def latent_pipeline(pipeline):
    """The same with an autoencoder."""
    torch.manual_seed(1)
    AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=2,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.3,
        shift_factor=0.1,
    ).save_pretrained(pipeline / "vae")
    edited(pipeline / "model_index.json", _class_name="LDMPipeline", vae=["diffusers", "AutoencoderKL"])
    return pipeline
