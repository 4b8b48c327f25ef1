# SPDX-License-Identifier: Apache-2.0
"""Works that are killed at random moments and started again, against the same works undisturbed.

python benchmarks/kills.py                              # about twenty minutes on two idle cores
python benchmarks/kills.py --works '[export,predict]' --kills 2

Each work is run once without a kill. Then, in each round, it is begun anew, killed with all its processes (SIGKILL), in
every third round killed again after its next start, and started until it finishes. Every other round kills within the
time that the work takes, and every other one after the first file has appeared, since most works write late. All starts
are forks of one process that has imported everything, so that kills hit the work; so are the trainings of `benchmark`,
which are processes of their own. What is converted to ONNX, which is written elsewhere, is ready.

A round is equal if it ends as the undisturbed run: the same exit code and the same files, weights bit for bit, pictures
and exported files byte for byte, rows of predictions in any order. What differs between any two runs is left out:
columns of times, memory and speed, the time at which a feature cache was made, the number of a training's folder, and
its older folders. After each kill, visible files that cannot be read to their end are counted as half-written, and so
are files of one result (model.xml and model.bin) of which one is older than the other. An interrupted measurement goes
on where it was.
"""

import contextlib
import csv
import importlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from xml.etree import ElementTree

import anomalib.models  # noqa: F401 - first
import numpy as np
import onnx
import torch
import yaml
from anomalib.data import MVTecAD  # noqa: F401 - as the datamodules below have it
from anomalib.engine import Engine
from jsonargparse import auto_cli
from PIL import Image
from tqdm import tqdm

from anomalib_uniad import MultiCategory, UniAD
from anomalib_uniad.benchmark import scheduler, worker
from anomalib_uniad.benchmark.machine import processor
from anomalib_uniad.cli import main
from anomalib_uniad.synthetic import synthetic_products
from harness import RESULTS, add_rows, at_least, origin, show, write_images

TINY: dict[str, Any] = {
    "backbone": "mobilenetv3_small_050",
    "pre_trained": False,
    "image_size": 64,
    "neighbor_size": 1,
    "hidden_dim": 16,
    "num_heads": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "feedforward_dim": 32,
    "visualizer": False,
    "seed": 5,
}
ALWAYS = 1e-9  # minutes
# What works import when they run.
LAZY = (
    "anomalib.cli",
    "anomalib_uniad.benchmark.command",
    "anomalib_uniad.benchmark.results",
    "anomalib_uniad.benchmark.expand",
    "anomalib_uniad.check.command",
    "anomalib_uniad.check.source",
    "anomalib_uniad.check.terminal",
    "anomalib_uniad.inference.watching",
    "anomalib_uniad.inference.writer",
    "anomalib_uniad.metrics.curves",
    "anomalib_uniad.report.html",
    "anomalib_uniad.report.write",
    "anomalib_uniad.review.recalibrate",
    "onnxscript",
    "openvino",
    "torch._dynamo",
    "watchfiles",
)
MEASURED = {"train_seconds", "seconds", "peak_memory", "latency_ms", "images_per_second"}
PRODUCTS = ("cloth", "metal")
ARRIVALS = 40  # images that are watched
INTERVAL = 0.02  # seconds between two of them
LONGEST = 300.0  # seconds that a work may take
_POLL = 0.004
_TOLD: set[int] = set()  # processes that were told to end

Contents = dict[str, Any]


@dataclass
class Place:
    """Where works are done.

    Attributes:
        inputs (Path): Images, a model, a run; made once.
        output (Path): What a work writes; the same folder for all, so that paths in files are equal.
    """

    inputs: Path
    output: Path

    def image(self, number: int) -> Path:
        """One of the images that arrive."""
        return self.inputs / "new" / f"{number:04d}.png"


@dataclass
class Work:
    """Something that is killed.

    Attributes:
        run (Callable[[Place], None]): Does it, and goes on where it was.
        prepare (Callable[[Place], None]): Puts older results into the folder. Defaults to nothing.
        meanwhile (Callable[[Place, int], None]): Called again and again while it runs, with the number of its process.
            Defaults to nothing.
        results (str): Glob of the folder whose files are compared. Defaults to ``""``, all.
        belonging (tuple[str, ...]): Globs of files that are one result, older or newer.
        written (str): Glob of the first file that it writes. Defaults to ``"**/*"``, any.
    """

    run: Callable[[Place], None]
    prepare: Callable[[Place], None] = lambda _: None
    meanwhile: Callable[[Place, int], None] = lambda *_: None
    results: str = ""
    belonging: tuple[str, ...] = ()
    written: str = "**/*"
    old: dict[Path, bytes] = field(default_factory=dict)


