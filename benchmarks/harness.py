# SPDX-License-Identifier: Apache-2.0
"""What the scripts here share: csv rows that say how they came about, rounds in turn, memory, generated images."""

import contextlib
import logging
import multiprocessing
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from anomalib_uniad.benchmark.machine import processor
from anomalib_uniad.checks import check_at_least
from anomalib_uniad.files import replacing, version_of

RESULTS = Path("results")
CPU = torch.device("cpu")

# Rows and their files.


def origin(device: torch.device | str, seed: int | None = 0, packages: Sequence[str] = ()) -> dict[str, Any]:
    """Columns that say how a row came about: device (or a text that describes it), versions, seed and command."""
    versions = [
        f"{name} {version_of(name) or 'unknown'}" for name in ("anomalib", "torch", "anomalib-uniad", *packages)
    ]
    script = Path(sys.argv[0])
    # Without the folders of the machine.
    arguments = [Path(text).name if Path(text).is_absolute() else text for text in sys.argv[1:]]
    return {
        "device": device if isinstance(device, str) else describe_device(device),
        "versions": "; ".join(versions),
        "seed": seed,
        "command": shlex.join(["python", f"{script.parent.name}/{script.name}", *arguments]),
    }


def describe_device(device: torch.device) -> str:
    """Name of a device: that of the GPU, or of the processor with the threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads"


def add_rows(path: Path, rows: pd.DataFrame | Sequence[Mapping[str, Any]], same: Sequence[str]) -> None:
    """Add rows to a csv file, in place of those that agree in the columns ``same``: empty cells do, and 3 and 3.0.

    Other rows stay as they are, to the letter.
    """
    frame = pd.DataFrame(rows)
    frame["seed"] = [_key(seed) for seed in frame["seed"]]  # not 0.0 where one of several is missing
    if path.is_file():
        old = pd.read_csv(path, dtype=str, keep_default_na=False)
        replaced = {tuple(map(_key, row)) for row in frame.reindex(columns=same).itertuples(index=False)}
        kept = [tuple(map(_key, row)) not in replaced for row in old.reindex(columns=same).itertuples(index=False)]
        frame = pd.concat([old[kept], frame], ignore_index=True) if any(kept) else frame
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as (partial,):
        frame.to_csv(partial, index=False)


def _key(value: Any) -> str:
    """A cell, written so that equal cells are equal texts."""
    if value is None or pd.isna(value):
        return ""
    try:
        return f"{float(value):g}"
    except ValueError:
        return str(value)


def show(path: Path, columns: Sequence[str]) -> None:
    """Print some columns of a csv file."""
    from anomalib_uniad.metrics.run_files import to_markdown  # heavy, and processes of their own need none

    frame = pd.read_csv(path, dtype={"category": str})
    shown = frame[[name for name in columns if name in frame]].astype(object)
    shown = shown.map(lambda cell: "" if pd.isna(cell) else f"{cell:.4g}" if isinstance(cell, float) else cell)
    print(f"\n{path}:\n\n{to_markdown(shown)}")


# Measuring.


def in_turn(measures: Mapping[str, Callable[[], Any]], rounds: int, label: str) -> Iterator[dict[str, list]]:
    """Measure several things in turn, several times, so that what disturbs the machine disturbs all.

    Yields after each whole round: name -> results of all rounds so far.
    """
    results: dict[str, list] = {name: [] for name in measures}
    with tqdm(total=rounds * len(measures), desc=label) as bar:
        for _ in range(rounds):
            measured = {}
            for name, measure in measures.items():
                bar.set_postfix_str(name)
                measured[name] = measure()
                bar.update()
            for name, result in measured.items():
                results[name].append(result)
            yield results


def ratios(name: str, reference: Sequence[float], own: Sequence[float]) -> dict[str, float]:
    """Columns: how many times as fast as a reference, round by round: median, smallest and largest.

    Example:
        >>> ratios("plain", [8.0, 9.0], [2.0, 1.0])
        {'plain_ratio': 6.5, 'plain_ratio_min': 4.0, 'plain_ratio_max': 9.0}
    """
    found = [other / mine for other, mine in zip(reference, own, strict=True)]
    return {f"{name}_ratio": median(found), f"{name}_ratio_min": min(found), f"{name}_ratio_max": max(found)}


def apart(function: Callable[..., Any], arguments: Mapping[str, Any], time_limit: float | None = None) -> Any:
    """Call a function in a process of its own, so that its memory is its own.

    Raises:
        TimeoutError: If it takes more than ``time_limit`` seconds; the process is ended.
        ChildProcessError: If its process is killed.
        RuntimeError: If it raises an exception.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        if not receiver.poll(time_limit):
            raise TimeoutError(f"takes more than {time_limit:g} s")
        result, error = receiver.recv()
    except EOFError:
        process.join()
        msg = f"was killed by signal {-(process.exitcode or 0)}, perhaps for want of memory"
        raise ChildProcessError(msg) from None
    finally:
        process.kill()
        process.join()
    if error:
        raise RuntimeError(f"{function.__name__}({dict(arguments)}) failed: {error}")
    return result


