# SPDX-License-Identifier: Apache-2.0
"""What a user reads after a mistake, and how soon: each case is a command in a process of its own.

python benchmarks/messages.py
"""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import auto_cli
from PIL import Image

import harness

UNIAD = (
    "--model UniAD --model.backbone tf_efficientnet_lite0 --model.image_size 64 --model.neighbor_size 3 "
    "--model.hidden_dim 32 --model.num_heads 2 --model.num_encoder_layers 1 --model.num_decoder_layers 1 "
    "--model.feedforward_dim 32 --trainer.accelerator cpu --trainer.max_epochs 1"
)
PARTS = "--data MultiCategory --data.root parts --data.num_workers 0"
CACHE = "--model.feature_cache memory"
TRAIN = f"anomalib train {UNIAD} {PARTS}"
PATCHCORE = (
    "anomalib train --model Patchcore --model.backbone resnet18 --model.layers [layer2,layer3] --model.pre_trained "
    "false --trainer.accelerator cpu --data MVTecAD --data.root parts --data.category blister --data.num_workers 0"
)
LIGHTNING = "weights/lightning/model.ckpt"


@dataclass
class Case:
    """A mistake.

    Attributes:
        name: What is wrong.
        command: What the user types.
        prepare: Spoils the data before.
        environment: Variables of the environment.
        before: A command that has to have run.
    """

    name: str
    command: str
    prepare: Callable[[Path], None] | None = None
    environment: tuple[tuple[str, str], ...] = ()
    before: str = ""


def cut_off(folder: Path) -> None:
    file = folder / "parts/washer/train/good/003.png"
    file.write_bytes(file.read_bytes()[:2000])


def empty(folder: Path) -> None:
    (folder / "parts/washer/train/good/003.png").write_bytes(b"")


def text(folder: Path) -> None:
    (folder / "parts/washer/train/good/list.jpg").write_text("000.png good\n001.png good\n")


def sixteen_bits(folder: Path) -> None:
    for file in (folder / "parts/washer").rglob("*.png"):
        if "ground_truth" not in file.parts:
            grey = np.asarray(Image.open(file).convert("L")).astype(np.uint16) * 16  # 12 bits in 16
            Image.fromarray(grey).save(file)


def german(folder: Path) -> None:
    (folder / "parts/blister").rename(folder / "parts/Blister Packung Größe 1")


def three_beside_300(folder: Path) -> None:
    good = folder / "parts/washer/train/good"
    for file in sorted(good.iterdir())[3:]:
        file.unlink()
    write_part(folder / "parts/blister", good=300)


def flat(folder: Path) -> None:
    for number in range(4):
        write(folder / "flat" / f"{number}.png", number)


def file_in_the_way(folder: Path) -> None:
    (folder / "out").write_text("a file")


def damaged_checkpoint(folder: Path) -> None:
    file = folder / "results/UniAD/parts/v0" / LIGHTNING
    (folder / "damaged.ckpt").write_bytes(file.read_bytes()[:20000])


OFFLINE = (("HF_HOME", "empty"), ("HF_HUB_OFFLINE", "0"), ("HF_ENDPOINT", "https://hub.invalid"))
TEST = f"anomalib test {UNIAD} {PARTS} --ckpt_path"
CASES = (
    Case("no mistake, for comparison", "anomalib train --model.help UniAD"),
    Case("damaged image, cache off", TRAIN, cut_off),
    Case("damaged image, cache on", f"{TRAIN} {CACHE}", cut_off),
    Case("zero-byte image, cache off", TRAIN, empty),
    Case("zero-byte image, cache on", f"{TRAIN} {CACHE}", empty),
    Case("text file named .jpg", TRAIN, text),
    Case("16-bit grey washer", TRAIN, sixteen_bits),
    Case("16-bit grey washer with a range", f"{TRAIN} --data.value_range [0,4095]", sixteen_bits),
    Case("product folder 'Blister Packung Größe 1'", TRAIN, german),
    Case("3 images beside 300", TRAIN, three_beside_300),
    Case("root one level too deep", TRAIN.replace("root parts", "root parts/washer/train")),
    Case("root one level too high", TRAIN.replace("root parts", "root .")),
    Case("root misspelt", TRAIN.replace("root parts", "root prats")),
    Case("images in no folder", TRAIN.replace("root parts", "root flat"), flat),
    Case("category misspelt", f"{TRAIN} --data.categories [washr]"),
    Case("learning rate below 0", f"{TRAIN} --model.learning_rate -1"),
    Case("batch size below 0", f"{TRAIN} --data.train_batch_size -4"),
    Case("backbone misspelt", f"{TRAIN} --model.backbone resnett18"),
    Case("argument misspelt", f"{TRAIN} --model.lerning_rate 0.001"),
    Case("choice misspelt", f"{TRAIN} --model.image_score maximum"),
    Case("no internet", f"anomalib train --model UniAD {PARTS}", environment=OFFLINE),
    Case("results into a file", f"{TRAIN} --default_root_dir out/results", file_in_the_way),
    Case("checkpoint that is not there", f"{TEST} model.ckpt"),
    Case("checkpoint of PatchCore, test", f"{TEST} results/Patchcore/MVTecAD/blister/v0/{LIGHTNING}", before=PATCHCORE),
    Case(
        "checkpoint of PatchCore, export",
        f"anomalib export {UNIAD} --export_type onnx --ckpt_path results/Patchcore/MVTecAD/blister/v0/{LIGHTNING}",
        before=PATCHCORE,
    ),
    Case(
        "checkpoint of other sizes",
        f"{TEST} results/UniAD/parts/v0/{LIGHTNING} --model.image_size 96 --model.hidden_dim 16",
        before=TRAIN,
    ),
    Case("damaged checkpoint", f"{TEST} damaged.ckpt", damaged_checkpoint, before=TRAIN),
    Case(
        "prediction with a model never validated",
        f"anomalib predict {UNIAD} --data parts/blister/test --ckpt_path results/UniAD/parts/v0/{LIGHTNING}",
        before=f"{TRAIN} --trainer.limit_val_batches 0",
    ),
    Case("anomalib-uniad predict, no model", "anomalib-uniad predict model.xml parts"),
    Case("anomalib-uniad parity, no checkpoint", "anomalib-uniad parity model.ckpt --export true --data parts"),
    Case("anomalib-uniad report, no run", "anomalib-uniad report results/UniAD"),
)


