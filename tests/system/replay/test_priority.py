import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp

from system.replay.config import ReplayConfig
from system.replay.log_weight import normalised_masses
from system.replay.shard import ReplayShard, is_storable


def _config(**changes):
    free = {"samples_per_insert": None, "min_size": 1, "newest_share": 0.0, "insert_batch": 100_000}
    return ReplayConfig(**{**free, **changes})


def _tree(shard, number=0):
    return list(shard._priorities.values())[number].tree


def _mass(shard):
    return _tree(shard).leaves()[: len(shard)]


def test_importance_draws_from_a_wide_proposal_have_the_mean_and_variance_of_the_target(make_trajectory):
    generator = np.random.default_rng(0)
    shard = ReplayShard(_config(priority="importance", capacity_bytes=2**24), index=0, seed=0)
    for _ in range(200):
        x = 2.0 * generator.standard_normal(500)  # b = N(0, 4), target N(1, 0.25) up to a factor e^300
        shard.insert(
            make_trajectory(
                500,
                samples=x,
                log_likelihood=-0.5 * ((x - 1) / 0.5) ** 2 + 300,
                log_behaviour_ratio=-0.5 * (x / 2) ** 2,
            )
        )
    drawn = np.concatenate([shard.sample(1000).trajectory.samples[:, 0] for _ in range(100)])
    effective = 1 / np.square(_mass(shard) / _mass(shard).sum()).sum()
    error = 0.5 * np.sqrt(1 / effective + 1 / len(drawn))
    assert effective > 10_000
    assert drawn.mean() == pytest.approx(1.0, abs=4 * error)
    assert drawn.var() == pytest.approx(0.25, rel=0.05)


def test_importance_masses_are_the_truncated_weights_of_ionides():
    log_weight = np.array([0.0, 0.0, 0.0, np.log(97.0)])
    masses, measurement, log_normaliser, log_cap = normalised_masses(log_weight, np.zeros(4, dtype=np.int64), 0.5)
    # mean 25, sqrt(4) = 2: the cap is 50 and the capped sum 53.
    assert masses == pytest.approx(np.array([1, 1, 1, 50]) / 53)
    assert measurement.tolist() == [0]
    assert np.exp(log_normaliser) == pytest.approx(53)
    assert np.exp(log_cap) == pytest.approx(50)
    assert normalised_masses(log_weight, np.zeros(4, dtype=np.int64), 1.0)[0][-1] == pytest.approx(0.97)


@given(st.lists(st.tuples(st.floats(-1e4, 1e4), st.integers(0, 3)), min_size=1, max_size=60))
def test_masses_are_the_softmax_within_every_measurement(items):
    log_weight = np.array([item[0] for item in items])
    measurement_id = np.array([item[1] for item in items])
    masses = normalised_masses(log_weight, measurement_id, truncation=1.0)[0]
    for measurement in set(measurement_id.tolist()):
        own = log_weight[measurement_id == measurement]
        assert masses[measurement_id == measurement] == pytest.approx(np.exp(own - logsumexp(own)), abs=1e-12)


@given(
    batches=st.lists(
        st.lists(st.tuples(st.floats(-1e4, 1e4, width=32), st.integers(0, 2)), min_size=1, max_size=8), min_size=5
    )
)
def test_masses_placed_one_insert_at_a_time_stay_proportional_to_the_weights(build_trajectory, batches):
    shard = ReplayShard(_config(priority="likelihood", priority_exponent=0.5, max_items=100_000), index=0, seed=0)
    first_uid = 0
    for items in [[(0.0, 0)] * 200, *batches]:  # 200 at first, so that the later ones are placed incrementally
        log_likelihood, measurement_id = np.array(items).T
        uid = range(first_uid, first_uid + len(items))
        shard.insert(build_trajectory(uid, log_likelihood=log_likelihood, measurement_id=measurement_id))
        first_uid += len(items)
    masses, ids = _mass(shard), shard._storage.column("measurement_id")
    log_weight = 0.5 * shard._storage.column("log_likelihood").astype(np.float64)
    assert np.isfinite(masses).all()
    for measurement in np.unique(ids):
        own = ids == measurement
        softmax = np.exp(log_weight[own] - logsumexp(log_weight[own]))
        assert masses[own] / masses[own].sum() == pytest.approx(softmax, abs=1e-9)


def test_measurements_of_evidence_1e4_nats_apart_get_the_same_mass(make_trajectory):
    shard = ReplayShard(_config(priority="likelihood"), index=0, seed=0)
    measurement_id = np.arange(300) % 3
    log_likelihood = np.array([-1e4, 0.0, 1e4])[measurement_id] + np.random.default_rng(0).normal(size=300)
    shard.insert(make_trajectory(300, measurement_id=measurement_id, log_likelihood=log_likelihood))
    assert np.bincount(measurement_id, _mass(shard)) == pytest.approx(np.ones(3))
    counts = sum(np.bincount(shard.sample(256).trajectory.measurement_id) for _ in range(100))
    assert counts == pytest.approx(np.full(3, 25_600 / 3), abs=4 * np.sqrt(25_600 * 2 / 9))


