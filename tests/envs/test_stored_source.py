"""Problems of images over stored priors: grey or in colour, with images of their data set or without."""

import dataclasses

import pytest
import torch

from diffusion.denoising_error import DenoisingError
from diffusion.registry import make_denoiser
from diffusion.stored_prior import StoredPrior, save_prior
from envs import make_problem
from envs.data import load_dataset
from evaluation.figures.images import colour_last
from evaluation.figures.picture import Picture
from evaluation.figures.problem import problem_pictures

MLP = {"kind": "network", "network": {"kind": "mlp", "hidden": 8, "depth": 1, "embedding": 4}}
ERROR = DenoisingError(data_std=0.5, log_snr=(-2.0, 1.0), mean_squared=(0.2, 0.05))


def _saved(folder, shape, data=None):
    stored = StoredPrior(event_shape=shape, data_std=0.5, denoiser=MLP, denoising_error=ERROR, data=data)
    torch.manual_seed(0)
    return str(save_prior(folder, stored, make_denoiser(MLP, shape, 0.5), ""))


def test_the_truth_is_a_held_out_image_of_the_data_set_that_the_prior_states(tmp_path):
    prior = _saved(tmp_path / "p", (1, 8, 8), {"name": "digits"})
    problem = make_problem("image-inpainting", {"prior": prior, "image": 3, "num_steps": 2})
    assert torch.equal(problem.truth, load_dataset("digits").held_out[3:4])
    assert problem.image_shape == (8, 8) and problem.prior.num_steps == 2
    other = make_problem("image-inpainting", {"prior": prior, "truth": "prior", "num_steps": 2})
    assert not torch.equal(other.truth, problem.truth)


def test_without_a_data_set_it_is_a_draw_of_the_prior(tmp_path):
    prior = _saved(tmp_path / "p", (1, 8, 8))
    problem = make_problem("image-denoising", {"prior": prior, "num_steps": 2, "seed": 5})
    expected = problem.prior.sample(1, torch.Generator().manual_seed(5))
    assert torch.equal(problem.truth, expected)
    with pytest.raises(ValueError, match="truth held-out needs a prior that states its data set; take truth prior"):
        make_problem("image-denoising", {"prior": prior, "truth": "held-out"})


def test_data_that_are_not_here_are_named_and_not_needed_for_draws(tmp_path, monkeypatch):
    monkeypatch.delenv("RTB_DATA", raising=False)
    prior = _saved(tmp_path / "p", (1, 32, 32), {"name": "mnist"})
    with pytest.raises(ValueError, match=r"set RTB_DATA .*; or take truth prior, which needs no data"):
        make_problem("image-denoising", {"prior": prior})
    assert make_problem("image-denoising", {"prior": prior, "truth": "prior", "num_steps": 2}).truth.isfinite().all()


@pytest.mark.parametrize("name", ["image-inpainting", "image-deblurring", "image-compressed-sensing"])
def test_a_problem_in_colour_is_shown_in_colour(tmp_path, name):
    prior = _saved(tmp_path / "p", (3, 8, 8))
    problem = make_problem(name, {"prior": prior, "num_steps": 2})
    assert problem.image_shape == (3, 8, 8)
    shown = problem.measurement_image(problem.measurements[0])
    assert shown.shape == (3, 8, 8)
    (picture,) = _pictures(problem)
    assert isinstance(picture, Picture) and picture.png.startswith(b"\x89PNG")


def _pictures(problem):
    @dataclasses.dataclass
    class Nothing:
        class_probabilities = None

    samples = problem.prior.sample(4, torch.Generator().manual_seed(0))
    return problem_pictures(problem, 0, samples, samples + 0.1, Nothing())


def test_colours_go_last_and_grey_loses_its_channel():
    images = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).numpy()
    assert colour_last(images).shape == (2, 4, 5, 3) and colour_last(images)[1, 2, 3, 0] == images[1, 0, 2, 3]
    assert (colour_last(images[:, :1]) == images[:, 0]).all()


def test_priors_that_are_none_of_images_are_refused_by_name(tmp_path):
    prior = _saved(tmp_path / "p", (5,))
    with pytest.raises(
        ValueError, match=r"a prior over \[C, H, W\] with one channel or three, but x of .* shape \[5\]"
    ):
        make_problem("image-denoising", {"prior": prior})
    with pytest.raises(ValueError, match="unknown prior 'digit-kde'; did you mean 'digits-kde'"):
        make_problem("image-denoising", {"prior": "digit-kde"})
    with pytest.raises(ValueError, match=r"nowhere/p does not exist"):
        make_problem("image-denoising", {"prior": "nowhere/p"})
