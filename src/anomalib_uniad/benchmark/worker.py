# SPDX-License-Identifier: Apache-2.0
"""One training, in a process of its own: train, test, export, and write down what it took.

    python -m anomalib_uniad.benchmark.worker FOLDER

``FOLDER`` has the ``config.yaml`` of ``anomalib train``. Whoever starts this keeps its standard input open: the process
ends when that is closed, as it is when the other process is killed.
"""

import os
import shutil
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from anomalib_uniad.errors import InputError
from anomalib_uniad.files import replacing
from anomalib_uniad.messages import say, sentence_of

from .machine import peak_memory, processor
from .trainings import (
    CONFIG,
    LOCK,
    PROGRESS,
    RESULT,
    RUN,
    TRAINED,
    WEIGHTS,
    find_resume,
    read_json,
    write_json,
)

TAKEN = 75  # exit code: another process is at work on it
SHOWN_PATHS = 200  # test images that a result names; speed is measured on some of them


def main(folder: Path) -> int:
    """Train in a folder, unless that is done, or being done by another process.

    Args:
        folder (Path): Folder of a training.

    Returns:
        int: Exit code.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with FileLock(folder / LOCK).acquire(timeout=0):
            if not (folder / RESULT).is_file():
                _work(folder)
    except Timeout:
        return TAKEN
    return 0


def _end_with_parent() -> None:
    while os.read(0, 1024):  # not sys.stdin, whose lock this thread would hold when the process ends by itself
        pass
    os._exit(1)


def _work(folder: Path) -> None:
    start = time.perf_counter()
    config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    from lightning import seed_everything

    seed_everything(config["seed_everything"], workers=True)
    cli = _command_line(folder)
    engine, model, datamodule = cli.engine, cli.model, cli.datamodule
    _report_by_category(model)
    weights = folder / WEIGHTS
    trained = read_json(folder / TRAINED)
    if trained is None or not weights.is_file():
        trained = _train(engine, model, datamodule, folder)
        with replacing(weights) as (partial,):
            engine.trainer.save_checkpoint(partial)
        trained["seconds_before"] = round(trained["seconds_before"] + time.perf_counter() - start, 2)
        write_json(folder / TRAINED, trained)
        start, loaded = time.perf_counter(), None
    else:  # it was killed while it was tested or exported
        loaded = weights
    tested = _test(engine, model, datamodule, loaded)
    result = {
        **trained,
        "metrics": str(tested.relative_to(folder.resolve())),
        "images": _images(datamodule),
        **_export(engine, model, folder),
        "seconds": round(trained["seconds_before"] + time.perf_counter() - start, 2),
    }
    write_json(folder / RESULT, result)
    for name in (WEIGHTS, TRAINED, PROGRESS):  # anomalib's own checkpoint stays
        (folder / name).unlink(missing_ok=True)


def _command_line(folder: Path) -> Any:
    """Model, datamodule and engine as `anomalib train` makes them."""
    from anomalib.cli import AnomalibCLI

    course = ["--trainer.callbacks+=anomalib_uniad.benchmark.course.Course"]
    course += [f"--trainer.callbacks.progress={folder / PROGRESS}"]
    config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    file = folder / RUN / CONFIG
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump({name: config[name] for name in ("model", "data", "trainer")}), encoding="utf-8")
    return AnomalibCLI(["train", "--config", str(file), "--default_root_dir", str(folder / RUN), *course], run=False)


def _report_by_category(model: Any) -> None:
    """Have every model write metrics.csv, and of its own scores, so that unified and separate models are compared."""
    from anomalib.metrics import Evaluator

    from anomalib_uniad.metrics import PerCategoryEvaluator

    if type(getattr(model, "evaluator", None)) is Evaluator:
        model.evaluator = PerCategoryEvaluator.from_evaluator(model.evaluator)
    if isinstance(model.evaluator, PerCategoryEvaluator):
        model.evaluator.raw_scores = True


def _train(engine: Any, model: Any, datamodule: Any, folder: Path) -> dict[str, Any]:
    import torch

    from .course import Course

    resume = find_resume(folder)
    if resume is None and (folder / RUN).is_dir():
        for path in (folder / RUN).iterdir():  # of a training that cannot be resumed
            if path.is_dir():
                shutil.rmtree(path)
        (folder / PROGRESS).unlink(missing_ok=True)
    earlier = (read_json(folder / PROGRESS) or {}).get("seconds", 0.0) if resume else 0.0
    engine.fit(model, datamodule=datamodule, ckpt_path=resume)
    course = next(callback for callback in engine.trainer.callbacks if isinstance(callback, Course))
    device = engine.trainer.strategy.root_device
    cuda = device.type == "cuda"
    return {
        "train_seconds": round(course.seconds, 2),
        "seconds_before": round(earlier, 2),
        "peak_memory": peak_memory(),
        "peak_gpu_memory": torch.cuda.max_memory_allocated(device) if cuda else None,
        "device": torch.cuda.get_device_name(device) if cuda else f"{processor()}, {torch.get_num_threads()} threads",
        "validations": course.validations,
    }


def _test(engine: Any, model: Any, datamodule: Any, weights: Path | None) -> Path:
    """Test, and return the table of metrics."""
    engine.test(model, datamodule=datamodule, ckpt_path=weights, verbose=False)
    folder = Path(engine.trainer.default_root_dir).resolve()
    written = max(folder.glob("metrics*.csv"), key=lambda path: path.stat().st_mtime, default=None)
    if written is None:
        raise InputError(f"The evaluator of {type(model).__name__} writes no metrics.csv: leave it out of the config.")
    return written


def _images(datamodule: Any) -> list[str]:
    """Paths of some test images, from all parts of the test."""
    samples = getattr(getattr(datamodule, "test_data", None), "samples", None)
    paths = [] if samples is None else list(map(str, samples["image_path"]))
    return paths[:: max(1, -(-len(paths) // SHOWN_PATHS))]


def _export(engine: Any, model: Any, folder: Path) -> dict[str, Any]:
    """Export to OpenVINO for images of the model's size; a model that cannot be exported is no failure."""
    from anomalib_uniad.parity.models import size_on_disk

    size = getattr(model, "input_size", None)
    fixed = {"input_size": tuple(size), "onnx_kwargs": {"dynamic_shapes": None}} if size else {}
    model.eval().cpu()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = Path(engine.export(model, "openvino", export_root=folder / "exported", **fixed))
    except Exception as error:  # whatever torch and OpenVINO have to say about a model
        traceback.print_exc()
        reason = " ".join(str(error).split())[-300:] or type(error).__name__
        return {"exported": "", "size_on_disk": None, "export_error": reason}
    return {"exported": str(file.relative_to(folder)), "size_on_disk": size_on_disk(file), "export_error": ""}


if __name__ == "__main__":
    try:
        code = main(Path(sys.argv[1]).resolve())
    except Exception as error:  # the last line of the log is one sentence
        traceback.print_exc()
        say(sentence_of(error) or " ".join(f"{type(error).__name__}: {error}".split()))
        code = 1
    sys.exit(code)
