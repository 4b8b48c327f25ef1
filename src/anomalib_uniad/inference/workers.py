# SPDX-License-Identifier: Apache-2.0
"""Predicts in several processes, on one machine or on all of a cluster, on Ray Data. Ray is imported when it runs."""

import logging
import os
import pickle
import socket
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from anomalib_uniad.errors import InputError, MissingPackageError, NoConnectionError, UserError

from .compiled import PrecisionHint, compile_file
from .images import ImageFile
from .inspector import Judge
from .predictor import Output, Predictor
from .writer import draw_pictures

if TYPE_CHECKING:
    import pyarrow as pa

AT_ONCE = 64  # images that a worker is given at most: those of a worker that dies are predicted again


@dataclass(frozen=True)
class Task:
    """What all workers do.

    Args:
        folder (Path): Working folder, in which relative paths begin.
        model (Path): Exported file.
        device (str): As of :func:`~anomalib_uniad.inference.compiled.compile_file`, like the next two.
        precision_hint (str): See there.
        threads (int): See there.
        judge (tuple): Further arguments of :class:`~anomalib_uniad.inference.inspector.Judge`.
        pictures (bool): Whether heatmaps and masks are drawn.
        origin (tuple[str, str]): Hashes that the judge has where the rows are written.
    """

    folder: Path
    model: Path
    device: str
    precision_hint: PrecisionHint
    threads: int
    judge: tuple[int, str, Path | None, Path | None]
    pictures: bool
    origin: tuple[str, str]


class Worker:
    """Holds a model, and judges images.

    A mistake of a user is given back in the place of results: an exception would come out of Ray in another form.

    Args:
        task (Task): What it does.
    """

    def __init__(self, task: Task) -> None:
        self._pictures, self._problem = task.pictures, ""
        try:
            os.chdir(task.folder)
            compiled = compile_file(task.model, task.device, task.precision_hint, task.threads)
            self._judge = Judge(compiled, *task.judge)
            if self._judge.origin != task.origin:
                raise InputError(f"{task.model} or its thresholds are others than where the prediction was started.")
            self._predictor = Predictor(compiled)
        except (UserError, OSError) as error:
            self._problem = f"A worker on {socket.gethostname()} cannot start: {error}"

    def __call__(self, batch: "pa.Table") -> "pa.Table":
        """Judge images.

        Args:
            batch (pa.Table): Column ``path``: paths of images in bytes.

        Returns:
            pa.Table: Column ``output``: the pickled :class:`Output` of each, or a sentence that says why there is none.
        """
        import pyarrow as pa

        files = [ImageFile(Path(os.fsdecode(path)), PurePath()) for path in batch["path"].to_pylist()]
        found = [self._problem] * len(files) if self._problem else self._predictor.predict(files, self._finish)
        return pa.table({"output": pa.array(map(pickle.dumps, found), pa.large_binary())})

    def _finish(self, output: Output) -> None:
        self._judge.finish(output)
        if output.inspection is not None and output.image is not None:
            if self._pictures:
                output.pictures = draw_pictures(output.image, output.inspection)
            output.inspection = output.inspection.without_maps()
        output.anomaly_map = None


def check_workers(workers: int, watch: bool = False) -> None:
    """Refuse what cannot be done by workers, before any work.

    Args:
        workers (int): How many.
        watch (bool): Whether images are awaited. Defaults to ``False``.

    Raises:
        ValueError: If there are less than none, or images are awaited.
        ModuleNotFoundError: If Ray is not installed.
        ConnectionError: If nobody answers at ``RAY_ADDRESS``.
    """
    if workers < 0:
        raise InputError(f"workers must be positive, or 0 for none, got {workers}.")
    if watch:
        raise InputError("--watch true judges images in one process: leave out --workers.")
    # None of Ray's statistics are sent, and its log is in its own folder, not on the terminal.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray.data  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingPackageError("ray is not installed: pip install 'anomalib-uniad[ray]'") from error
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray itself would wait for minutes
        except OSError as error:
            raise NoConnectionError(f"There is no Ray cluster at {address} (RAY_ADDRESS): {error}.") from error