# What is killed.


def generate(place: Place) -> None:
    """Draw a small set of the generated products."""
    for name, count in {"TRAIN_GOOD": 4, "TEST_GOOD": 2, "TEST_PER_DEFECT": 1}.items():
        setattr(synthetic_products, name, count)
    synthetic_products.SyntheticProducts(place.output, "washer").prepare_data()


def check(place: Place) -> None:
    """Look at the images."""
    images, output = str(place.inputs / "images"), str(place.output)
    main(["check", images, "--output", output, "--features", "false", "--overwrite", "true"])


def _older_check(place: Place) -> None:
    for name in ("check.html", "problems.csv"):
        (place.output / name).write_text("</html>\n" if name[-1] == "l" else "older\n", encoding="utf-8")


def fit(place: Place, epochs: int, folder: str = "", data: dict[str, Any] | None = None, **arguments: Any) -> None:
    """Train and test, from the newest resume.ckpt if there is one."""
    images = MultiCategory(
        root=place.inputs / "images",
        train_batch_size=4,
        eval_batch_size=4,
        num_workers=0,
        val_split_mode="from_test",
        seed=0,
        **(data or {}),
    )
    engine = Engine(
        default_root_dir=place.output / folder,
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        max_epochs=epochs,
        check_val_every_n_epoch=arguments.pop("validations", 1),
    )
    found = (place.output / folder).rglob("weights/lightning/resume.ckpt")
    resume = max(found, key=lambda path: path.stat().st_mtime, default=None)
    engine.train(UniAD(**TINY, resume_interval=ALWAYS, **arguments), datamodule=images, ckpt_path=resume)


def train(place: Place) -> None:
    """A training with resume.ckpt after each epoch, and its test."""
    fit(place, 5, learning_rate=1e-3, lr_schedule="cosine", product_calibration=True, validations=2)


def checkpoint(place: Place) -> None:
    """Short epochs, each with up to three checkpoints: the last, the best and that to resume from."""
    fit(place, 12, learning_rate=1e-2, checkpoint_selection="best")


def cache(place: Place) -> None:
    """A training of one epoch that builds feature caches."""
    fit(place, 1, "run", feature_cache="disk", feature_cache_dir=str(place.output / "cache"))


def calibrate(place: Place) -> None:
    """Find thresholds from labelled images."""
    model, images, output = (str(path) for path in (_model(place), place.inputs / "images", _thresholds(place)))
    main(["recalibrate", model, images, "--output", output, "--overwrite", "true"])


def _thresholds(place: Place) -> Path:
    return place.output / "thresholds.yaml"


def _older_thresholds(place: Place) -> None:
    _thresholds(place).write_text("products: {cloth: {image: 1.5}}\n", encoding="utf-8")


class Converted(UniAD):
    """A model whose conversion to ONNX, which takes longest and writes elsewhere, is done already."""

    onnx_file: Path

    def to_onnx(self, export_root: Path, model_file_name: str = "model", *_: Any, **__: Any) -> Path:
        """Copy the file."""
        file = Path(export_root) / f"{model_file_name}.onnx"
        for path in self.onnx_file.parent.iterdir():
            shutil.copyfile(path, file.with_name(path.name))
        return file


def export(place: Place) -> None:
    """Export to torch and OpenVINO."""
    model = make_model(Converted, 5)
    model.onnx_file = place.inputs / "onnx" / "model.onnx"
    model.to_torch(place.output)
    model.to_openvino(place.output)


def make_model(kind: type[Any], seed: int) -> Any:
    """A model with random weights."""
    torch.manual_seed(seed)
    return kind(**{**TINY, "seed": seed}).eval()


