import dataclasses

import numpy as np
import pytest

from diffusion.trajectory import Origin, Trajectory, concatenate


def _trajectory(batch=3, steps=2, first_uid=0, **changes):
    """`batch` trajectories in two dimensions, every number its own."""
    count = batch * (steps + 1) * 2
    values = {
        "uid": np.arange(first_uid, first_uid + batch, dtype=np.uint64),
        "states": np.arange(count, dtype=np.float32).reshape(batch, steps + 1, 2),
        "log_prior": np.full((batch, steps), -1.0, dtype=np.float32),
        "log_behaviour_ratio": np.linspace(0, 1, batch, dtype=np.float32),
        "log_likelihood": np.linspace(-5, -4, batch, dtype=np.float32),
        "measurement_id": np.zeros(batch, dtype=np.int64),
        "policy_version": np.full(batch, 7, dtype=np.int64),
        "origin": np.full(batch, Origin.ON_POLICY, dtype=np.uint8),
    }
    return Trajectory(**{**values, **changes})


def test_the_clean_end_is_the_last_state():
    trajectory = _trajectory()
    assert len(trajectory) == 3
    assert trajectory.num_steps == 2
    assert trajectory.samples.tolist() == [[4.0, 5.0], [10.0, 11.0], [16.0, 17.0]]


def test_log_importance_is_the_likelihood_less_the_behaviour_ratio_in_float64():
    got = _trajectory().log_importance
    assert got.dtype == np.float64
    assert got == pytest.approx([-5.0, -4.5 - 0.5, -4.0 - 1.0])


@pytest.mark.parametrize(
    ("rows", "uids"),
    [(np.array([2, 0, 2]), [2, 0, 2]), (slice(1, None), [1, 2]), (np.array([True, False, True]), [0, 2])],
)
def test_take_selects_the_same_rows_of_every_field(rows, uids):
    trajectory = _trajectory(denoised=np.arange(12, dtype=np.float32).reshape(3, 2, 2))
    taken = trajectory.take(rows)
    assert taken.uid.tolist() == uids
    for name, value in taken.arrays().items():
        assert np.array_equal(value, trajectory.arrays()[name][uids])


def test_concatenate_undoes_take_and_keeps_the_order():
    trajectory = _trajectory(batch=5)
    joined = concatenate([trajectory.take(slice(0, 2)), trajectory.take(slice(2, 5))])
    for name, value in trajectory.arrays().items():
        assert np.array_equal(joined.arrays()[name], value)
        assert joined.arrays()[name].dtype == value.dtype


def test_a_trajectory_may_bring_a_simulated_measurement_and_only_then_has_a_negative_number():
    own = {"measurement_id": np.array([-1, 0, -9]), "measurement": np.arange(6, dtype=np.float32).reshape(3, 2)}
    trajectory = _trajectory(**own)
    assert trajectory.take(np.array([2])).measurement.tolist() == [[4.0, 5.0]]
    assert concatenate([trajectory, trajectory]).measurement.shape == (6, 2)
    with pytest.raises(ValueError, match=r"measurement must be \[3, ...\] to match log_prior, got \(2, 2\)"):
        _trajectory(**own | {"measurement": own["measurement"][:2]})
    with pytest.raises(ValueError, match=r"measurement_id must be a row where measurement is not given, got -9"):
        _trajectory(measurement_id=own["measurement_id"])
    with pytest.raises(ValueError, match=r"agree on whether they carry .* measurements"):
        concatenate([trajectory, _trajectory()])


def test_arrays_leaves_out_the_estimates_that_are_not_carried():
    assert "denoised" not in _trajectory().arrays()
    assert "denoised" in _trajectory(denoised=np.zeros((3, 2, 2), dtype=np.float32)).arrays()


def test_a_trajectory_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        _trajectory().uid = np.zeros(3, dtype=np.uint64)


def test_origins_keep_the_numbers_that_checkpoints_hold():
    assert [(origin.name, int(origin)) for origin in Origin][:4] == [
        ("ON_POLICY", 0),
        ("NOISE_INFLATED", 1),
        ("PRIOR", 2),
        ("EXACT", 3),
    ]


@pytest.mark.parametrize(
    ("field", "shape", "message"),
    [
        ("log_prior", (3,), r"log_prior must be \[B, T\], got shape \(3,\)"),
        ("states", (3, 2, 2), r"states must be \[3, 3, ...\] to match log_prior, got \(3, 2, 2\)"),
        ("states", (2, 3, 2), r"states must be \[3, 3, ...\] to match log_prior, got \(2, 3, 2\)"),
        ("denoised", (3, 3, 2), r"denoised must be \(3, 2, 2\) to match states, got \(3, 3, 2\)"),
        ("uid", (2,), r"uid must be \[3\] to match log_prior, got \(2,\)"),
        ("log_behaviour_ratio", (3, 2), r"log_behaviour_ratio must be \[3\] to match log_prior, got \(3, 2\)"),
        ("log_likelihood", (3, 1), r"log_likelihood must be \[3\] to match log_prior, got \(3, 1\)"),
        ("measurement_id", (4,), r"measurement_id must be \[3\] to match log_prior, got \(4,\)"),
        ("policy_version", (), r"policy_version must be \[3\] to match log_prior, got \(\)"),
        ("origin", (1,), r"origin must be \[3\] to match log_prior, got \(1,\)"),
    ],
)
def test_a_field_of_the_wrong_shape_is_refused_by_name(field, shape, message):
    with pytest.raises(ValueError, match=message):
        _trajectory(**{field: np.zeros(shape, dtype=np.float32)})


def test_concatenate_refuses_nothing_and_mixtures_of_messages():
    with pytest.raises(ValueError, match="needs at least one batch of trajectories, got none"):
        concatenate([])
    carrying = _trajectory(denoised=np.zeros((3, 2, 2), dtype=np.float32))
    with pytest.raises(ValueError, match="must agree on whether they carry denoised estimates"):
        concatenate([_trajectory(), carrying])
