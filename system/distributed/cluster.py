"""Starting Ray on this machine, or joining a cluster, with errors that say what to do."""

from __future__ import annotations

import os
import socket

import ray

from system.config import RunConfig
from system.errors import RunnerError

__all__ = ["connect", "required_cpus"]

REACH_SECONDS = 5.0  # to open a connection to the head node; Ray itself would try for minutes


def required_cpus(config: RunConfig) -> float:
    """CPUs that the run's workers reserve; shards and the weight store reserve none."""
    options = config.ray
    return options.num_actors * options.cpus_per_actor + options.num_learners * options.cpus_per_learner


def connect(config: RunConfig, namespace: str) -> None:
    """Starts Ray on this machine, or joins the cluster at `config.ray.address`.

    Raises:
        RunnerError: Ray could not be started or reached, or has fewer CPUs or GPUs than the run needs.
    """
    address, needed = config.ray.address, required_cpus(config)
    where = {"address": "local", "num_cpus": max(os.cpu_count() or 1, -int(-needed // 1)), "include_dashboard": False}
    if address is not None:
        where = {"address": address}
        _check_reachable(address)
    try:
        ray.init(
            **where,
            log_to_driver=False,
            logging_level="ERROR",
            namespace=namespace,
            # Workers take what the driver's environment says; one thread each, as they share the cores.
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
        )
    except Exception as error:  # Ray raises plain Exception too, where its processes do not come up in time
        reason = " ".join(str(error).split())[:300]
        if address is None:
            raise RunnerError(
                f"Ray could not start on this machine: {reason}; try --runner local, or `rtb doctor`"
            ) from error
        raise RunnerError(
            f"Ray could not join the cluster at {address}: {reason}; "
            "every node needs the same token and the same versions of Ray and Python"
        ) from error
    available = ray.cluster_resources()
    gpus = config.ray.num_learners * config.ray.gpus_per_learner + config.ray.num_actors * config.ray.gpus_per_actor
    wanted = {"CPU": needed, "GPU": gpus}
    levers = {
        "CPU": "ray.num_actors or ray.cpus_per_actor",
        "GPU": "ray.num_learners, ray.gpus_per_learner or ray.gpus_per_actor",
    }
    for kind, amount in wanted.items():
        if available.get(kind, 0.0) < amount:
            ray.shutdown()
            raise RunnerError(
                f"the run reserves {amount:g} {kind}s ({config.ray.num_actors} actors and "
                f"{config.ray.num_learners} learner ranks), but the cluster has {available.get(kind, 0.0):g}; "
                f"lower {levers[kind]}, or add nodes"
            )


def _check_reachable(address: str) -> None:
    """Ends at once where nobody listens at HOST:PORT; names that Ray resolves itself ('auto') pass."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        if address != "auto":
            raise RunnerError(f"the address of a cluster must be HOST:PORT or 'auto', got {address!r}")
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise RunnerError(
            f"no Ray cluster answers at {address}: {error}; "
            "start one with `ray start --head`, or leave --cluster out to run on this machine"
        ) from None