def convert(place: Place) -> None:
    """Export to ONNX, for images of one size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_model(UniAD, 5).to_onnx(place.output, input_size=(64, 64), dynamic_shapes=None)


def export_older(place: Place) -> None:
    """The same as ``export`` of another model, with the conversion."""
    model = make_model(UniAD, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.to_torch(place.output)
        model.to_openvino(place.output, input_size=(64, 64), onnx_kwargs={"dynamic_shapes": None})


def _older_export(place: Place) -> None:
    shutil.copytree(place.inputs / "export", place.output, dirs_exist_ok=True)


def _model(place: Place) -> Path:
    return place.inputs / "export" / "weights" / "openvino" / "model.xml"


class ForkedWorker:
    """The process of a training of a benchmark: a fork, where ``subprocess.Popen`` would import everything anew."""

    def __init__(self, command: Sequence[str], stdout: Any, env: dict[str, str], **_: Any) -> None:
        read, self._write = os.pipe()  # its other end closes with this process, and that ends the training
        self.returncode: int | None = None
        self.process = os.fork()
        if self.process == 0:
            os.close(self._write)
            os.setsid()
            os.dup2(read, 0)
            _end_with(lambda: worker.main(Path(command[-1])), stdout.fileno(), env)
        os.close(read)

    def poll(self) -> int | None:
        """Exit code; ``None`` while it runs."""
        if self.returncode is None:
            ended, status = os.waitpid(self.process, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def kill(self) -> None:
        """Kill it."""
        os.kill(self.process, signal.SIGKILL)

    def __enter__(self) -> "ForkedWorker":
        return self

    def __exit__(self, *_: object) -> None:
        while self.poll() is None:
            time.sleep(_POLL)
        os.close(self._write)


def run_benchmark(place: Place) -> None:
    """A training of two epochs in a process of its own, tested, exported and measured."""
    import kills as named  # under the name that the config has

    named.Converted.onnx_file = place.inputs / "onnx" / "model.onnx"
    scheduler.subprocess = SimpleNamespace(  # type: ignore[assignment]
        Popen=ForkedWorker, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT
    )
    main(["benchmark", str(place.inputs / "benchmark.yaml"), "--output", str(place.output), "--jobs", "1"])


def predict(place: Place) -> None:
    """Predict images."""
    model, images, output = str(_model(place)), str(place.inputs / "new"), str(place.output)
    main(["predict", model, images, "--output", output, "--overwrite", "true", "--threads", "1"])


def watch(place: Place) -> None:
    """Predict images as they arrive."""
    model, images, output = str(_model(place)), str(_arrived(place)), str(place.output)
    main(["predict", model, images, "--output", output, "--watch", "true", "--threads", "1"])


def _arrived(place: Place) -> Path:
    return place.output.with_name("arrived")


def _nothing_arrived(place: Place) -> None:
    shutil.rmtree(_arrived(place), ignore_errors=True)
    _arrived(place).mkdir()


def _arrive(place: Place, process: int) -> None:
    """Write the next image slowly, as cameras do; end the watching once all are in the table."""
    there = sorted(_arrived(place).iterdir())
    last = there[-1].stat().st_mtime if there else 0.0
    if len(there) < ARRIVALS:
        if time.time() - last > INTERVAL:
            content = place.image(len(there)).read_bytes()
            with (_arrived(place) / f"{len(there):04d}.png").open("wb") as file:
                for part in (content[: len(content) // 2], content[len(content) // 2 :]):
                    file.write(part)
                    file.flush()
                    time.sleep(0.002)
        return
    table = place.output / "predictions.csv"
    if table.is_file() and table.read_bytes().count(b"\n") > ARRIVALS and process not in _TOLD and _catches(process):
        _TOLD.add(process)
        os.kill(process, signal.SIGTERM)


def _catches(process: int) -> bool:
    """Whether a process is so far that SIGTERM ends its watching, and not itself."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
        caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
        return bool(caught >> (signal.SIGTERM - 1) & 1)
    return False


def report(place: Place) -> None:
    """Put a run beside itself."""
    run = str(place.inputs / "run")
    main(["report", run, run, "--names", "[A,B]", "--output", str(place.output), "--overwrite", "true"])


def _older_report(place: Place) -> None:
    for name in ("report.md", "report.csv", "report.html"):
        (place.output / name).write_text("</html>\n" if name[-1] == "l" else "older\n", encoding="utf-8")


EXPORTED = ("weights/openvino/model.*",)
WORKS = {
    "generation": Work(generate),
    "check": Work(check, _older_check, belonging=("check.html", "problems.csv")),
    "feature cache": Work(cache, results="cache", written="cache/*/*"),
    "training": Work(train, results="UniAD/*/latest", written="**/*.ckpt"),
    "checkpoints": Work(checkpoint, results="UniAD/*/latest", written="**/*.ckpt"),
    "calibration": Work(calibrate, _older_thresholds, written=".thresholds*"),
    "export": Work(export, _older_export, belonging=EXPORTED, written=".export*"),
    "predict": Work(predict, written="predictions.csv"),
    "watch": Work(watch, _nothing_arrived, _arrive, written="predictions.csv"),
    "report": Work(report, _older_report, belonging=("report.*",), written=".report*"),
    "benchmark": Work(run_benchmark, written="**/run/config.yaml"),
}


