"""Trained priors of instruments: they take the place of the exact ones, and one of other x is refused."""

import warnings

import gymnasium
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from diffusion.denoiser import NetworkDenoiser
from diffusion.denoising_error import DenoisingError
from diffusion.registry import make_denoiser
from diffusion.stored_prior import StoredPrior, save_prior
from envs import make_problem
from envs.data import load_dataset

NETWORK = {"kind": "network", "centred": True, "network": {"kind": "mlp", "hidden": 8, "depth": 1, "embedding": 4}}
FIELD = {"size": 16, "galaxies": 1.0}
CASES = [
    ("xray-spectrum", (24,), {"name": "xray-spectra", "low": 0.5, "high": 7.0}, {}),
    ("cluster-sz-xray", (2, 8), {"name": "cluster-profiles", "redshift": 0.3, "count": 40}, {}),
    ("galaxy-field", (1, 16, 16), {"name": "lognormal-fields", "std": 1.0, "slope": 1.5, "knee": 2.0}, FIELD),
]


@pytest.fixture
def stored(tmp_path):
    """Stores a prior of x of a shape, of a random network, trained on what it says."""

    def stored(shape, data=None):
        torch.manual_seed(0)
        error = DenoisingError(data_std=1.3, log_snr=(-2.0, 0.0, 2.0), mean_squared=(1.6, 0.8, 0.03))
        described = StoredPrior(event_shape=shape, data_std=1.3, denoiser=NETWORK, denoising_error=error, data=data)
        denoiser = make_denoiser(NETWORK, shape, 1.3)
        return str(save_prior(tmp_path / f"prior-{len(shape)}-{shape[-1]}", described, denoiser, "# A card\n"))

    return stored


@pytest.mark.parametrize(("name", "shape", "data", "options"), CASES, ids=[case[0] for case in CASES])
def test_a_trained_prior_takes_the_place_of_the_exact_one(stored, name, shape, data, options):
    folder = stored(shape, data)
    problem = make_problem(name, {**options, "prior": folder, "num_steps": 3})
    assert isinstance(problem.prior.denoiser, NetworkDenoiser) and problem.event_shape == shape
    assert problem.exact == () and problem.num_steps == 3
    exact = make_problem(name, {**options, "num_steps": 3, **({"clusters": 60} if "cluster" in name else {})})
    assert not isinstance(exact.prior.denoiser, NetworkDenoiser)  # the default stays
    value, seen = exact.truth.double(), exact.measurements.double()
    assert torch.equal(problem.likelihood.log_prob(value, seen), exact.likelihood.log_prob(value, seen))
    drawn = problem.prior.sample(1, torch.Generator().manual_seed(0))
    assert torch.equal(problem.truth, drawn)  # the truth is one of its own draws
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*A Box observation space (minimum|maximum) value is -?infinity")
        warnings.filterwarnings("ignore", message=".*recommend using a symmetric and normalized space")
        check_env(gymnasium.make(f"rtb/{name}", prior=folder, num_steps=3, **options).unwrapped)


@pytest.mark.parametrize(("name", "shape", "data", "options"), CASES, ids=[case[0] for case in CASES])
def test_a_prior_of_another_shape_or_name_is_refused(stored, name, shape, data, options):
    folder = stored((5,))
    expected = ", ".join(map(str, shape))
    with pytest.raises(ValueError, match=rf"is of x of shape \[5\], but x of this problem has shape \[{expected}\]"):
        make_problem(name, {**options, "prior": folder, "num_steps": 3})
    with pytest.raises(ValueError, match="no prior named 'digit' ships; did you mean 'digits'"):
        make_problem(name, {**options, "prior": "digit", "num_steps": 3})


@pytest.mark.parametrize(
    ("case", "options", "message"),
    [
        (0, {"low": 0.9}, "was trained with low 0.5, but low of this problem is 0.9"),
        (0, {"high": 6.0}, "was trained with high 7, but high of this problem is 6"),
        (1, {"redshift": 0.1}, "was trained with redshift 0.3, but redshift of this problem is 0.1"),
        (2, {"std": 0.7}, "was trained with std 1, but std of this problem is 0.7"),
        (2, {"slope": 2.0}, "was trained with slope 1.5, but slope of this problem is 2"),
    ],
)
def test_a_prior_of_the_right_shape_and_another_meaning_is_refused(stored, case, options, message):
    name, shape, data, others = CASES[case]
    with pytest.raises(ValueError, match=message):
        make_problem(name, {**others, **options, "prior": stored(shape, data), "num_steps": 3})
    assert make_problem(name, {**others, **options, "prior": stored(shape), "num_steps": 3})  # who says nothing may


def test_held_out_clusters_are_those_of_the_trained_priors_data(stored):
    name, shape, data, _ = CASES[1]
    options = {"truth": "held-out", "image": 3, "num_steps": 3}
    problem = make_problem(name, options | {"prior": stored(shape, data)})
    assert torch.equal(problem.truth, load_dataset("cluster-profiles", count=40).held_out[3:4])
    with pytest.raises(ValueError, match=r"truth held-out needs a prior of cluster-profiles, which .* is not"):
        make_problem(name, options | {"prior": stored(shape)})