def test_log_weights_of_plus_and_minus_1e4_in_turn_neither_overflow_nor_leave_the_shard_without_mass(make_trajectory):
    shard = ReplayShard(_config(priority="importance"), index=0, seed=0)
    shard.insert(make_trajectory(1000, log_likelihood=-1e4))
    assert _mass(shard).sum() == pytest.approx(1.0)
    shard.insert(make_trajectory(2, log_likelihood=[1e4, 1e4]))
    assert _mass(shard)[:1000].max() == 0.0
    assert _mass(shard)[1000:] == pytest.approx([0.5, 0.5])
    shard.insert(make_trajectory(1, log_likelihood=-1e4))
    assert set(shard.sample(64).ids.slot.tolist()) == {1000, 1001}


def test_zero_likelihood_is_stored_with_zero_mass_under_every_priority(make_trajectory):
    for priority in ("uniform", "residual", "likelihood", "importance"):
        shard = ReplayShard(_config(priority=priority), index=0, seed=0)
        reply = shard.insert(make_trajectory(3, log_likelihood=[0.0, -np.inf, 0.0]))
        assert (reply.stored, reply.refused) == (3, 0)
        assert set(shard.sample(200).ids.slot.tolist()) == {0, 2}, priority


def test_with_zero_mass_everywhere_draws_are_uniform(make_trajectory):
    shard = ReplayShard(_config(priority="importance"), index=0, seed=0)
    shard.insert(make_trajectory(4, log_likelihood=-np.inf))
    batch = shard.sample(256)
    assert set(batch.ids.slot.tolist()) == {0, 1, 2, 3}
    assert batch.probability == pytest.approx(np.full(256, 0.25))
    shard.insert(make_trajectory(1, log_likelihood=-5.0))
    assert set(shard.sample(64).ids.slot.tolist()) == {4}


def test_nan_and_plus_infinity_are_refused_and_counted_and_never_stored(make_trajectory):
    log_likelihood = np.array([0.0, np.nan, np.inf, -np.inf, 0.0, 0.0, -np.inf])
    log_behaviour_ratio = np.array([0.0, 0.0, 0.0, 0.0, np.nan, -np.inf, -np.inf])
    trajectory = make_trajectory(7, log_likelihood=log_likelihood, log_behaviour_ratio=log_behaviour_ratio)
    assert is_storable(trajectory).tolist() == [True, False, False, True, False, False, False]
    shard = ReplayShard(_config(priority="importance"), index=0, seed=0)
    reply = shard.insert(trajectory)
    assert (reply.accepted, reply.stored, reply.refused) == (True, 2, 5)
    assert (len(shard), shard.stats().refused, shard.stats().inserts) == (2, 5, 2)
    assert shard._storage.column("uid").tolist() == [0, 3]
    assert shard.insert(trajectory.take(np.array([1, 2]))).stored == 0


@pytest.mark.parametrize("field", ["states", "log_prior", "denoised"])
def test_one_nan_anywhere_on_a_path_refuses_that_path_only(make_trajectory, field):
    trajectory = make_trajectory(3, steps=4, denoised=True)
    getattr(trajectory, field)[1, 2] = np.nan
    assert is_storable(trajectory).tolist() == [True, False, True]


def test_residual_masses_are_powers_and_a_new_item_gets_the_largest(make_trajectory):
    shard = ReplayShard(_config(priority="residual", priority_exponent=2.0), index=0, seed=0)
    shard.insert(make_trajectory(3))
    assert _mass(shard).tolist() == [1.0, 1.0, 1.0]
    batch = shard.sample(64)
    shard.update_priorities(batch.ids, np.array([3.0, -0.5, 0.0])[batch.ids.slot])
    assert _mass(shard) == pytest.approx([9.0, 0.25, 1e-12], rel=1e-9)
    shard.insert(make_trajectory(1))
    assert _mass(shard)[3] == pytest.approx(9.0)


def test_residuals_of_1e200_do_not_overflow(make_trajectory):
    shard = ReplayShard(_config(priority="residual", priority_exponent=10.0), index=0, seed=0)
    shard.insert(make_trajectory(2))
    batch = shard.sample(64)
    shard.update_priorities(batch.ids, np.full(64, 1e200))
    assert _mass(shard) == pytest.approx([1e100, 1e100])
    assert shard.sample(64).probability == pytest.approx(np.full(64, 0.5))


def test_an_importance_priority_keeps_its_stale_share_small_over_many_inserts(make_trajectory):
    generator = np.random.default_rng(3)
    shard = ReplayShard(_config(priority="importance", max_items=4000, insert_batch=32), index=0, seed=0)
    largest_error = 0.0
    for round_ in range(400):
        ids = generator.integers(4, size=32)
        shard.insert(make_trajectory(32, measurement_id=ids, log_likelihood=10 * ids + generator.normal(size=32)))
        if round_ > 150:  # full since round 125
            totals = np.bincount(shard._storage.column("measurement_id"), _mass(shard), minlength=4)
            largest_error = max(largest_error, float(np.abs(totals - 1).max()))
    assert 0 < largest_error < 0.15


def test_a_new_item_of_a_huge_weight_is_capped_at_once(make_trajectory):
    """Mean weight 1 of 1,000 items: the cap is 1000^0.5, and an item 40 nats above gets no more than that."""
    shard = ReplayShard(_config(priority="importance", truncation=0.5), index=0, seed=0)
    shard.insert(make_trajectory(1000))
    shard.insert(make_trajectory(1, log_likelihood=40.0))  # less than 1/16 is new, and 40 nats are no reason to renew
    mass = _mass(shard)
    assert mass[1000] / mass[0] == pytest.approx(1000**0.5, rel=0.01)
