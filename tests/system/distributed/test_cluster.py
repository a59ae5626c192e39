"""Where Ray cannot be started or joined, the user reads one line; where its head or driver is lost, nothing stays."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import ray
import yaml

from system.distributed import cluster
from system.distributed.cluster import connect, required_cpus
from system.errors import RunnerError
from system.run import make_runner
from system.run_directory import RunDirectory

RTB = [sys.executable, "-m", "system"]


def one_line(error) -> str:
    """The message, which has one line."""
    text = str(error.value)
    assert "\n" not in text and len(text) < 600
    return text


def test_an_address_where_nobody_listens_is_refused_within_ten_seconds(tiny):
    begun = time.monotonic()
    with pytest.raises(RunnerError) as error:
        connect(tiny(address="127.0.0.1:1"), "test")
    assert time.monotonic() - begun < 10
    assert one_line(error).startswith("no Ray cluster answers at 127.0.0.1:1: ")


@pytest.mark.parametrize("address", ["somewhere", "host:", ":6379", "host:port"])
def test_an_address_that_is_none_is_refused(tiny, address):
    with pytest.raises(RunnerError, match="must be HOST:PORT or 'auto', got"):
        connect(tiny(address=address), "test")


def test_what_ray_refuses_at_its_start_becomes_one_line(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 100)))  # a socket's path may have 107 characters
    with pytest.raises(RunnerError) as error:
        connect(tiny(), "test")
    assert "Ray could not start on this machine: " in one_line(error) and "107" in one_line(error)
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    "refusal", [ValueError("Attempting to cap object\nstore memory usage at 10 bytes"), Exception("timed out")]
)
def test_memory_or_time_that_ray_refuses_is_one_line_with_a_remedy(tiny, monkeypatch, refusal):
    def refuse(**_):
        raise refusal

    monkeypatch.setattr(cluster.ray, "init", refuse)
    with pytest.raises(RunnerError) as error:
        connect(tiny(), "test")
    assert " ".join(str(refusal).split()) in one_line(error) and "--runner local" in one_line(error)


def test_more_cpus_than_the_cluster_has_are_refused_with_both_numbers(tiny, monkeypatch):
    ended = []
    monkeypatch.setattr(cluster.ray, "init", lambda **_: None)
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"CPU": 8.0})
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: ended.append(True))
    config = tiny(num_actors=30)
    assert required_cpus(config) == 16
    with pytest.raises(RunnerError, match=r"the run reserves 16 CPUs \(30 actors and 1 learner ranks\).* has 8; lower"):
        connect(config, "test")
    assert ended == [True]
    with pytest.raises(RunnerError, match="reserves 1 GPUs"):
        connect(tiny(gpus_per_learner=1.0), "test")


def test_without_ray_the_ray_runner_says_so(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunnerError, match=r"Ray is not installed here; .* or use --runner local"):
        make_runner(tiny(), None, RunDirectory(path=tmp_path))


def processes_of(mark: str) -> list[int]:
    """Processes that were started with `mark` in their environment, and their children: Ray's change their names."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/environ", "rb") as file:
                    if mark.encode() in file.read():
                        found.append(int(entry))
            except OSError:
                continue
    return found