def _send(sender: Any, function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    try:
        result, error = function(**arguments), ""
    except Exception as exception:
        result, error = None, f"{type(exception).__name__}: {exception}"
    sender.send((result, error))


class Memory:
    """Memory that this process takes from now on: of the GPU if it works there, else of the machine (Linux only)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.zeros(1, device=device)  # starts CUDA
            torch.cuda.reset_peak_memory_stats(device)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
        self._start, self._files = _status("VmRSS"), _status("RssFile")

    def peak(self) -> int | None:
        """Bytes at most; ``None`` if the system does not tell."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        now = _status("VmHWM")
        return None if now is None or self._start is None else now - self._start

    def files(self) -> int | None:
        """Bytes that are pages of files, which the system takes back if it needs room; ``None`` if it does not tell."""
        now = _status("RssFile")
        return None if now is None or self._files is None else max(now - self._files, 0)


def _status(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def limit_memory(gibibytes: float) -> None:
    """Let allocations fail beyond a limit, where the system can do that."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows; or a lower limit is set already
        import resource

        # Private memory alone: the address space has room for libraries and files as well.
        resource.setrlimit(resource.RLIMIT_DATA, (int(gibibytes * 2**30),) * 2)


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Operations per second of matrix products: the best of a large one and one as in the model."""
    large = 8192 if device.type == "cuda" else 2048
    best = 0.0
    for rows, inner, columns in ((large, large, large), (8 * 196, 256, 1024)):
        left = torch.randn(rows, inner, device=device, dtype=dtype)
        right = torch.randn(inner, columns, device=device, dtype=dtype)
        for _ in range(3):
            left @ right
        synchronize(device)
        end, repeats, times = time.perf_counter() + seconds, 10 if device.type == "cuda" else 1, []
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            for _ in range(repeats):
                left @ right
            synchronize(device)
            times.append((time.perf_counter() - start) / repeats)
        best = max(best, 2 * rows * inner * columns / min(times))  # what the machine can do when nothing disturbs it
    return best


def find_device(name: str) -> torch.device:
    """The device of a name: "cpu", "cuda" (the first GPU) or "auto", which takes a GPU if there is one."""
    there = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    if name not in ("auto", *there):
        msg = f"device must be 'auto' or one of {', '.join(map(repr, there))} on this machine, got {name!r}."
        raise ValueError(msg)
    name = there[-1] if name == "auto" else name
    return torch.device("cuda", 0) if name == "cuda" else torch.device("cpu")


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning, torch and NNCF from telling what every training and every export tells."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def at_least(least: float, **values: float) -> None:
    """Raise a ValueError that names the argument if a value is too small."""
    for name, value in values.items():
        check_at_least(name, value, least)


# Images to work on.


def write_images(root: Path, count: int, pixels: int, seed: int = 0) -> list[Path]:
    """Write PNG images in the layout of MVTec AD, of two categories; returns the training images.

    Smooth shapes and some noise: they compress about as well as photographs, so decoding them costs as much.
    """
    import cv2

    random = np.random.default_rng(seed)
    noise = random.normal(0, 4, (pixels, pixels, 3)).astype(np.float32)

    def write(path: Path, image: np.ndarray | None = None) -> Path:
        if image is None:
            coarse = random.uniform(40, 215, (8, 8, 3)).astype(np.float32)
            fine = random.normal(0, 12, (pixels // 8 + 1, pixels // 8 + 1, 3)).astype(np.float32)
            smooth, texture = (cv2.resize(x, (pixels, pixels), interpolation=cv2.INTER_CUBIC) for x in (coarse, fine))
            shift = tuple(int(n) for n in random.integers(0, pixels, 2))
            image = np.clip(smooth + texture + np.roll(noise, shift, (0, 1)), 0, 255).astype(np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(path), image):
            raise OSError(f"The image {str(path)!r} could not be written. Is the disk full?")
        return path

    categories = ("cloth", "metal")
    paths = [write(root / categories[n % 2] / "train" / "good" / f"{n:05}.png") for n in range(count)]
    for category in categories:  # the layout wants some; they are not used
        write(root / category / "test" / "good" / "000.png")
        write(root / category / "test" / "broken" / "000.png")
        write(root / category / "ground_truth" / "broken" / "000_mask.png", np.full((pixels, pixels), 255, np.uint8))
    return paths
