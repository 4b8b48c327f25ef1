# SPDX-License-Identifier: Apache-2.0
"""What `anomalib-uniad bench train` measures, writes and shows; never how fast it is."""

import logging
import subprocess
import sys
from pathlib import Path

import cv2
import pandas as pd
import pytest
import torch

from anomalib_uniad.benchmark import report
from anomalib_uniad.benchmark.training import case, command, images, rows, scaling, session, speed, tables
from anomalib_uniad.benchmark.training.figure import draw_scaling
from anomalib_uniad.benchmark.training.lightning_run import Steps

CPU = torch.device("cpu")
TINY = {
    "backbone": "resnet10_synthetic",
    "layers": (0, 1),
    "image_size": 64,
    "hidden_dim": 16,
    "num_heads": 2,
    "feedforward_dim": 24,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "neighbor_size": 1,
}
WITHOUT_SIZE = {name: value for name, value in TINY.items() if name != "image_size"}
ORIGIN = {"device", "versions", "seed", "command", "dtype"}


def test_images_are_written_in_the_layout(tmp_path: Path) -> None:
    paths = images.write_images(tmp_path, 3, 32, seed=1)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "cloth/train/good/00000.png",
        "metal/train/good/00001.png",
        "cloth/train/good/00002.png",
    ]
    assert cv2.imread(str(paths[0])).shape == (32, 32, 3)
    assert images.mean_bytes(paths) > 500
    again = images.write_images(tmp_path / "again", 3, 32, seed=1)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]
    assert len({path.read_bytes() for path in paths}) == 3


@pytest.fixture
def setting(tmp_path: Path) -> speed.Setting:
    paths = images.write_images(tmp_path / "images", speed.images_needed(2, 0), 64)
    small = {"hidden_dim": 16, "num_heads": 2, "num_layers": 1, "neighbor_size": (1, 1)}
    plain = {"backbone": "resnet18", "image_size": 64, **small}
    return speed.Setting(paths, tmp_path / "images", CPU, 2, 0, 0, model=TINY, plain=plain)


