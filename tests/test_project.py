"""The project as a whole: what is imported is this checkout, and what must never be installed is not."""

import importlib
import importlib.util
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ["diffusion", "envs", "actors", "learner", "evaluation", "system"]


def _lock():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_is_imported_from_this_checkout_and_is_typed(package):
    module = importlib.import_module(package)
    assert Path(module.__file__).resolve() == ROOT / package / "__init__.py"
    assert (ROOT / package / "py.typed").is_file()


def test_the_packages_named_here_are_those_that_are_installed_and_checked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == PACKAGES
    assert project["tool"]["mypy"]["packages"] == PACKAGES
    assert project["tool"]["importlinter"]["root_packages"] == PACKAGES


def test_torchvision_is_neither_locked_nor_installed():
    """Its wheel does not load with the CPU build of torch, and then breaks what imports it."""
    assert not [line for line in _lock() if line.lower().startswith("torchvision")]
    assert importlib.util.find_spec("torchvision") is None


def test_torch_is_the_first_line_of_the_lock_and_every_line_is_a_pin():
    """Installed later, by way of another package, torch would bring gigabytes of CUDA."""
    lock = _lock()
    assert lock[0].startswith("torch==")
    assert [line for line in lock if line.count("==") != 1] == []


def test_every_dependency_of_the_project_is_in_the_lock():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    locked = {line.split("==")[0].split("[")[0].lower().replace("_", "-") for line in _lock()}
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {name.split(">=")[0].split("[")[0].lower().replace("_", "-") for name in wanted}
    assert names - locked == set()


def test_no_file_is_named_after_a_module_of_the_standard_library():
    """Running a script by its path puts its folder first on the path, where it would hide the real one."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(files) > 50
    clashes = [path for path in files if path.stem in sys.stdlib_module_names and not path.stem.startswith("__")]
    assert [str(path.relative_to(ROOT)) for path in clashes] == []


def test_no_drawer_of_odds_and_ends():
    drawers = {"utils", "util", "common", "misc", "helpers", "parts"}
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.stem in drawers]
    assert found == []