# Measuring.


class Ran(NamedTuple):
    """How a start of a work ended: exit code (``None`` if it was killed), seconds, and those until the first file."""

    code: int | None
    seconds: float
    first: float | None


def kills(
    works: list[str] | None = None,
    kills: int = 10,
    seed: int = 0,
    output_dir: Path = RESULTS,
    work_dir: Path = Path("runs/kills"),
) -> None:
    """Kill works; writes ``kills.csv``.

    Args:
        works: Which works; default: all.
        kills: Of each, at least.
        seed: Seed of the moments.
        output_dir: Folder of the table.
        work_dir: Folder for inputs, files of the works and the rounds so far.
    """
    at_least(1, kills=kills)
    names = works or list(WORKS)
    if unknown := sorted(set(names) - set(WORKS)):
        raise ValueError(f"There is no work {', '.join(unknown)}; there are {', '.join(WORKS)}.")
    torch.set_num_threads(1)
    for module in LAZY:
        importlib.import_module(module)
    work_dir = work_dir.absolute()
    place = Place(work_dir / "inputs", work_dir / "output")
    make_inputs(place)
    so_far = work_dir / "rounds.jsonl"
    rounds = [json.loads(line) for line in so_far.read_text(encoding="utf-8").splitlines()] if so_far.is_file() else []
    with tqdm(total=kills * len(names), unit="kill") as bar:
        for name in names:
            bar.set_description(name)
            done = [row for row in rounds if (row["work"], row["seed"]) == (name, seed)]
            bar.update(min(kills, sum(row["kills"] for row in done)))
            if sum(row["kills"] for row in done) >= kills:
                continue
            seconds, first, code, reference = undisturbed(WORKS[name], place)
            while sum(row["kills"] for row in done) < kills:
                row = round_of(name, place, seconds, first, code, reference, seed, len(done))
                done.append({"work": name, "seed": seed, "undisturbed_seconds": round(seconds, 2), **row})
                with so_far.open("a", encoding="utf-8") as file:
                    file.write(f"{json.dumps(done[-1])}\n")
                write_row(output_dir / "kills.csv", name, done, seed)
                bar.update(row["kills"])
                if row["different"] or row["half"]:
                    bar.write(f"{name}, round {len(done)}: {row['different']} {row['half']}")
    show(output_dir / "kills.csv", ("work", "kills", "rounds", "equal", "half_written", "undisturbed_seconds"))


def write_row(table: Path, name: str, rounds: Sequence[dict[str, Any]], seed: int) -> None:
    """Put the rounds of a work into the table."""
    row = {
        "work": name,
        "kills": sum(one["kills"] for one in rounds),
        "rounds": len(rounds),
        "equal": sum(not one["different"] for one in rounds),
        "half_written": sum(len(one["half"]) for one in rounds),
        "undisturbed_seconds": rounds[-1]["undisturbed_seconds"],
        **origin(f"{processor()}, {os.cpu_count()} cores", seed, packages=("openvino",)),
        "date": date.today().isoformat(),
    }
    add_rows(table, [row], same=("work", "device"))


def undisturbed(work: Work, place: Place) -> tuple[float, float, int | None, Contents]:
    """Seconds of a work, those until its first file, its exit code, and what it makes.

    It is run twice: a work whose results differ between two undisturbed runs says nothing when it is killed.
    """
    found = []
    for _ in range(2):
        begin(work, place)
        ran = start(work, place)
        found.append((ran, contents(work, place)))
    (first, one), (second, other) = found
    if first.code != second.code or first.code not in {0, 1} or one != other or not one:
        wrong = differences(one, other)
        raise RuntimeError(f"Two undisturbed runs differ: {first}, {second}, {wrong}; see {_log(place)}.")
    return second.seconds, second.first if second.first is not None else second.seconds, second.code, other


