"""Is this machine fit to run? One check a line, each with what to do about it.

`ok` has three values: True, False (mend it first), and None (works, with the limit that the detail names). Heavy
libraries are tried in a process of their own: one that crashes at import must not take the doctor along, and
Ray is imported by its runner only.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

OLDEST_PYTHON = (3, 11)
IMPORT_SECONDS = 60.0
DISK_NEEDED = 1 << 30  # a run of the small examples with two checkpoints of its replay
DISK_WANTED = 5 << 30
SHARED_MEMORY_WANTED = 1 << 30  # containers often have 64 MB; Ray then falls back to the disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    """What."""
    ok: bool | None
    """True: fine. False: mend it first. None: works, within what the detail says."""
    detail: str
    """What was found."""
    remedy: str = ""
    """What to do; empty when there is nothing to do."""


def examine() -> list[Check]:
    """Look at everything. A check that fails to run is a failed check, never an exception."""
    checks: dict[str, Callable[[], Check]] = {
        "python": _python,
        "torch": _torch,
        "threads": _threads,
        "cuda": _cuda,
        "ray": _ray,
        "gymnasium": _gymnasium,
        "torchvision": _torchvision,
        "RTB_DATA": _data,
        "disk": lambda: examine_disk(shutil.disk_usage(Path.cwd()).free),
        "shared memory": _shared_memory,
        "run directory": lambda: examine_writable(Path("runs") if Path("runs").is_dir() else Path.cwd()),
    }
    results = []
    for name, check in checks.items():
        try:
            results.append(check())
        except Exception as error:
            results.append(Check(name=name, ok=False, detail=_line(f"{type(error).__name__}: {error}")))
    return results


def render(checks: list[Check]) -> str:
    """The checks as a table in plain text, remedies below their check."""
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        mark = {True: "ok  ", False: "FAIL", None: "note"}[check.ok]
        lines.append(f"{mark}  {check.name:<{width}}  {check.detail}")
        if check.remedy and check.ok is not True:
            lines.append(f"{'':<{width + 6}}  -> {check.remedy}")
    return "\n".join(lines)


def examine_import(module: str, *, needed: bool, without: str, remedy: str) -> Check:
    """Import a module in a fresh process; `without` says what remains possible when it is absent."""
    if util.find_spec(module) is None:
        detail = f"not installed{': ' + without if without else ''}"
        return Check(name=module, ok=False if needed else None, detail=detail, remedy=remedy)
    command = [sys.executable, "-c", f"import {module}"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Check(name=module, ok=False, detail=f"import took more than {IMPORT_SECONDS:.0f} s", remedy=remedy)
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1]
        return Check(name=module, ok=False, detail=f"cannot be imported: {last}", remedy=remedy)
    try:
        version = metadata.version(module)
    except metadata.PackageNotFoundError:
        version = "version unknown"
    return Check(name=module, ok=True, detail=version)


def examine_disk(free: int) -> Check:
    """Judge the free bytes of the working directory's disk."""
    ok = False if free < DISK_NEEDED else None if free < DISK_WANTED else True
    remedy = f"at least {DISK_NEEDED >> 30} GB for checkpoints, better {DISK_WANTED >> 30}: put the run on another disk"
    return Check(name="disk", ok=ok, detail=f"{free / 2**30:.1f} GB free in the working directory", remedy=remedy)


def examine_writable(directory: Path) -> Check:
    """Try to write a file where runs go."""
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        remedy = "put the run elsewhere, or change the owner"
        return Check(name="run directory", ok=False, detail=f"{directory}: {error.strerror}", remedy=remedy)
    return Check(name="run directory", ok=True, detail=f"{directory.resolve()} is writable")


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    oldest = ".".join(map(str, OLDEST_PYTHON))
    remedy = f"make the virtual environment with Python {oldest} or newer"
    return Check(name="python", ok=sys.version_info >= OLDEST_PYTHON, detail=version, remedy=remedy)


def _torch() -> Check:
    return examine_import("torch", needed=True, without="", remedy='pip install "torch>=2.13"')


def _ray() -> Check:
    remedy = 'pip install "ray[default]" to use several processes or machines'
    return examine_import("ray", needed=False, without="runs stay in one process", remedy=remedy)


def _gymnasium() -> Check:
    return examine_import("gymnasium", needed=True, without="", remedy="pip install gymnasium")


def _threads() -> Check:
    import torch

    threads = torch.get_num_threads()
    detail = f"{threads} torch thread(s) a process, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}"
    remedy = "export OMP_NUM_THREADS=1: several processes with several threads each get in each other's way"
    return Check(name="threads", ok=True if threads == 1 else None, detail=detail, remedy=remedy)


def _cuda() -> Check:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if names:
        return Check(name="cuda", ok=True, detail=f"{len(names)}: {', '.join(names)}")
    detail = f"no device for torch {torch.__version__}: everything runs on the processor"
    remedy = "if there is a GPU, install the CUDA build of torch and check nvidia-smi"
    return Check(name="cuda", ok=None, detail=detail, remedy=remedy)


def _torchvision() -> Check:
    if util.find_spec("torchvision") is None:
        return Check(name="torchvision", ok=True, detail="absent, as it should be")
    detail = "installed: next to a torch of another build it breaks the import of diffusers"
    return Check(name="torchvision", ok=False, detail=detail, remedy="pip uninstall torchvision")


def _data() -> Check:
    place = os.environ.get("RTB_DATA")
    remedy = "export RTB_DATA=<folder of the data sets>; the problems that ship bring their own data and need none"
    if not place:
        return Check(name="RTB_DATA", ok=None, detail="not set: problems with built-in data only", remedy=remedy)
    if not Path(place).is_dir():
        return Check(name="RTB_DATA", ok=False, detail=f"{place} is not a directory", remedy=remedy)
    count = sum(1 for _ in Path(place).iterdir())
    return Check(name="RTB_DATA", ok=True if count else None, detail=f"{place}, {count} entries", remedy=remedy)


def _shared_memory() -> Check:
    place = Path("/dev/shm")
    if not place.is_dir():
        return Check(name="shared memory", ok=None, detail="no /dev/shm: Ray keeps its objects on disk")
    size = shutil.disk_usage(place).total
    remedy = "start the container with --shm-size=4g"
    detail = f"{size / 2**30:.1f} GB in /dev/shm"
    return Check(name="shared memory", ok=True if size >= SHARED_MEMORY_WANTED else None, detail=detail, remedy=remedy)


def _line(text: str) -> str:
    return " ".join(text.split())