def outputs_of_workers(task: Task, files: Sequence[ImageFile], workers: int) -> Generator[Output, None, None]:
    """Have images judged by workers.

    A worker that dies is started again, and so are the images that it had. Few images are on their way at a time.

    Args:
        task (Task): What each does; 0 threads share the cores among them.
        files (Sequence[ImageFile]): The images.
        workers (int): How many.

    Yields:
        Output: One per image, in their order, with ``inspection`` and ``pictures``.

    Raises:
        ValueError: If a worker cannot start or dies again and again.
        ConnectionError: If there is no cluster at ``RAY_ADDRESS``, or it is lost.
    """
    import pyarrow as pa
    from ray import data
    from ray.exceptions import RayError, RayTaskError

    if not files:
        return
    step = max(1, min(AT_ONCE, len(files) // (4 * workers)))
    paths = [os.fsencode(file.path) for file in files]
    with _ray() as machines:
        share = share_of_cores(machines, workers)
        context = data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.execution_options.preserve_order = True
        tables = [pa.table({"path": paths[start : start + step]}) for start in range(0, len(paths), step)]
        judged = data.from_arrow(tables).map_batches(
            Worker,
            fn_constructor_args=(replace(task, threads=task.threads or max(1, int(share))),),
            batch_size=None,
            batch_format="pyarrow",
            compute=data.ActorPoolStrategy(size=workers),
            num_cpus=share,
        )
        try:
            iterator: Any = iter(judged.iter_batches(batch_size=None, batch_format="pyarrow"))
            with closing(iterator) as batches:  # before Ray is: a thread of it would start another one
                found = (pickle.loads(row.as_buffer()) for batch in batches for row in batch["output"])
                for file, output in zip(files, found, strict=True):
                    if isinstance(output, str):
                        raise InputError(output)
                    yield replace(output, file=file)
        except RayTaskError:  # a fault of ours
            raise
        except (RayError, data.exceptions.ExecutionTimeoutError) as error:
            raise NoConnectionError(
                f"The workers are lost ({_first_line(error)}): look at the memory of the machines and, with a cluster, "
                "at `ray status`; --resume true goes on."
            ) from error


def share_of_cores(machines: Sequence[int], workers: int) -> float:
    """The most cores that each worker can have, all of them on one machine.

    Args:
        machines (Sequence[int]): Cores of each machine.
        workers (int): How many.

    Returns:
        float: A whole number, or less than one if there are more workers than cores.

    Examples:
        >>> [share_of_cores(machines, 3) for machines in ([8], [3, 3], [16, 2], [2])]
        [2, 1, 5, 0.6666666666666666]
    """
    for share in range(max(machines), 0, -1):
        if sum(cores // share for cores in machines) >= workers:
            return share
    return min(machines) / workers


@contextmanager
def _ray() -> Iterator[list[int]]:
    """Ray as it runs here, at ``RAY_ADDRESS``, or started for this; how many cores its machines have."""
    import ray

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    address = os.environ.get("RAY_ADDRESS") or "local"
    ours = not ray.is_initialized()
    # Ray writes what happens to its processes to stdout.
    with Path(os.devnull).open("w", encoding="utf-8") as nothing, redirect_stdout(nothing):
        try:
            if ours:
                with _silent_libraries():
                    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
                    ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **options)
        except (OSError, RuntimeError, ValueError) as error:
            what = "Ray cannot be started" if address == "local" else f"No Ray cluster at {address} (RAY_ADDRESS)"
            raise NoConnectionError(f"{what}: {_first_line(error)}.") from error
        try:
            cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
            yield [number for number in cores if number] or [1]  # some only lead the others
        finally:
            if ours:
                ray.shutdown()


@contextmanager
def _silent_libraries() -> Iterator[None]:
    """Nothing on stderr, also of what is not Python; processes that are started now keep it so."""
    before = os.dup(2)
    with Path(os.devnull).open("w", encoding="utf-8") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _first_line(error: Exception) -> str:
    return next((line.strip(" .:") for line in str(error).splitlines() if line.strip()), type(error).__name__)