def round_of(
    name: str, place: Place, seconds: float, first: float, code: int | None, reference: Contents, seed: int, number: int
) -> dict[str, Any]:
    """Begin a work, kill it, and start it until it finishes."""
    work = WORKS[name]
    begin(work, place)
    killed, wanted, half = 0, 2 if number % 3 == 2 else 1, []
    for attempt in range(20):
        draw = random.Random(f"{seed} {name} {number} {attempt}").random()
        late = (number + attempt) % 2 == 1
        moment = draw * (max(seconds - first, 0.002) if late else seconds) if killed < wanted else None
        ran = start(work, place, moment, after_first=late)
        if ran.code is None:
            killed += 1
            half += half_written(work, place)
        elif killed:
            break
        else:  # it was quicker than the undisturbed one
            begin(work, place)
    different = differences(reference, contents(work, place))
    if ran.code != code:
        different.append(f"exit code {ran.code}")
    return {"kills": killed, "different": different, "half": half}


def begin(work: Work, place: Place) -> None:
    """Empty the folder, and put older results into it."""
    shutil.rmtree(place.output, ignore_errors=True)
    place.output.mkdir(parents=True)
    work.prepare(place)
    files = [file for pattern in work.belonging for file in place.output.glob(pattern)]
    work.old = {file: file.read_bytes() for file in files}


def start(work: Work, place: Place, moment: float | None = None, after_first: bool = False) -> Ran:
    """Run a work in a process of its own, which is killed after some seconds, from its first file on or at all."""
    before = set(place.output.glob(work.written))
    begun, first = time.perf_counter(), None
    process = os.fork()
    if process == 0:
        _child(work, place)
    with contextlib.suppress(OSError):  # it has done so itself
        os.setpgid(process, process)  # a group of its own
    status, ended = 0, 0
    while not ended:
        now = time.perf_counter() - begun
        if first is None and any(path not in before for path in place.output.glob(work.written)):
            first = now
        since = first if after_first else 0.0
        if (moment is not None and since is not None and now - since >= moment) or now > LONGEST:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
            _, status = os.waitpid(process, 0)
            if not os.WIFSIGNALED(status):
                break  # it has just ended
            return Ran(None, now, first)
        work.meanwhile(place, process)
        time.sleep(_POLL)
        ended, status = os.waitpid(process, os.WNOHANG)
    return Ran(os.waitstatus_to_exitcode(status), time.perf_counter() - begun, first)


def _child(work: Work, place: Place) -> None:
    """Do the work in a forked process, and end it."""
    os.setpgid(0, 0)

    def run() -> int:
        sys.argv = ["kills"]  # not the arguments of this run: some works write their command
        os.chdir(place.output)
        try:
            work.run(place)
        except SystemExit as error:
            print(error.code)
            return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        return 0

    _end_with(run, os.open(_log(place), os.O_WRONLY | os.O_CREAT | os.O_APPEND), {})


def _end_with(run: Callable[[], int], log: int, environment: dict[str, str]) -> None:
    """Do something in a forked process, and end it with the exit code that it returns."""
    code = 70
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(environment)
        code = run()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _log(place: Place) -> Path:
    return place.output.with_name("log.txt")


def make_inputs(place: Place) -> None:
    """Make images, an exported model, a run and a config of a benchmark, unless they are there."""
    done = place.inputs / "done"
    if done.is_file():
        return
    shutil.rmtree(place.inputs, ignore_errors=True)
    write_images(place.inputs / "images", 24, 64)
    for name in PRODUCTS:
        for number in range(1, 7):
            for source, kind in (("000", "good"), ("000", "broken")):
                test = place.inputs / "images" / name / "test" / kind
                pixels = np.asarray(Image.open(test / f"{source}.png")).astype(int) + number
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(test / f"{number:03d}.png")
            mask = place.inputs / "images" / name / "ground_truth" / "broken"
            shutil.copyfile(mask / "000_mask.png", mask / f"{number:03d}_mask.png")
    images = sorted((place.inputs / "images").rglob("train/good/*.png"))
    (place.inputs / "new").mkdir()
    for number in range(120):
        shutil.copyfile(images[number % len(images)], place.image(number))
    model = {"class_path": "kills.Converted", "init_args": {**TINY, "resume_interval": ALWAYS}}
    data = {"root": str(place.inputs / "images"), "num_workers": 0, "train_batch_size": 4, "seed": 0}
    config = {
        "models": {"A": {"model": model, "trainer": {"max_epochs": 2}}},
        "data": {"images": {"class_path": "MultiCategory", "init_args": data}},
        "seeds": [0],
        "timed_images": 2,
    }
    (place.inputs / "benchmark.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    for run, found, target in (
        (export_older, "", "export"),
        (convert, "weights/onnx", "onnx"),
        (train, "UniAD/*/latest", "run"),
    ):
        work = Work(run, results=found)
        begin(work, place)
        if start(work, place).code != 0 or (folder := _results(work, place)) is None:
            raise RuntimeError(f"The inputs could not be made; see {_log(place)}.")
        shutil.copytree(folder, place.inputs / target)
    done.touch()


