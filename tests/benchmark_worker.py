# SPDX-License-Identifier: Apache-2.0
"""Stands in for the trainings of a benchmark: ``work FOLDER`` is one, ``schedule OUTPUT NUMBER`` schedules several."""

import os
import sys
import threading
import time
from pathlib import Path

from filelock import FileLock, Timeout

from anomalib_uniad.benchmark import scheduler
from anomalib_uniad.benchmark.trainings import LOCK, RESULT, Training, prepare, write_json
from anomalib_uniad.benchmark.worker import TAKEN, _end_with_parent


def trainings(output: Path, number: int) -> list[Training]:
    """Trainings with nothing to train."""
    return [Training(f"m{i}", "d", "unified", 0, "", output / f"m{i}", {"model": i}) for i in range(number)]


def work(folder: Path) -> int:
    """Note the process, take a while, and write a result, unless the folder says how to fail."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with FileLock(folder / LOCK).acquire(timeout=0):
            with (folder / "processes.txt").open("a") as stream:
                stream.write(f"{os.getpid()}\n")
            if (folder / "fail").is_file():
                sys.stdout.write("Traceback\nerror: the disk is full\nbye\n")
                return 1
            if (folder / "crash").is_file():
                os.abort()
            time.sleep(float((folder / "seconds").read_text()) if (folder / "seconds").is_file() else 0.0)
            write_json(folder / RESULT, {"train_seconds": 60.0, "seconds": 60.0})
    except Timeout:
        return TAKEN
    return 0


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def schedule(output: Path, number: int, wait: bool = True) -> scheduler.Scheduler:
    """Schedule trainings of this module."""
    scheduler.WORKER = (__file__, "work")
    found = trainings(output, number)
    prepare(found, overwrite=False)
    scheduled = scheduler.Scheduler(found, 1, [], wait, say, lambda: None)
    scheduled.run()
    return scheduled


if __name__ == "__main__":
    if sys.argv[1] == "work":
        sys.exit(work(Path(sys.argv[2])))
    sys.exit(len(schedule(Path(sys.argv[2]), int(sys.argv[3])).failures))
