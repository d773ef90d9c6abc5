"""How the tools are run from a shell."""

import logging
import sys
from collections.abc import Callable

from errors import UserError


def status_of(command: Callable[[], object]) -> int:
    """Run a command, and return the exit status: 2 for a user's mistake, which is printed to stderr."""
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run_quietly(main: Callable[[], int]) -> None:
    """Exit with the status of `main`, without Lightning's lines on the accelerator, which does not matter to tools."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    sys.exit(main())
