import json
import re
import shlex
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from diffusion.denoising_error import DenoisingError
from diffusion.imported.importer import import_prior, save_imported
from diffusion.imported.variance import SamplerVariance
from diffusion.network import MLP
from diffusion.registry import make_denoiser
from diffusion.stored_prior import StoredPrior, load_prior, read_prior, save_prior


def test_the_card_says_what_was_found_and_the_prior_reads_back(pipeline, tmp_path):
    stored = save_imported(tmp_path / "faces", import_prior(pipeline), "google/faces")
    assert read_prior(tmp_path / "faces") == stored
    assert stored.denoising_error == SamplerVariance(name="small", data_std=1.0)
    card = (tmp_path / "faces" / "README.md").read_text()
    assert card.startswith("# faces\n\nImported from `google/faces` (kind diffusers).")
    for said in (
        "20 steps of a DDPMScheduler, beta_schedule linear",
        "clipped to [-1, 1]",
        "fixed_small",
        "not measured",
    ):
        assert said in card


def test_with_data_the_error_is_measured_and_the_scale_is_theirs(pipeline, tmp_path):
    clean = 0.5 * torch.randn(16, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    stored = save_imported(tmp_path / "prior", import_prior(pipeline), "somewhere", clean=clean)
    assert stored.data_std == pytest.approx(0.5, rel=0.05)
    assert isinstance(stored.denoising_error, DenoisingError)
    assert "measured on 16 x" in (tmp_path / "prior" / "README.md").read_text()
    prior = load_prior(tmp_path / "prior", 8, "vp-cosine-zero-snr")
    assert float(prior.sigma[0]) == pytest.approx(stored.data_std)
    with pytest.raises(ValueError, match=r"the data must be \[N, 2, 8, 8\], got \[3, 8, 8\]"):
        save_imported(tmp_path / "prior", import_prior(pipeline), "somewhere", clean=torch.ones(3, 8, 8))


def test_a_prior_that_was_not_imported_has_no_schedule_of_its_own(tmp_path):
    description = {"kind": "network", "network": {"kind": "mlp", "hidden": 4, "depth": 1, "embedding": 4}}
    stored = StoredPrior(
        event_shape=(2,),
        data_std=1.0,
        denoiser=description,
        denoising_error=SamplerVariance(name="large", data_std=1.0),
    )
    save_prior(tmp_path / "prior", stored, make_denoiser(description, (2,), 1.0), "")
    with pytest.raises(ValueError, match="schedule 'own' is for imported priors, which were trained on one"):
        load_prior(tmp_path / "prior", 4, "own")


def test_a_source_that_is_none_is_refused_with_what_was_expected(tmp_path):
    with pytest.raises(ValueError, match=r"expected a folder to import a prior from, but .* does not exist"):
        import_prior(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has none of the files that a source is known by: model_index.json \(diffus"):
        import_prior(tmp_path)
    with pytest.raises(ValueError, match=r"is known by: network.json \(edm\)$"):
        import_prior(tmp_path, "edm")
    with pytest.raises(
        ValueError, match="unknown kind of source 'karras'; expected one of diffusers, edm, flow, score"
    ):
        import_prior(tmp_path, "karras")
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(ValueError, match=r"expected a folder to import a prior from, but .*json is a file"):
        import_prior(tmp_path / "model.json")


@pytest.mark.parametrize(
    "changes",
    [{"sigma_data": None}, {"event_shape": 3}, {"network": "mlp"}, {"sigma_min": "small"}, {"network": None}],
    ids=str,
)
def test_a_value_of_another_type_is_refused_with_the_file_it_is_in(tmp_path, changes):
    stated = {"kind": "edm", "event_shape": [3], "sigma_data": 0.5, "network": {"kind": "mlp", "hidden": 4}}
    (tmp_path / "network.json").write_text(json.dumps(stated | changes))
    with pytest.raises(ValueError, match=r"network\.json.* of another type|cannot make denoiser 'edm'"):
        import_prior(tmp_path)


def test_pickles_are_refused_by_name_with_a_way_out(tmp_path):
    (tmp_path / "edm-ffhq.pkl").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"edm-ffhq.pkl is a pickle, .*NVlabs/edm, python -c .*network.json of kind edm"
    ):
        import_prior(tmp_path / "edm-ffhq.pkl")
    with pytest.raises(ValueError, match=r"edm-ffhq.pkl is a pickle"):
        import_prior(tmp_path)


def test_the_line_that_converts_a_state_dict_does(tmp_path):
    weights = MLP(3, 3, hidden=4).state_dict()
    torch.save(weights, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="is a pickle") as refusal:
        import_prior(tmp_path / "last.pt")
    line = re.search(r"make safetensors of it: (.*)$", str(refusal.value))[1]
    subprocess.run([sys.executable, *shlex.split(line)[1:]], check=True)
    found = load_file(tmp_path / "last.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
