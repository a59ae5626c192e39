"""The examples of the page of instruments start from a user's files, and run."""

from pathlib import Path

import pytest

from tests import ogip_files

ROOT = Path(__file__).resolve().parents[1]


def _example(heading):
    """The Python block under a heading of the page."""
    text = (ROOT / "docs" / "instruments.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return section.split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize(
    ("heading", "output"),
    [
        ("Galaxies on a field of dark matter", "(1, 12, 12) torch.Size([1, 108])"),
        ("X-ray spectra", "torch.Size([1, 4]) groups of channels; 3 counts of background"),
    ],
)
def test_the_example_of_an_instrument_reads_a_users_files(tmp_path, monkeypatch, capsys, heading, output):
    ogip_files.write_observation(tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(_example(heading), {})
    assert capsys.readouterr().out.strip() == output
