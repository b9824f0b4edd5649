"""How every command ends: errors that a user can mend become one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable

from engine.signals import EXIT_INTERRUPTED, EXIT_USAGE, EXIT_WEIGHTS_MISSING
from engine.weights import MissingWeights


def exit_code(command: Callable[[], int]) -> int:
    """Run the command; ValueError and OSError give 2, missing weights 3, Ctrl-C 130, each with its message on stderr.

    Anything else is a defect of ours and keeps its traceback.
    """
    try:
        return command()
    except MissingWeights as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_WEIGHTS_MISSING
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it can", file=sys.stderr)
        return EXIT_INTERRUPTED
