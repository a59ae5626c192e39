"""Galaxies on a lognormal field: counts are Poisson, the density is the published one, files are read or refused."""

import logging
import math

import numpy as np
import pytest
import torch
from scipy import stats

from envs import make_problem
from envs.operators import Lognormal
from envs.problems.galaxy_field import survey

SMALL = {"size": 8, "num_steps": 4}


def test_the_likelihood_is_that_of_poisson_counts_where_the_survey_has_been(generator):
    problem = make_problem("galaxy-field", {**SMALL, "galaxies": 3.0, "bias": 2.0, "std": 0.7})
    value = 0.7 * torch.randn(5, 1, 8, 8, generator=generator, dtype=torch.float64)
    counts = problem.likelihood.sample(value, generator)
    selection = survey(8).numpy()
    rate = 3.0 * selection * np.exp(value[:, 0].numpy() - 0.7**2 / 2) ** 2
    expected = stats.poisson(rate[:, selection > 0]).logpmf(counts.numpy()).sum(1)
    assert problem.likelihood.log_prob(value, counts).numpy() == pytest.approx(expected, rel=1e-9)
    gradient = np.zeros((5, 8, 8))
    gradient[:, selection > 0] = 2.0 * (counts.numpy() - rate[:, selection > 0])
    assert problem.likelihood.gradient(value, counts)[:, 0].numpy() == pytest.approx(gradient, rel=1e-6, abs=1e-9)


def test_the_density_has_the_mean_and_the_variance_of_a_lognormal_one(generator):
    """E (1 + delta)^b = exp(b (b - 1) s^2 / 2), and Var delta = exp(s^2) - 1."""
    field = 0.6 * torch.randn(400_000, 1, generator=generator, dtype=torch.float64)
    density = Lognormal((1,), 0.6)(field)
    biased = Lognormal((1,), 0.6, 2.0)(field)
    spread = math.exp(0.36) - 1
    assert float(density.mean()) == pytest.approx(1, abs=4 * math.sqrt(spread / 400_000))
    assert float(density.var()) == pytest.approx(spread, rel=0.02)
    assert float(biased.mean()) == pytest.approx(math.exp(0.36), rel=4 * float(biased.std()) / math.sqrt(400_000))
    with pytest.raises(ValueError, match="std must be positive and finite and bias finite, got 0"):
        Lognormal((1,), 0)


def test_the_survey_has_a_hole_and_cells_of_it_have_no_measurement():
    problem = make_problem("galaxy-field", {"size": 32, "num_steps": 2})
    selection = survey(32)
    assert 0.02 < float((selection == 0).double().mean()) < 0.07 and 0.3 < float(selection[selection > 0].min()) < 0.35
    assert problem.measurements.shape == (1, int((selection > 0).sum()))
    picture = problem.measurement_image(problem.measurements[0])
    assert bool((picture.isnan() == (selection == 0)).all())
    assert float(picture[~picture.isnan()].sum()) == float(problem.measurements.sum())


def test_simulated_truths_are_of_the_prior_and_their_residuals_of_poisson_noise():
    """Pearson's residuals of 60 truths: the mean square is 1, its error from the spread between them."""
    squares = []
    for seed in range(60):
        problem = make_problem("galaxy-field", {"size": 8, "num_steps": 2, "seed": seed})
        residual = problem.likelihood.standardised(problem.truth.double(), problem.measurements)
        squares.append(float(residual.square().mean()))
    assert np.mean(squares) == pytest.approx(1, abs=4 * np.std(squares) / math.sqrt(60))


