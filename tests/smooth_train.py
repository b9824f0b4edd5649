"""train.py with an optimiser that does not enlarge rounding: several runs, one line of options each, from a file.

Adam divides by the size of the gradient, so parameters whose gradient is only rounding move by whole steps. With a
large epsilon a difference in rounding stays one, and runs on one and on several ranks can be compared after many steps.
Curves, which the first rank alone would draw, are left out: they take longer than the steps.
"""

from __future__ import annotations

import functools
import shlex
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import parse_train
from dataloaders.io.runlog import RunLog
from engine.command import exit_code
from train import train


def main() -> int:
    RunLog.plot = lambda self: None  # type: ignore[method-assign]
    torch.optim.Adam = functools.partial(torch.optim.Adam, eps=1e-2)  # type: ignore[assignment, misc]
    return max(train(parse_train(shlex.split(line))) for line in Path(sys.argv[1]).read_text().splitlines())


if __name__ == "__main__":
    sys.exit(exit_code(main))
