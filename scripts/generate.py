"""Synthetic images from label maps: ``python scripts/generate.py --labels DIR --out DIR --n 100 --preset synthseg``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataloaders.io.files import listed
from dataloaders.labelmaps.generate import generate
from dataloaders.labelmaps.generate_options import GenerateOptions
from engine.command import exit_code
from models.gmm.options import GMM_PRESETS


def parse(arguments: Sequence[str] | None = None) -> GenerateOptions:
    """Command line -> options. --preset sets the defaults of the others, so it is looked up first."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--preset", default="synthseg")
    preset = peek.parse_known_args(arguments)[0].preset  # an unknown one is refused by tyro, which lists the allowed
    gmm = GMM_PRESETS.get(preset, GMM_PRESETS["synthseg"])()
    return tyro.cli(
        GenerateOptions,
        args=arguments,
        default=GenerateOptions(labels=tyro.MISSING, out=tyro.MISSING, gmm=gmm),
        description=GenerateOptions.__doc__,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def main() -> int:
    """Exit codes: 0 fine, 1 some samples could not be made, 2 bad options."""
    options = parse()
    report = generate(options)
    for line in listed(report.faults):
        print(f"error: {line}", file=sys.stderr)
    counts = f"{report.made} made, {report.kept} kept, {report.missing} missing"
    print(f"{options.out}: {counts}; {report.total} whole samples in all")
    return 1 if report.missing or report.faults else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
