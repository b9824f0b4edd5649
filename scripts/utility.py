"""What synthetic images are worth: ``python scripts/utility.py --dataroot DATA --out DIR -- --preset small``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import parse_test, parse_train
from engine.command import exit_code
from engine.utility import UtilityOptions, all_tasks, check_utility, run_study
from evaluation.utility import format_utility, write_utility
from test import test
from train import train


def parse(arguments: Sequence[str] | None = None) -> tuple[UtilityOptions, list[str]]:
    """Options of the study, and those of train.py after ``--``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    place = given.index("--") if "--" in given else len(given)
    return tyro.cli(UtilityOptions, args=given[:place], description=UtilityOptions.__doc__), given[place + 1 :]


def run(command: str, arguments: list[str]) -> int:
    """train.py or test.py with these arguments, in this process; its exit code, its errors printed."""

    def work() -> int:
        if command == "train":
            return train(parse_train(arguments))
        test(parse_test(arguments))
        return 0

    try:
        return exit_code(work)
    except SystemExit as stop:  # of a diverged run, or of bad options
        return stop.code if isinstance(stop.code, int) else 1


def main() -> int:
    """Exit codes: 0 fine, 1 some trainings failed, 2 bad options, 85 stopped by the time limit."""
    o, options = parse()
    if o.dry_run:
        check_utility(o)
        for number, task in enumerate(all_tasks(o)):
            print(number, task.name, *task.flags)
        return 0
    table, faults = run_study(o, options, run)
    write_utility(o.out, table)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    print(format_utility(table))
    if table["missing"]:
        print(f"{len(table['missing'])} trainings are missing: {', '.join(table['missing'])}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
