"""Against the package score_models itself, where it is installed: pip install --no-deps score_models torch-ema."""

import importlib.util

import pytest
import torch

from diffusion.imported.score_model import NETWORKS, ScoreModelDenoiser, score_model_denoiser

installed = pytest.mark.skipif(
    importlib.util.find_spec("score_models") is None,
    reason="score_models is not installed, nor one of our dependencies",
)
SDES = {
    "ve": {"sigma_min": 0.01, "sigma_max": 40.0},
    "vp": {"beta_min": 0.1, "beta_max": 18.0, "epsilon": 1e-4},
}
NETS = {
    "mlp": ({"dimensions": 5, "units": 16, "layers": 2}, (5,), torch.float64),
    "ddpm": ({"channels": 1, "nf": 8, "ch_mult": [1, 1], "num_res_blocks": 1}, (1, 8, 8), torch.float64),
    # Its filters are constants in float32.
    "ncsnpp": ({"channels": 1, "nf": 8, "ch_mult": [1, 1], "num_res_blocks": 1}, (1, 8, 8), torch.float32),
}


def _both(architecture, sde):
    from score_models import ScoreModel

    arguments, _, dtype = NETS[architecture]
    torch.manual_seed(0)
    denoiser = score_model_denoiser((), 1.0, architecture=architecture, arguments=arguments, sde=sde, **SDES[sde]).to(
        dtype
    )
    model = ScoreModel(denoiser.network.network, sde=sde, T=1.0, device="cpu", **SDES[sde])
    return denoiser.eval().requires_grad_(False), model.eval()


@installed
@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("architecture", NETS)
def test_the_score_is_that_of_the_package_at_every_level(architecture, sde):
    denoiser, model = _both(architecture, sde)
    _, shape, dtype = NETS[architecture]
    time = torch.linspace(0.02, 1.0, 12, dtype=dtype)
    alpha, sigma = model.sde.marginal_prob_scalars(time)
    wide = (-1, *[1] * len(shape))
    noise = torch.randn(12, *shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    state = (alpha + sigma).view(wide) * noise
    with torch.no_grad():
        theirs = (state + sigma.view(wide).square() * model.score(time, state)) / alpha.view(wide)
    within = 1e-9 if dtype == torch.float64 else 1e-5
    assert torch.allclose(denoiser(state, alpha, sigma), theirs, rtol=within, atol=within)


@pytest.mark.parametrize("sde", SDES)
def test_times_and_levels_are_those_of_the_sde(sde):
    denoiser = ScoreModelDenoiser(torch.nn.Identity(), sde, final_time=0.9, **SDES[sde])
    time = torch.linspace(0.01, 0.9, 9, dtype=torch.float64)
    level = torch.tensor([denoiser.log_snr_at(float(value)) for value in time], dtype=torch.float64)
    own = denoiser.own_level(level)
    assert torch.allclose(own.time, time, rtol=1e-10)
    if sde == "ve":
        assert torch.allclose(own.sigma, 0.01 * 4000 ** (time / 0.9), rtol=1e-10)
    else:
        assert torch.allclose(own.alpha, (-0.25 * 17.9 * time**2 - 0.05 * time).exp(), rtol=1e-10)
    assert torch.allclose((own.alpha / own.sigma).log(), level, rtol=1e-9, atol=1e-9)


@installed
def test_fixed_frequencies_stay_fixed_where_all_parameters_are_trained():
    denoiser = score_model_denoiser(
        (), 1.0, architecture="mlp", arguments=NETS["mlp"][0], sde="ve", **SDES["ve"]
    ).requires_grad_(True)
    assert "network.network.all_modules.0.W" in dict(denoiser.named_buffers())
    assert "network.network.all_modules.0.W" not in dict(denoiser.named_parameters())


def test_a_package_that_is_missing_is_named_with_how_to_install_it(monkeypatch):
    def missing(name):
        raise ImportError("No module named 'score_models'")

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(ValueError, match=r"could not be imported.*pip install --no-deps score_models torch-ema"):
        score_model_denoiser((), 1.0, architecture="mlp", arguments=NETS["mlp"][0], sde="ve", **SDES["ve"])


@pytest.mark.parametrize(
    ("architecture", "arguments", "message"),
    [
        ("resnet", {}, f"unknown network 'resnet' of score_models; expected one of {', '.join(NETWORKS)}"),
        ("mlp", {"conditioning": ["Input"]}, r"must not be conditional, .* conditioning = \['Input'\]"),
        ("ncsnpp", {"condition": ["vector"]}, r"must not be conditional, .* condition = \['vector'\]"),
        ("mlp", {"nn_is_energy": True}, "is an energy"),
    ],
)
def test_networks_that_are_no_score_of_x_are_refused(architecture, arguments, message):
    with pytest.raises(ValueError, match=message):
        score_model_denoiser((), 1.0, architecture=architecture, arguments=arguments, sde="ve", **SDES["ve"])


@pytest.mark.parametrize(
    ("sde", "options", "message"),
    [
        ("tsve", {}, "expected the SDE 've' or 'vp' of score_models, got 'tsve'"),
        ("ve", {"sigma_min": 1.0}, "0 < sigma_min < sigma_max, got 1.0 and 0.0"),
        ("vp", {"beta_min": 1.0}, "0 < beta_min < beta_max, got 1.0 and 0.0"),
        ("vp", {**SDES["vp"], "epsilon": 2.0}, "times 0 < epsilon < T, got 2.0 and 1.0"),
        ("vp", {**SDES["vp"], "epsilon": 0.0}, "times 0 < epsilon < T, got 0.0 and 1.0"),
        ("ve", {**SDES["ve"], "final_time": 0.0}, "times 0 <= epsilon < T, got 0.0 and 0.0"),
    ],
)
def test_sdes_that_are_none_are_refused(sde, options, message):
    with pytest.raises(ValueError, match=message):
        ScoreModelDenoiser(torch.nn.Identity(), sde, **options)