def metrics_of(run) -> list[dict[str, float]]:
    """Complete lines of a run's metrics."""
    path = run / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def wait_until(condition, seconds: float, what: str):
    """Polls until `condition()` is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not after {seconds} s"
        time.sleep(0.2)


def configure(tiny, path, **changes) -> str:
    """Writes the tiny configuration with checkpoints every second."""
    tree = yaml.safe_load(tiny().to_yaml())
    tree["checkpoint"]["interval_seconds"] = 1.0
    file = path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tree | changes))
    return str(file)


@pytest.mark.slow
def test_after_the_driver_is_killed_no_process_stays_and_resume_goes_on(tiny, tmp_path):
    config, run = configure(tiny, tmp_path, max_seconds=25.0), tmp_path / "run"
    temporary = f"/tmp/rtb-{os.getpid()}"  # short: paths of sockets are limited
    environment = os.environ | {"RAY_TMPDIR": temporary}
    driver = subprocess.Popen(
        [*RTB, "train", config, "--run", str(run), "--quiet"], env=environment, start_new_session=True
    )
    try:
        wait_until(lambda: list(run.glob("checkpoints/step-*/manifest.json")), 200, "first checkpoint")
        wait_until(lambda: any(line.get("learner/updates", 0) > 100 for line in metrics_of(run)), 200, "100 updates")
        assert processes_of(temporary)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    wait_until(lambda: not processes_of(temporary), 120, "end of Ray's processes")
    before = metrics_of(run)[-1]

    done = subprocess.run(
        [*RTB, "resume", str(run), "--quiet"], env=environment, timeout=240, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = metrics_of(run)
    resumed = next(index for index, line in enumerate(lines) if line.get("resumed"))
    step, after = lines[resumed]["step"], [line for line in lines[resumed + 1 :] if "replay/inserts" in line]
    saved = [line for line in lines[:resumed] if line["step"] <= step and "replay/inserts" in line][-1]
    assert after[0]["replay/size"] >= min(saved["replay/size"], 64) and after[0]["learner/updates"] >= step
    for name in ("learner/updates", "replay/inserts", "replay/samples", "actor/trajectories", "system/seconds"):
        values = [saved[name], *(line[name] for line in after)]
        assert values == sorted(values), name
    assert after[-1]["system/progress"] == 1 and before["system/progress"] < 1
    assert (run / "report.html").is_file()
    wait_until(lambda: not processes_of(temporary), 120, "end of Ray's processes")


@pytest.fixture
def two_nodes(tmp_path):
    """Two nodes of two CPUs each on this machine, with a token: (address, environment, kill of the second)."""
    ip = ray.util.get_node_ip_address()  # the driver's own: it then belongs to the head, which stays
    with socket.socket() as probe:
        probe.bind((ip, 0))
        port = probe.getsockname()[1]
    token = tmp_path / "token"
    token.write_text(os.urandom(32).hex())
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "OMP_NUM_THREADS": "1"}
    places = [f"/tmp/rtb-{os.getpid()}-{name}" for name in ("a", "b")]
    common = ["--num-cpus=2", "--object-store-memory=100000000", "--block", "--disable-usage-stats"]
    ray_start = [sys.executable, "-m", "ray.scripts.scripts", "start"]
    head = ["--head", f"--node-ip-address={ip}", f"--port={port}", "--include-dashboard=false"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    nodes = [
        subprocess.Popen(
            [*ray_start, *head, f"--temp-dir={places[0]}", *common], env=environment | {"MARK": places[0]}, **quiet
        )
    ]

    def listening():
        with socket.socket() as connection:
            return connection.connect_ex((ip, port)) == 0

    def kill_second():
        for process in processes_of(places[1]):
            os.kill(process, signal.SIGKILL)

    try:
        wait_until(listening, 60, "head node")
        time.sleep(3)
        worker = [f"--address={ip}:{port}", "--node-ip-address=127.0.0.2", f"--temp-dir={places[1]}", *common]
        nodes.append(subprocess.Popen([*ray_start, *worker], env=environment | {"MARK": places[1]}, **quiet))
        yield f"{ip}:{port}", environment, kill_second
    finally:
        for node in nodes:
            node.kill()
            node.wait()
        for place in places:
            for process in processes_of(place):
                os.kill(process, signal.SIGKILL)


@pytest.mark.slow
def test_a_run_on_two_nodes_spreads_its_actors_and_outlives_the_loss_of_one(tiny, tmp_path, two_nodes):
    address, environment, kill_second = two_nodes
    config, run = configure(tiny, tmp_path, max_seconds=60.0), tmp_path / "run"
    command = [*RTB, "train", config, "--run", str(run), "--cluster", address, "--ray.cpus-per-actor", "1"]
    command += ["--ray.num-actors", "3", "--quiet"]
    wait_until(lambda: cpus(address, environment) == 4, 60, "second node")
    driver = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: any(line.get("learner/updates", 0) > 100 for line in metrics_of(run)), 200, "100 updates")
    assert metrics_of(run)[-1]["actor/alive"] == 3
    kill_second()
    _, errors = driver.communicate(timeout=240)
    assert driver.returncode == 0, errors
    last = [line for line in metrics_of(run) if "actor/alive" in line][-1]
    assert last["system/progress"] == 1 and last["learner/updates"] > 200
    # The second node held half of the workers at least: some are back on the first, the others wait for a CPU.
    assert last["actor/restarts"] + last["learner/restarts"] >= 1 and last["actor/alive"] <= 2


def cpus(address: str, environment) -> float:
    """CPUs of a cluster, asked by another process."""
    code = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print(ray.cluster_resources()['CPU'])"
    done = subprocess.run(
        [sys.executable, "-c", code, address], env=environment, capture_output=True, text=True, check=False
    )
    return float(done.stdout.split()[-1]) if done.returncode == 0 else 0.0
