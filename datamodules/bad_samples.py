"""Pictures that cannot be decoded and are passed over."""

import fcntl
import logging
from pathlib import Path

log = logging.getLogger(__name__)


class BadSamples:
    """Remembers them, and warns of each once: on all workers and processes, and in all runs of a directory.

    Args:
        report: file that lists them, shared by all processes; None warns once per process.
    """

    def __init__(self, report: Path | None) -> None:
        self.report = report
        self.indices: set[int] = set()

    def __contains__(self, index: int) -> bool:
        return index in self.indices

    def add(self, index: int, file: str, consequence: str) -> None:
        """Put a picture on the list; `consequence` says in the warning what is done without it."""
        self.indices.add(index)
        if self._reported_first(file):
            log.warning("%s: cannot be decoded; %s", file, consequence)

    def _reported_first(self, file: str) -> bool:
        """False if the file is on the list, put there by another worker, process or earlier run."""
        if self.report is None:
            return True
        self.report.parent.mkdir(parents=True, exist_ok=True)
        with open(self.report, "a+") as listing:
            fcntl.flock(listing, fcntl.LOCK_EX)
            listing.seek(0)
            if file in listing.read().splitlines():
                return False
            listing.write(f"{file}\n")
        return True
