# SPDX-License-Identifier: Apache-2.0
"""Runs the trainings of a benchmark, several at a time, beside other processes that do the same in the same folder."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from anomalib_uniad.durations import in_words

from .estimate import Work, time_left
from .machine import cores
from .trainings import FAILED, LOG, PROGRESS, RESULT, Training, find_resume, write_json
from .worker import TAKEN

WORKER = ("-m", "anomalib_uniad.benchmark.worker")  # what Python runs in a folder
_POLL = 0.2  # seconds
_RETRY = 2.0  # seconds until it is asked again whether trainings of others have become free
_QUIET = 600.0  # seconds after which the time that is left is said again


@dataclass
class _Job:
    training: Training
    process: subprocess.Popen
    slot: int
    log: IO[bytes]
    start: float = field(default_factory=time.time)

    def close(self) -> None:
        """Wait for the process, and close its files."""
        with self.process, self.log:
            pass


class Scheduler:
    """Does each training that nobody else does, and waits for those that others do.

    Every training is a process of its own, which holds a lock as long as it lives. So any number of schedulers, on
    machines that share the folder, divide the trainings among themselves; what a killed one has left is done by the
    others.

    Args:
        trainings (Sequence[Training]): All trainings, in the order in which they are begun.
        jobs (int): How many at a time.
        gpus (Sequence[str]): Names of the GPUs, as in ``CUDA_VISIBLE_DEVICES``; each training gets one.
        wait (bool): Wait for trainings of others, and take them over if those are killed.
        say (Callable[[str], None]): Shows a line.
        finished (Callable[[], None]): Called when there is a new result.
    """

    def __init__(
        self,
        trainings: Sequence[Training],
        jobs: int,
        gpus: Sequence[str],
        wait: bool,
        say: Callable[[str], None],
        finished: Callable[[], None],
    ) -> None:
        self._trainings = list(trainings)
        self._jobs, self._gpus, self._wait = jobs, list(gpus), wait
        self._say, self._finished = say, finished
        self._retry = 0.0
        self._running: dict[int, _Job] = {}  # slot -> job
        self._said = time.time()  # when something was said about the time that is left
        self._seen = {id(training) for training in trainings if training.finished}
        self._old_failures = {id(training): _failure(training) for training in trainings}
        self.failures: dict[str, str] = {}  # label -> last sentence

    def run(self) -> None:
        """Do all trainings."""
        self._say(self._summary())
        try:
            while self._open() or self._running:
                self._reap()
                self._fill()
                self._notice()
                self._refresh()
                if not self._running and self._open() and not self._wait:
                    self._say(f"{len(self._open())} trainings are left to other processes.")
                    break
                if self._running or self._open():
                    time.sleep(_POLL)
        finally:  # Ctrl-C, for example
            for job in self._running.values():
                job.process.kill()
                job.close()

    def _open(self) -> list[Training]:
        """Trainings that are neither finished nor failed nor done here."""
        here = {id(job.training) for job in self._running.values()}
        return [t for t in self._trainings if id(t) not in here | self._seen and t.label not in self.failures]

    def _fill(self) -> None:
        if time.monotonic() < self._retry:
            return
        for slot in sorted(set(range(self._jobs)) - set(self._running)):
            free = (t for t in self._open() if not (t.finished or self._failed_elsewhere(t) or t.is_taken()))
            if (training := next(free, None)) is None:
                self._retry = time.monotonic() + _RETRY
                return
            self._running[slot] = self._begin(training, slot)

    def _begin(self, training: Training, slot: int) -> _Job:
        (training.folder / FAILED).unlink(missing_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores() // self._jobs))}
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        log = (training.folder / LOG).open("ab")
        log.write(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] {training.label}\n".encode())
        log.flush()
        process = subprocess.Popen(
            [sys.executable, *WORKER, str(training.folder)],
            stdin=subprocess.PIPE,  # its other end closes with this process, and that ends the training
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process alone
        )
        return _Job(training, process, slot, log)

    def _reap(self) -> None:
        for slot, job in list(self._running.items()):
            code = job.process.poll()
            if code is None:
                continue
            del self._running[slot]
            job.close()
            if code == TAKEN or job.training.finished:
                continue  # noticed by its result, or left to whoever has it
            sentence = f"killed by signal {-code}, perhaps for want of memory" if code < 0 else last_sentence(job.log)
            write_json(job.training.folder / FAILED, {"sentence": sentence, "exit_code": code})
            self._fail(job.training, sentence)

    def _fail(self, training: Training, sentence: str) -> None:
        self.failures[training.label] = f"{sentence} (see {training.folder / LOG})"
        self._say(f"Failed: {training.label}: {self.failures[training.label]}")

    def _failed_elsewhere(self, training: Training) -> bool:
        """Whether another process has failed at a training since this one began."""
        if _failure(training) in (None, self._old_failures[id(training)]):
            return False
        self._fail(training, (training.read(FAILED) or {}).get("sentence", ""))
        return True

    def _notice(self) -> None:
        """Say which trainings are finished, here or elsewhere."""
        new = [training for training in self._open() if training.finished]
        for training in new:
            self._seen.add(id(training))
            result = training.read(RESULT) or {}
            took = in_words(result.get("train_seconds", 0.0))
            left = self.time_left()
            rest = f"; about {in_words(left)} left" if left else ""
            self._say(f"[{len(self._seen)}/{len(self._trainings)}] {training.label}: trained in {took}{rest}")
        if new:
            self._said = time.time()
            self._finished()

    def _refresh(self) -> None:
        """Say how long it still takes, if nothing has been said about it for a while."""
        if time.time() - self._said >= _QUIET:
            self._said = time.time()
            if left := self.time_left():
                self._say(f"About {in_words(left)} left.")

    def time_left(self) -> float | None:
        """Seconds until all are finished, as far as can be told."""
        works, now = [], time.time()
        starts = {id(job.training): job.start for job in self._running.values()}
        for training in self._trainings:
            work = Work((training.method, training.data, training.mode))
            result = training.read(RESULT)
            if result is not None or training.label in self.failures:
                work.finished, work.total = True, (result or {}).get("seconds")
            else:
                start = starts.get(id(training), now)
                work.spent = now - start
                if progress := training.read(PROGRESS):
                    work.total = progress["seconds"] / progress["done"]
                    written = progress.get("time", start)
                    if written > start or find_resume(training.folder) is not None:  # else it begins anew
                        work.spent = progress["seconds"] + now - max(start, written)
            works.append(work)
        return time_left(works, self._jobs)

    def _summary(self) -> str:
        total, done = len(self._trainings), len(self._seen)
        text = f"{total} trainings, {done} of them finished" if done else f"{total} trainings"
        left = self.time_left()
        if total == done:
            return f"{text}: nothing is left to train."
        rest = "the first one will tell how long they take" if left is None else f"about {in_words(left)} left"
        return f"{text}; {self._jobs} at a time, {max(1, cores() // self._jobs)} threads each; {rest}."


def _failure(training: Training) -> int | None:
    """When a training has failed, by the clock of whatever keeps its folder; compared with nothing but itself."""
    try:
        return (training.folder / FAILED).stat().st_mtime_ns
    except OSError:
        return None


def last_sentence(log: Any) -> str:
    """The error that a log ends with, or its last line.

    Args:
        log (Any): The log, or its path.
    """
    lines = Path(getattr(log, "name", log)).read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines[-50:] if line.startswith("error: ")]
    return (errors or lines or ["no word in its log"])[-1]
