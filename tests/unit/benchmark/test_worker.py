# SPDX-License-Identifier: Apache-2.0
"""What one training writes down."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from anomalib_uniad.benchmark import worker
from anomalib_uniad.benchmark.trainings import CONFIG, RESULT, read_json


def test_killed_in_its_test_it_has_taken_the_training_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)

    def train(*_: object) -> dict:
        clock.now += 50.0
        return {"train_seconds": 60.0, "seconds_before": 10.0}

    def test(*_: object) -> Path:
        clock.now += 5.0
        if clock.now < 60.0:
            raise KeyboardInterrupt
        return tmp_path / "metrics.csv"

    trainer = SimpleNamespace(save_checkpoint=Path.touch)
    cli = SimpleNamespace(engine=SimpleNamespace(trainer=trainer), model=None, datamodule=None)
    fakes = {"_command_line": lambda _: cli, "_report_by_category": lambda _: None, "_train": train, "_test": test}
    for name, fake in {**fakes, "_export": lambda *_: {}}.items():
        monkeypatch.setattr(worker, name, fake)
    monkeypatch.setattr(worker.time, "perf_counter", lambda: clock.now)
    (tmp_path / CONFIG).write_text("seed_everything: 0")
    with pytest.raises(KeyboardInterrupt):
        worker._work(tmp_path)
    worker._work(tmp_path)
    assert read_json(tmp_path / RESULT)["seconds"] == 10.0 + 50.0 + 5.0
