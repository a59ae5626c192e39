"""The documentation is true: links lead somewhere, generated tables are current, and what it shows runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import envs.likelihoods
import envs.operators

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def python(*arguments: str, cwd: Path = ROOT) -> str:
    """Output of Python in a process of its own, where what a plug-in registers stays."""
    environment = os.environ | {"PYTHONPATH": f"{cwd}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def snippets(page: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def example_region() -> str:
    """The part of the example that the README shows."""
    text = (ROOT / "examples" / "add_a_problem.py").read_text(encoding="utf-8")
    found = re.search(r"# --- the problem ---\n(.*?)\n+# --- end of the problem ---", text, re.DOTALL)
    assert found is not None
    return found[1]


def metrics_of(run: Path) -> set[str]:
    """Keys of every metric of a run."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {key for line in lines for key in json.loads(line) if "/" in key}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file_of_the_repository(page):
    links = [link.split("#")[0] for link in LINK.findall(page.read_text(encoding="utf-8"))]
    local = [link for link in links if link and "://" not in link]

    missing = [link for link in local if not (page.parent / link).exists()]

    assert missing == []


def _headings(page):
    """Anchors of a page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return {re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in lines if line[:1] == "#"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_place_in_a_page_leads_to_a_heading(page):
    links = [link.split("#") for link in LINK.findall(page.read_text(encoding="utf-8")) if "#" in link]
    known = [(page if not to else page.parent / to, anchor) for to, anchor in links if "://" not in to]
    assert [anchor for to, anchor in known if to.suffix == ".md" and anchor not in _headings(to)] == []


def test_every_file_of_the_packages_that_holds_a_concept_is_in_the_readme_or_beside_one_that_is():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = {Path(link) for row in text.splitlines() if row.startswith("|") for link in LINK.findall(row)}

    assert len(table) > 30
    assert all((ROOT / file).is_file() for file in table)
    packages = {file.parts[0] for file in table}
    assert packages == {"diffusion", "envs", "actors", "learner", "evaluation", "system"}


def test_every_file_and_module_that_contributing_names_exists():
    names = re.findall(r"`([\w./]+/(?:\w+\.\w+)?)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))

    assert [name for name in names if not (ROOT / name).exists()] == []


def test_the_tables_of_the_configuration_page_are_those_of_the_code():
    python("docs/make_configuration.py", "--check")


def test_the_readme_shows_the_problem_of_the_example():
    assert any(block.strip() == example_region().strip() for block in snippets("README.md"))


def test_every_problem_operator_and_likelihood_is_on_the_page_of_problems_and_its_snippet_runs():
    text = (ROOT / "docs" / "problems.md").read_text(encoding="utf-8")
    contracts = {"ForwardOperator", "LinearOperator", "Likelihood", "LikelihoodError", "AutogradLikelihood"}
    contracts |= {"DifferentiableLikelihood", "ExpectedLikelihood", "SimulableLikelihood", "StandardisedLikelihood"}
    contracts |= {"RelaxedLikelihood"}
    contracts |= {"DifferentiableJointLikelihood", "SimulableJointLikelihood"}
    problems = python("-c", "import envs; print(*envs.problem_names())").split()  # other tests register some here
    for name in {*problems, *envs.operators.__all__, *envs.likelihoods.__all__} - contracts:
        assert f"`{name}`" in text, name
    python("-c", snippets("docs/problems.md")[0])


def test_the_snippets_of_the_readme_run(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    blocks = [block for block in snippets("README.md") if block.strip() != example_region().strip()]
    short = "\n".join(blocks).replace("300", "30").replace('"50"', '"5"').replace("1_000", "200")
    (tmp_path / "snippets.py").write_text(short, encoding="utf-8")

    output = python("snippets.py", cwd=tmp_path)

    assert len(blocks) == 2
    assert "Evaluation(count=200" in output
    assert (tmp_path / "runs" / "gaussian-linear-1" / "report.html").is_file()


def test_the_example_of_a_new_problem_bounds_the_exact_evidence():
    output = python("examples/add_a_problem.py", "--updates", "50")

    values = {line[:22].strip(): float(line[22:].split()[0].rstrip("%")) for line in output.splitlines()}
    assert values["exact log Z"] == pytest.approx(-0.735, abs=1e-3)
    assert values["ELBO"] < values["exact log Z"]
    assert values["importance-weighted"] == pytest.approx(values["exact log Z"], abs=0.3)


def test_the_worked_example_of_a_new_problem_passes_its_checks_and_takes_a_step(tmp_path):
    file, check = snippets("docs/add_a_problem.md")
    (tmp_path / "decay.py").write_text(file, encoding="utf-8")
    (tmp_path / "check.py").write_text(check, encoding="utf-8")

    python("-W", "ignore", "check.py", cwd=tmp_path)
    command = re.search(r"rtb (train .*)", (ROOT / "docs" / "add_a_problem.md").read_text(encoding="utf-8"))
    words = command[1].replace("configs/", f"{ROOT}/configs/").split()
    python("-m", "system", *words, "--updates", "3", "--runner", "local", "--run", "run", cwd=tmp_path)

    assert (tmp_path / "run" / "report.html").is_file()


def test_the_black_box_that_problems_shows_has_a_surrogate_that_is_like_it():
    parts: dict = {}
    exec(next(text for text in snippets("docs/problems.md") if "Stairs" in text), parts)
    likelihood, surrogate = parts["likelihood"], parts["surrogate"]
    x, y = torch.linspace(-1, 1, 20).reshape(5, 4), torch.zeros(5, 4)
    assert surrogate.gradient(x, y).shape == x.shape and not hasattr(likelihood, "gradient")
    drawn, smooth = (
        each.sample(x.repeat(2_000, 1), torch.Generator().manual_seed(0)) for each in (likelihood, surrogate)
    )
    assert float((drawn - smooth).mean().abs()) < 0.05
    assert float((drawn - 3 * (2 * x).sin().repeat(2_000, 1)).std()) == pytest.approx(surrogate.noise_std, rel=0.2)


def test_the_worked_example_of_amortised_posteriors_learns_measurements_that_it_has_not_seen():
    output = python("-c", snippets("docs/amortised.md")[0])

    found = {name: float(value) for name, value in re.findall(r"'(\w+)': ([\d.]+)", output)}
    assert 0 < found["elbo_gap"] < 0.5 and found["log_partition_error"] < 0.1 and found["ess"] > 0.5


def test_plugins_bring_a_problem_an_objective_and_an_exploration_and_every_metric_is_documented(tmp_path):
    (tmp_path / "mine.py").write_text(snippets("CONTRIBUTING.md")[0], encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(
        "plugins: [mine, examples.add_a_problem]\nupdates: 5\nproblem: {name: range-finder, distance: 1.2}\n"
        "learner: {objective: square-root}\nactor: {mixture: {wide: 0.5, on-policy: 0.5}}\n",
        encoding="utf-8",
    )
    run = tmp_path / "run"

    python("-m", "system", "train", "mine.yaml", "--problem.num-steps", "5", "--run", str(run), cwd=tmp_path)

    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    kinds = {key: re.sub(r"^actor/(wide|on-policy)/", "actor/<kind>/", key) for key in metrics_of(run)}
    assert "actor/<kind>/seconds" in kinds.values()
    assert [key for key, name in sorted(kinds.items()) if f"`{name}`" not in page] == []
    assert [entry.name for entry in run.iterdir() if f"`{entry.name}" not in page] == []
