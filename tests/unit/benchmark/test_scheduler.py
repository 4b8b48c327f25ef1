# SPDX-License-Identifier: Apache-2.0
"""Trainings are done once each, by whoever is alive; failures and interruptions stop nothing else."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

import benchmark_worker
from anomalib_uniad.benchmark import scheduler
from anomalib_uniad.benchmark.estimate import Work, time_left
from anomalib_uniad.benchmark.trainings import FAILED, LOCK, PROGRESS, RESULT, Training, prepare, write_json
from anomalib_uniad.errors import ExistingFileError, InputError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are killed by signals")


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes that are started find this package and the modules of the tests."""
    folders = [str(Path(benchmark_worker.__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(folders))


def processes(folder: Path) -> list[int]:
    file = folder / "processes.txt"
    return [int(line) for line in file.read_text().split()] if file.is_file() else []


def until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    """Whether a process is there, and no zombie that nobody has asked for yet."""
    stat = Path(f"/proc/{process}/stat")
    if stat.parent.parent.is_dir() and sys.platform == "linux":
        return stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def start(output: Path, number: int) -> subprocess.Popen:
    command = [sys.executable, benchmark_worker.__file__, "schedule", str(output), str(number)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_of_two_workers_one_is_killed(paths, tmp_path: Path) -> None:
    for training in benchmark_worker.trainings(tmp_path, 5):
        training.folder.mkdir()
        (training.folder / "seconds").write_text("1000" if training.method == "m0" else "0.3")
    first = start(tmp_path, 5)
    until(lambda: processes(tmp_path / "m0"))
    (victim,) = processes(tmp_path / "m0")
    second = start(tmp_path, 5)  # begins with the second one, as the first is taken
    until(lambda: (tmp_path / "m2" / RESULT).is_file())
    assert len(processes(tmp_path / "m0")) == 1
    (tmp_path / "m0" / "seconds").write_text("0")
    first.kill()
    first.communicate()
    output, _ = second.communicate(timeout=30)
    assert second.returncode == 0, output
    assert not is_alive(victim)  # not even what the killed one had started
    counts = {name: len(processes(tmp_path / name)) for name in ("m0", "m1", "m2", "m3", "m4")}
    assert counts == {"m0": 2, "m1": 1, "m2": 1, "m3": 1, "m4": 1}
    assert "[5/5]" in output


def test_a_failure_is_reported_and_the_rest_goes_on(paths, tmp_path: Path, capsys) -> None:
    for name, kind in (("m0", "fail"), ("m1", "crash")):
        (tmp_path / name).mkdir()
        (tmp_path / name / kind).touch()
    scheduled = benchmark_worker.schedule(tmp_path, 3)
    assert (tmp_path / "m2" / RESULT).is_file()
    assert scheduled.failures == {
        "d, m0, unified, seed 0": f"the disk is full (see {tmp_path / 'm0' / 'log.txt'})",
        "d, m1, unified, seed 0": f"killed by signal 6, perhaps for want of memory (see {tmp_path / 'm1' / 'log.txt'})",
    }
    assert "Failed: d, m0, unified, seed 0: the disk is full" in capsys.readouterr().out
    (tmp_path / "m0" / "fail").unlink()
    (tmp_path / "m1" / "crash").unlink()
    again = benchmark_worker.schedule(tmp_path, 3)
    assert not again.failures
    assert "3 trainings, 1 of them finished; 1 at a time" in capsys.readouterr().out
    assert [len(processes(tmp_path / name)) for name in ("m0", "m1", "m2")] == [2, 2, 1]
    assert not (tmp_path / "m0" / FAILED).exists()


def test_failures_of_others_whatever_their_clocks(tmp_path: Path) -> None:
    trainings = benchmark_worker.trainings(tmp_path, 2)
    files = [training.folder / FAILED for training in trainings]

    def fail(file: Path, hours: int) -> None:
        file.parent.mkdir(exist_ok=True)
        write_json(file, {"sentence": "the disk is full"})
        os.utime(file, (time.time() + 3600 * hours,) * 2)

    fail(files[0], 1)
    scheduled = scheduler.Scheduler(trainings, 1, [], True, benchmark_worker.say, lambda: None)
    fail(files[1], -1)
    assert [scheduled._failed_elsewhere(training) for training in trainings] == [False, True]
    assert list(scheduled.failures) == [trainings[1].label]


def test_trainings_of_others_are_left_to_them(tmp_path: Path, capsys) -> None:
    (tmp_path / "m0").mkdir()
    with FileLock(tmp_path / "m0" / LOCK):
        benchmark_worker.schedule(tmp_path, 1, wait=False)
    assert "1 trainings are left to other processes." in capsys.readouterr().out
    assert not (tmp_path / "m0" / RESULT).exists()


def test_another_config_loses_nothing(tmp_path: Path) -> None:
    first = benchmark_worker.trainings(tmp_path, 3)
    prepare(first, overwrite=False)
    write_json(first[0].folder / RESULT, {"seconds": 1.0})
    resume = first[1].folder / "run" / "UniAD" / "v0" / "weights" / "lightning" / "resume.ckpt"
    resume.parent.mkdir(parents=True)
    resume.touch()
    changed = benchmark_worker.trainings(tmp_path, 3)
    for training in changed:
        training.config = {"model": "another"}
    with pytest.raises(ExistingFileError, match=r"2 of 3 trainings .* another config .*m0, .*; d, m1, .*overwrite"):
        prepare(changed, overwrite=False)
    assert first[0].finished
    with FileLock(changed[0].folder / LOCK), pytest.raises(InputError, match=r"m0, .* is being trained now"):
        prepare(changed, overwrite=True)
    assert first[0].finished
    assert prepare(changed, overwrite=True) == changed[:2]
    assert not first[0].finished
    assert not resume.exists()
    assert "another" in (changed[2].folder / "config.yaml").read_text()
    assert prepare(changed, overwrite=False) == []


def test_time_left_of_what_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1e6)
    monkeypatch.setattr(scheduler.time, "time", lambda: clock.now)
    trainings = [Training("m", "d", "unified", seed, "", tmp_path / str(seed), {}) for seed in range(3)]
    resume = trainings[1].folder / "run" / "weights" / "lightning" / "resume.ckpt"
    for folder in (trainings[0].folder, resume.parent):
        folder.mkdir(parents=True)
    write_json(trainings[0].folder / RESULT, {"seconds": 600.0})
    write_json(trainings[1].folder / PROGRESS, {"done": 0.5, "seconds": 300.0, "time": clock.now - 1000})
    said: list[str] = []
    scheduled = scheduler.Scheduler(trainings, 1, [], True, said.append, lambda: None)
    assert scheduled.time_left() == 1200.0  # it begins anew
    resume.touch()
    assert scheduled.time_left() == 900.0
    scheduled._running[0] = scheduler._Job(trainings[1], None, 0, None, start=clock.now)
    clock.now += 100
    assert scheduled.time_left() == 800.0
    write_json(trainings[1].folder / PROGRESS, {"done": 0.75, "seconds": 450.0, "time": clock.now})
    clock.now += 50
    assert scheduled.time_left() == 700.0
    scheduled._refresh()
    assert said == []
    clock.now += 450
    scheduled._refresh()
    scheduled._refresh()
    assert said == ["About 10 minutes left."]


def test_time_left() -> None:
    def work(method: str, mode: str, **known: float) -> Work:
        return Work((method, "d", mode), **known)

    done = [work("A", "unified", total=100.0), work("A", "separate", total=30.0), work("B", "unified", total=10.0)]
    for item in done:
        item.finished = True
    left = [work("A", "unified", spent=40.0), work("A", "separate"), work("B", "separate"), work("C", "unified")]
    each = [60.0, 30.0, 10.0, 140 / 3]
    assert time_left([*done, *left], jobs=1) == pytest.approx(sum(each))
    assert time_left([*done, *left], jobs=4) == pytest.approx(60.0)  # the longest one
    assert time_left([*done, work("A", "unified", spent=500.0)], jobs=1) == 0.0
    assert time_left([work("A", "unified", total=50.0, spent=20.0)], jobs=1) == 30.0