def messages(output_dir: Path = harness.RESULTS, cases: str = "") -> None:
    """Make each mistake on generated images of two products; writes ``messages.csv``.

    Args:
        output_dir: Folder of the csv file.
        cases: Only those whose names have this in them.
    """
    chosen = [case for case in CASES if cases in case.name]
    rows = []
    for case in chosen:
        with tempfile.TemporaryDirectory() as name:
            row = run(case, Path(name).resolve())
        rows.append(row | harness.origin(harness.CPU, None))
        print(
            f"{case.name}: {row['seconds']} s, exit code {row['exit_code']}, {row['lines']} lines: {row['last_line']}"
        )
    harness.add_rows(output_dir / "messages.csv", rows, ["case"])


def run(case: Case, folder: Path) -> dict[str, Any]:
    """Run a case in an empty folder; paths in the row are relative to it."""
    for number, product in enumerate(("blister", "washer")):
        write_part(folder / "parts" / product, first=1000 * number)
    if case.before:
        code, output = command(case.before, folder)[:2]
        if code:
            raise RuntimeError(f"{case.before} failed:\n{output}")
    if case.prepare:
        case.prepare(folder)
    code, output, seconds = command(case.command, folder, case.environment)
    lines = [line.replace(f"{folder}/", "").replace(str(folder), ".") for line in output.splitlines() if line.strip()]
    return {
        "case": case.name,
        "typed": case.command,
        "seconds": round(seconds, 1),
        "exit_code": code,
        "lines": len(lines),
        "of_message": next((n + 1 for n, line in enumerate(reversed(lines)) if line.startswith("error: ")), 0),
        "tracebacks": sum("Traceback" in line for line in lines),
        "last_line": lines[-1].strip() if lines else "",
    }


def command(words: str, folder: Path, environment: Sequence[tuple[str, str]] = ()) -> tuple[int, str, float]:
    """Run a command; returns exit code, output and seconds."""
    program, *arguments = shlex.split(words)
    script = Path(sys.executable).with_name(program)
    own = {"COLUMNS": "200", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    start = time.perf_counter()
    result = subprocess.run(
        [str(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        cwd=folder,
        env={**os.environ, **own, **dict(environment)},
        check=False,
    )
    return result.returncode, result.stdout, time.perf_counter() - start


def write_part(folder: Path, first: int = 0, good: int = 12) -> None:
    """Write a product in the layout of MVTec AD: discs on a plain ground, defective ones with a scratch."""
    for number in range(good):
        write(folder / "train/good" / f"{number:03}.png", first + number)
    for number in range(6):
        write(folder / "test/good" / f"{number:03}.png", first + 500 + number)
        mask = write(folder / "test/scratch" / f"{number:03}.png", first + 600 + number, scratch=True)
        file = folder / "ground_truth/scratch" / f"{number:03}_mask.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(file)


def write(file: Path, seed: int, scratch: bool = False) -> np.ndarray:
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:96, :96]
    image = random.normal(90, 6, (96, 96))
    image[np.hypot(rows - 48, columns - 48) < 30] += 80
    mask = np.zeros((96, 96), np.uint8)
    if scratch:
        top = int(random.integers(25, 60))
        mask[top : top + 4, 30:60] = 255
        image[mask > 0] = 20
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat(image.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)).save(file)
    return mask


if __name__ == "__main__":
    auto_cli(messages)
