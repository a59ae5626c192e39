import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from system.replay.rate_limiter import RateLimiter, smallest_tolerance

settings_of_a_limiter = st.tuples(
    st.floats(0.01, 100), st.integers(1, 500), st.integers(1, 128), st.integers(1, 512), st.floats(1, 3)
)


@given(settings_of_a_limiter, st.data())
def test_with_both_sides_always_willing_one_of_them_is_always_allowed(settings, data):
    ratio, min_size, insert_batch, sample_batch, slack = settings
    tolerance = smallest_tolerance(ratio, insert_batch, sample_batch) * slack
    limiter = RateLimiter(ratio, min_size, tolerance, insert_batch, sample_batch)
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    bias = data.draw(st.floats(0, 1), label="share of turns that the sampling side gets first")
    for _ in range(300):
        inserts = int(generator.integers(1, insert_batch + 1))
        samples = int(generator.integers(1, sample_batch + 1))
        may_insert, may_sample = limiter.can_insert(inserts), limiter.can_sample(samples)
        assert may_insert or may_sample
        if may_sample and (generator.random() < bias or not may_insert):
            limiter.sampled(samples)
        else:
            limiter.inserted(int(generator.integers(0, inserts + 1)))  # some may turn out duplicates
        crossing = (insert_batch - 1) * ratio  # the insert that reaches min_size is free
        assert -max(tolerance, crossing) - 1e-6 <= limiter.error <= tolerance + 1e-6


@pytest.mark.parametrize("ratio", [0.3, 4.0, 17.5])
@pytest.mark.parametrize("eager", ["insert", "sample"])
def test_the_long_run_ratio_is_within_one_per_cent_of_the_target_whichever_side_is_eager(ratio, eager):
    limiter = RateLimiter(ratio, 1000, smallest_tolerance(ratio, 64, 256), 64, 256)
    while limiter.inserts < 60_000 * max(1, 4 / ratio):
        if limiter.can_insert(64) if eager == "insert" else not limiter.can_sample(256):
            limiter.inserted(64)
        else:
            limiter.sampled(256)
    assert limiter.realised_samples_per_insert == pytest.approx(ratio, rel=0.01)
    assert limiter.samples_per_insert_error == pytest.approx(0.0, abs=0.01)


def test_below_min_size_inserts_pass_and_samples_wait():
    limiter = RateLimiter(1.0, 100, 64.0, insert_batch=64, sample_batch=64)
    assert limiter.can_insert(64) and not limiter.can_sample(1)
    limiter.inserted(99)
    assert limiter.can_insert(64) and not limiter.can_sample(1)
    limiter.inserted(1)
    assert limiter.can_sample(64)
    assert (limiter.blocked_inserts, limiter.blocked_samples) == (0, 2)


def test_the_error_is_counted_from_min_size_on_and_the_band_ends_where_it_says():
    limiter = RateLimiter(2.0, 10, 20.0, insert_batch=5, sample_batch=10)
    limiter.inserted(10)
    assert limiter.error == 0.0
    limiter.inserted(5)
    assert limiter.error == -10.0
    assert limiter.can_insert(5)  # to -20, the lower end
    limiter.inserted(5)
    assert not limiter.can_insert(1)
    limiter.sampled(40)
    assert limiter.error == 20.0
    assert not limiter.can_sample(1)
    assert limiter.can_insert(1)
    assert limiter.realised_samples_per_insert == 4.0
    assert limiter.samples_per_insert_error == 1.0
    assert (limiter.blocked_inserts, limiter.blocked_samples) == (1, 1)


def test_without_a_target_only_min_size_counts():
    limiter = RateLimiter(None, 3, 0.0)
    assert not limiter.can_sample(10_000)
    limiter.inserted(3)
    limiter.sampled(10**9)
    assert limiter.can_sample(10_000) and limiter.can_insert(10_000)
    assert limiter.samples_per_insert_error == 0.0


def test_a_band_in_which_both_sides_could_wait_is_refused_and_one_a_little_wider_is_not():
    with pytest.raises(ValueError, match=r"tolerance must be at least 256.0 for inserts of 64, samples of 256"):
        RateLimiter(4.0, 100, 255.9, insert_batch=64, sample_batch=256)
    RateLimiter(4.0, 100, 256.0, insert_batch=64, sample_batch=256)
    with pytest.raises(ValueError, match="samples_per_insert must be positive or None, got 0"):
        RateLimiter(0.0, 100, 256.0)


def test_batches_larger_than_announced_are_refused():
    limiter = RateLimiter(4.0, 100, 256.0, insert_batch=64, sample_batch=256)
    with pytest.raises(ValueError, match="at most 64 items, got 65"):
        limiter.can_insert(65)
    with pytest.raises(ValueError, match="at most 256 items, got 257"):
        limiter.can_sample(257)


def test_counters_survive_a_round_trip():
    limiter = RateLimiter(4.0, 1, 256.0, insert_batch=64, sample_batch=256)
    limiter.inserted(40)
    limiter.sampled(17)
    limiter.can_sample(256)
    restored = RateLimiter(4.0, 1, 256.0, insert_batch=64, sample_batch=256)
    restored.load_state_dict(limiter.state_dict())
    assert restored.error == limiter.error == 17 - 39 * 4
    assert restored.state_dict() == limiter.state_dict()