# Comparing.


def contents(work: Work, place: Place) -> Contents:
    """What a work has made: path -> content, without what differs between any two runs."""
    if (folder := _results(work, place)) is None:
        return {}
    found: Contents = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not _is_left_out(path, folder):
            found[name] = _content(path, folder)
    return found


def _results(work: Work, place: Place) -> Path | None:
    found = next(place.output.glob(work.results), None) if work.results else place.output
    return None if found is None else found.resolve()


def _is_left_out(path: Path, folder: Path) -> bool:
    """Hidden files, and what is of a training inside a benchmark; its tables and exported files are compared."""
    parts = path.relative_to(folder).parts
    inside = (folder / "results.csv").is_file() and len(parts) > 1 and "exported" not in parts
    return inside or any(part.startswith(".") for part in parts)


def _content(path: Path, folder: Path) -> Any:
    if path.suffix in {".ckpt", ".pt"}:
        saved = torch.load(path, map_location="cpu", weights_only=False)
        return _weights(saved["model"].state_dict() if path.suffix == ".pt" else saved["state_dict"])
    if path.suffix == ".csv":
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
        kept = [number for number, name in enumerate(rows[0]) if name not in MEASURED]
        cells = [[row[number] if number < len(row) else "" for number in kept] for row in rows]
        return [cells[0], *sorted(cells[1:])]
    if path.suffix == ".jsonl":
        return sorted(path.read_text(encoding="utf-8").splitlines())
    if path.name == "meta.json":
        return {name: value for name, value in json.loads(path.read_bytes()).items() if name != "created"}
    return path.read_bytes().replace(bytes(folder), b".")


def _weights(state: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: value.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for name, value in state.items()}


def differences(one: Contents, other: Contents) -> list[str]:
    """Names of files that are not equal."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def half_written(work: Work, place: Place) -> list[str]:
    """Visible files that cannot be read to their end, and results of which a part is older."""
    found = []
    for path in sorted(place.output.rglob("*")):
        name = path.relative_to(place.output).as_posix()
        if path.is_file() and not any(part.startswith(".") for part in Path(name).parts) and not _is_whole(path):
            found.append(name)
    older = {file.is_file() and file.read_bytes() == old for file, old in work.old.items() if file.is_file()}
    if len(older) > 1:
        found.append(f"{' and '.join(file.name for file in work.old)}: not of one age")
    return found


def _is_whole(path: Path) -> bool:
    """Whether a file can be read to its end; logs of trainings need not be."""
    try:
        return _READERS.get(path.suffix, lambda _: True)(path)
    except Exception:  # whatever readers have to say about a part of a file
        return False


def _ends_a_line(path: Path) -> bool:
    return path.read_bytes()[-1:] in {b"\n", b""}


def _is_table(path: Path) -> bool:
    return (
        _ends_a_line(path) and len({len(row) for row in csv.reader(path.read_text(encoding="utf-8").splitlines())}) <= 1
    )


def _is_archive(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return archive.testzip() is None


def _is_picture(path: Path) -> bool:
    with Image.open(path) as picture:
        picture.load()
    return True


def _is_page(path: Path) -> bool:
    return path.read_text(encoding="utf-8").rstrip().endswith("</html>")


_READERS: dict[str, Callable[[Path], bool]] = {
    ".ckpt": _is_archive,
    ".pt": _is_archive,
    ".png": _is_picture,
    ".jpg": _is_picture,
    ".csv": _is_table,
    ".md": _ends_a_line,
    ".html": _is_page,
    ".json": lambda path: json.loads(path.read_bytes()) is not None,
    ".jsonl": lambda path: (
        all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()) and _ends_a_line(path)
    ),
    ".yaml": lambda path: yaml.safe_load(path.read_text(encoding="utf-8")) is not None and _ends_a_line(path),
    ".xml": lambda path: ElementTree.parse(path) is not None,
    ".npy": lambda path: np.load(path, mmap_mode="r") is not None,
    ".onnx": lambda path: onnx.load(path) is not None,
}


if __name__ == "__main__":
    auto_cli(kills)
