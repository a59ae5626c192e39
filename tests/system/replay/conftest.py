import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from diffusion.trajectory import Trajectory


@pytest.fixture(scope="session")
def build_trajectory() -> Callable[..., Trajectory]:
    """Trajectories with the given uids; one item with T = 1 and one dimension takes 45 bytes."""

    def build(
        uid: Sequence[int],
        *,
        log_likelihood: object = 0.0,
        log_behaviour_ratio: object = 0.0,
        measurement_id: object = 0,
        policy_version: object = 0,
        samples: object = 0.0,
        steps: int = 1,
        denoised: bool = False,
        measurement: np.ndarray | None = None,
    ) -> Trajectory:
        batch = len(uid)
        states = np.zeros((batch, steps + 1, 1), dtype=np.float32)
        states[:, -1, 0] = samples
        return Trajectory(
            uid=np.array(uid, dtype=np.uint64),
            states=states,
            log_prior=np.zeros((batch, steps), dtype=np.float32),
            log_behaviour_ratio=np.broadcast_to(log_behaviour_ratio, batch).astype(np.float32),
            log_likelihood=np.broadcast_to(log_likelihood, batch).astype(np.float32),
            measurement_id=np.broadcast_to(measurement_id, batch).astype(np.int64),
            policy_version=np.broadcast_to(policy_version, batch).astype(np.int64),
            origin=np.zeros(batch, dtype=np.uint8),
            denoised=np.zeros((batch, steps, 1), dtype=np.float32) if denoised else None,
            measurement=measurement,
        )

    return build


@pytest.fixture
def make_trajectory(build_trajectory) -> Callable[..., Trajectory]:
    """Trajectories whose uids are counted up from zero in each test, unless given."""
    fresh = itertools.count()

    def make(batch: int, *, uid: Sequence[int] | None = None, **fields: object) -> Trajectory:
        return build_trajectory([next(fresh) for _ in range(batch)] if uid is None else uid, **fields)

    return make
