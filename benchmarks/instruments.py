"""The instruments of astronomy, two minutes of processor time each as they ship: see `benchmarks.problems`."""

from __future__ import annotations

from benchmarks.harness import parse
from benchmarks.problems import report

INSTRUMENTS = (
    "cluster-sz-xray",
    "galaxy-field",
    "lensing-euclid",
    "lensing-joint",
    "lensing-source",
    "mass-map",
    "psf-deconvolution",
    "radio-closure",
    "radio-uv",
    "xray-spectrum",
)


def main() -> None:
    """Runs the benchmark."""
    report(parse("instruments", __doc__ or ""), INSTRUMENTS, "instruments")


if __name__ == "__main__":
    main()