def test_a_file_of_counts_is_read_with_its_selection(tmp_path, generator, caplog):
    counts = torch.poisson(torch.full((6, 6), 4.0), generator=generator).numpy()
    selection = np.ones((6, 6))
    selection[2, 3], counts[2, 3] = 0, np.nan
    selection[0] = 0.5
    np.savez(tmp_path / "survey.npz", counts=counts, selection=selection)
    options = {"data": str(tmp_path / "survey.npz"), "num_steps": 2, "galaxies": 4.0}
    with caplog.at_level(logging.INFO):
        problem = make_problem("galaxy-field", options)
    assert "survey.npz: 1 of 36 cells have a selection of 0 and no measurement" in caplog.text
    assert problem.truth is None and problem.event_shape == (1, 6, 6)
    assert problem.measurements[0].tolist() == counts[selection > 0].tolist()
    assert problem.likelihood.exposure.tolist() == (4 * selection[selection > 0]).tolist()
    np.savez(tmp_path / "survey.npz", counts=np.nan_to_num(counts).astype(np.int32))
    assert make_problem("galaxy-field", options).measurements.shape == (1, 36)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": -1.0}, r"counts must be whole numbers of 0 and more, got -1.0 at \[1, 2\]$"),
        ({"counts": 0.5}, r"counts must be whole numbers .* got 0.5 at \[1, 2\]"),
        ({"counts": np.nan}, r"counts must be whole numbers .* got nan at \[1, 2\]"),
        ({"selection": 1.5}, r"selection must be within \[0, 1\], got 1.5 at \[1, 2\]"),
        ({"selection": np.nan}, r"selection must be within \[0, 1\], got nan"),
        ({"selection": 0.0}, r"where the selection is 0 counts must be 0, or NaN, got 1.0 at \[1, 2\]"),
    ],
)
def test_cells_that_cannot_be_are_named(tmp_path, change, message):
    arrays = {"counts": np.ones((4, 4)), "selection": np.ones((4, 4))}
    for name, value in change.items():
        arrays[name][1, 2] = value
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        make_problem("galaxy-field", {"data": str(tmp_path / "a.npz"), "num_steps": 2})


def test_files_of_another_kind_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file nowhere.npz; it must be an npz of counts"):
        make_problem("galaxy-field", {"data": "nowhere.npz"})
    np.savez(tmp_path / "a.npz", counts=np.ones((4, 5)))
    with pytest.raises(ValueError, match=r"must hold counts \[n, n\] and a selection of that shape, got \[4, 5\]"):
        make_problem("galaxy-field", {"data": str(tmp_path / "a.npz")})
    np.savez(tmp_path / "a.npz", counts=np.ones((1, 1)))
    with pytest.raises(ValueError, match=r"a.npz must hold at least 4 x 4 cells, got \[1, 1\]"):
        make_problem("galaxy-field", {"data": str(tmp_path / "a.npz")})
    np.savez(tmp_path / "a.npz", number=np.ones((4, 4)))
    with pytest.raises(ValueError, match=r"a.npz must hold counts and, if need be, a selection, got number"):
        make_problem("galaxy-field", {"data": str(tmp_path / "a.npz")})
    for arrays, message in (
        ({"mask": np.ones((4, 4))}, r"a.npz must hold counts and, if need be, a selection, got counts, mask"),
        (
            {"selection": np.full((4, 4), None)},
            r"cannot read the array selection of .*a.npz: expected arrays of numbers, got .* nothing is unpickled",
        ),
        ({"selection": np.full((4, 4), "1")}, r"a.npz: selection must be numbers, got <U1"),
        ({"selection": np.zeros((4, 4))}, r"a.npz: the selection is 0 everywhere"),
    ):
        np.savez(tmp_path / "a.npz", counts=np.zeros((4, 4)), **arrays)
        with pytest.raises(ValueError, match=message):
            make_problem("galaxy-field", {"data": str(tmp_path / "a.npz")})
    np.save(tmp_path / "b.npy", np.eye(4))
    with pytest.raises(ValueError, match=r"b.npy must be an npz of arrays with names, got an npy of one without"):
        make_problem("galaxy-field", {"data": str(tmp_path / "b.npy")})
    (tmp_path / "c.npz").write_text("1 2 3")
    with pytest.raises(ValueError, match=r"cannot read .*c.npz as npz or npy: expected arrays of numbers"):
        make_problem("galaxy-field", {"data": str(tmp_path / "c.npz")})
    with pytest.raises(ValueError, match="galaxies must be positive and finite"):
        make_problem("galaxy-field", {"galaxies": 0.0})
