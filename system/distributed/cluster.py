"""Starting Ray on this machine, or joining a cluster, with errors that say what to do."""

from __future__ import annotations

import os

import ray

from system.config import RunConfig
from system.errors import RunnerError

__all__ = ["connect", "required_cpus"]


def required_cpus(config: RunConfig) -> float:
    """CPUs that the run's workers reserve; shards and the weight store reserve none."""
    return config.ray.num_actors * config.ray.cpus_per_actor + config.ray.cpus_per_learner


def connect(config: RunConfig, namespace: str) -> None:
    """Starts Ray on this machine, or joins the cluster at `config.ray.address`.

    Raises:
        RunnerError: Ray could not be started or reached, or has fewer CPUs or GPUs than the run needs.
    """
    address, needed = config.ray.address, required_cpus(config)
    # Workers take what the driver's environment says; one thread each, as they share the cores.
    environment = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    try:
        if address is None:
            ray.init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, -int(-needed // 1)),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                namespace=namespace,
                runtime_env=environment,
            )
        else:
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level="ERROR",
                namespace=namespace,
                runtime_env=environment,
            )
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
        reason = " ".join(str(error).split())[:300]
        where = "start on this machine" if address is None else f"reach the cluster at {address}"
        raise RunnerError(f"Ray could not {where}: {reason}; try --runner local, or `rtb doctor`") from None
    available = ray.cluster_resources()
    wanted = {"CPU": needed, "GPU": config.ray.gpus_per_learner}
    for kind, amount in wanted.items():
        if available.get(kind, 0.0) < amount:
            ray.shutdown()
            raise RunnerError(
                f"the run reserves {amount:g} {kind}s ({config.ray.num_actors} actors and a learner), but the cluster "
                f"has {available.get(kind, 0.0):g}; lower ray.num_actors or ray.cpus_per_actor, or add nodes"
            )