def test_the_variants_are_compared_in_turn(setting: speed.Setting, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    saved, ticks = [], []
    speed.compare(setting, speed.variants(compiled=False), 1, saved.append, lambda: ticks.append(1))
    assert len(ticks) == 4
    measured = pd.DataFrame(saved[0])
    assert measured["variant"].tolist() == [variant.name for variant in speed.variants(compiled=False)]
    assert (measured["seconds_per_step"] > 0).all()
    ratios = measured["seconds_per_step"][0] / measured["seconds_per_step"]
    assert measured["plain_ratio"].tolist() == pytest.approx(ratios.tolist())
    assert measured["build_images_per_second"].notna().tolist() == [False, False, True, True]
    path = tmp_path / "training_speed.csv"
    about = {"image_pixels": 64, "bytes_per_image": 10_000}
    for _ in range(2):  # the second time in place of the first
        rows.save(path, [row | about for row in saved[0]], (), CPU, seed=0)
    written = tables.read(path)
    assert len(written) == 4
    assert set(written) >= ORIGIN
    text = report.render("<!-- table: training_speed -->\n<!-- end -->", tmp_path)
    assert "| UniAD with cache" in text
    assert f"{measured['plain_ratio'][2]:.2f} (" in text


def test_ratios_are_those_of_rounds(setting: speed.Setting, monkeypatch) -> None:
    times = iter([(8.0, None), (4.0, None), (2.0, 1.0), (9.0, None), (3.0, None), (1.0, 3.0)])
    monkeypatch.setattr(speed, "measure_round", lambda *_: next(times))
    saved: list[list[dict]] = []
    with pytest.raises(StopIteration):  # interrupted in the third round
        speed.compare(setting, speed.variants(compiled=False)[:3], 3, saved.append)
    assert [len(rows) for rows in saved] == [3, 3]
    cached = saved[-1][2]
    assert (cached["plain_ratio"], cached["plain_ratio_min"], cached["plain_ratio_max"]) == (6.5, 4, 9)
    assert (cached["no_cache_ratio"], cached["seconds_per_step"], cached["rounds"]) == (2.5, 1.5, 2)
    assert cached["epochs_per_hour"] == pytest.approx(3600 / (454 * 1.5))
    images = len(setting.paths)
    assert cached["build_images_per_second"] == pytest.approx(images / 2.0)
    assert cached["build_in_epochs_without_cache"] == pytest.approx(3629 * 2.0 / images / (454 * 3.5))


def _measure(arguments: dict) -> dict:
    """As `case.run`, without a new process."""
    return case.measure(**{name: value for name, value in arguments.items() if value is not None})


def test_scaling_is_measured(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    wanted = scaling.scaling_cases(steps=2, quick=True)
    cases = [one for one in wanted if one["images"] != 32]
    common = {"device": "cpu", "seed": 0, "work_dir": tmp_path, "model": WITHOUT_SIZE}
    path = tmp_path / "training_scaling.csv"
    found = list(scaling.measure(cases, common, run=_measure))
    keys = ("series", "images", "image_size", "batch_size", "cache")
    for row in [*found, found[-1]]:
        rows.save(path, [row], keys, CPU, seed=0)
    written = tables.read(path)
    assert len(written) == len(cases) == 6
    assert set(written) >= ORIGIN
    assert not list(tmp_path.glob("tmp*"))  # caches are gone
    disk = written[written["cache"] == "disk"].iloc[0]
    assert disk["disk_bytes"] > disk["images"] * 4 * disk["tokens"]
    sizes = written[written["series"] == "image size"]
    assert sizes["tokens"].tolist() == [16, 36]
    assert sizes["attention_of_operations"].is_monotonic_increasing
    assert sizes["attention_of_time"].between(0, 1).all()
    text = report.render("<!-- table: training_scaling -->\n<!-- end -->", tmp_path)
    assert "half of the operations from 1,209 tokens" in text
    draw_scaling(written, tmp_path / "x.png")
    assert cv2.imread(str(tmp_path / "x.png")) is not None


def test_the_cases_of_the_paper() -> None:
    cases = scaling.scaling_cases(steps=8)
    assert {one["images"] for one in cases if one["series"] == "images"} == {500, 2000, 8000}
    assert [(one["image_size"], one["steps"]) for one in cases if one["series"] == "image size"] == [
        (224, 8),
        (320, 4),
        (448, 3),
    ]
    assert [one["batch_size"] for one in cases if one["series"] == "batch"] == [1, 8, 32, 64]
    for one in cases:  # one epoch is long enough
        assert one["images"] >= one["batch_size"] * (one["steps"] + 2)


def test_gpu_cases_run_anywhere(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    cases = [one for one in scaling.gpu_cases((8, 64), 2) if one["compile_mode"] is None]
    assert [one["images"] for one in cases] == [3629, 3629]
    assert [one["warm_up"] for one in cases] == [459, 62]
    cases = [{**cases[0], "batch_size": 2, "images": 12, "warm_up": 1}]
    common = {
        "device": "cpu",
        "seed": 0,
        "image_size": 64,
        "model": WITHOUT_SIZE,
    }
    row = scaling.gpu_row(next(scaling.measure(cases, common, run=_measure)), rate=1e12)
    assert row["minutes_for_1000_epochs"] == pytest.approx(1000 * 6 * row["seconds_per_step"] / 60)
    assert row["utilisation"] == pytest.approx(row["operations_per_step"] * row["steps_per_second"] / 1e12)
    rows.save(tmp_path / "training_gpu.csv", [row], ("batch_size", "compile_mode"), CPU, 0)
    rows.save(tmp_path / "training_gpu.csv", [row], ("batch_size", "compile_mode"), CPU, 0)
    written = tables.read(tmp_path / "training_gpu.csv")
    assert len(written) == 1
    assert ORIGIN | {"steps_per_second", "compile_mode"} <= set(written)
    assert " none |" in report.render("<!-- table: training_gpu -->\n<!-- end -->", tmp_path)


def test_without_a_gpu_the_table_says_so(tmp_path: Path) -> None:
    assert "Not measured" in report.render("<!-- table: training_gpu -->\n<!-- end -->", tmp_path)


def test_interruptions_leave_the_typical_time_alone() -> None:
    steps = Steps([1.0, 10.0, 1.0], before=5.0)
    assert (steps.mean, steps.typical) == (4.0, 1.0)


def test_a_case_that_fails_is_left_out(caplog) -> None:
    def run(arguments: dict) -> dict:
        if arguments["batch_size"] == 1:
            msg = "out of memory"
            raise RuntimeError(msg)
        return {"seconds_per_step": 1.0}

    cases = [{"series": "batch", "batch_size": batch} for batch in (1, 2)]
    with caplog.at_level(logging.WARNING):
        found = list(scaling.measure(cases, {}, run=run))
    assert [row["batch_size"] for row in found] == [2]
    assert "out of memory" in caplog.text


def test_a_case_in_a_process_of_its_own() -> None:
    values = case.run({"images": 16, "image_size": 64, "batch_size": 2, "steps": 1, "model": WITHOUT_SIZE})
    assert values["tokens"] == 16
    assert values["seconds_per_step"] > 0


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"images=many failed \(exit status 2\): (.|\n)*int"):
        case.run({"images": "many"})


def test_memory_counts_from_now_on() -> None:
    memory = rows.Memory(CPU)
    block = torch.ones(8_000_000)
    assert memory.peak() >= block.nbytes * 0.9
    del block
    assert memory.peak() >= 8_000_000 * 4 * 0.9


def test_the_device_is_described() -> None:
    assert rows.describe_device(CPU).endswith(f", {torch.get_num_threads()} threads")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"parts": ["speed"]}, "parts must be among .*, got 'speed'"),
        ({"num_workers": -1}, "num_workers must not be negative"),
        ({"device": "tpu"}, "device must be 'auto' or one of 'cpu'.*, got 'tpu'"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        command.train(**{"parts": [], "output_dir": tmp_path, **arguments})


def test_the_command_measures_the_parts_that_are_wanted(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    called = []
    monkeypatch.setattr(session.Session, "throughput", lambda self, *args: called.append(args))
    command.train(parts=["gpu", "throughput"], output_dir=tmp_path, quick=True)
    assert called == [(1, 3, 128, 2, False)]
    assert "There is no GPU" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_command_is_found_without_heavy_packages() -> None:
    code = (
        "import sys; from anomalib_uniad.benchmark.training import train; "
        "print([m for m in ('torch', 'pandas', 'cv2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
