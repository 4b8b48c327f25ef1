# SPDX-License-Identifier: Apache-2.0
"""``anomalib-uniad bench inference``. Heavy packages are imported when it runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

Part = Literal["speed", "profile", "start"]
# The first one is what the others are compared with.
Variant = Literal[
    "torch",
    "f32",
    "f16",
    "bf16",
    "int8",
    "int8_ptq",
    "any_size",
    "any_size_1024",
    "patchcore_10",
    "patchcore_1",
    "padim",
]


def inference(
    parts: Sequence[Part] = get_args(Part),
    variants: Sequence[Variant] = get_args(Variant),
    rounds: int = 5,
    seconds: float = 2.0,
    training_images: int = 648,
    calibration_images: int = 100,
    threads: int = 0,
    output_dir: Path = Path("results"),
    work_dir: Path | None = None,
    resume: bool = False,
    seed: int = 0,
    quick: bool = False,
) -> None:
    """Measure how fast UniAD predicts on this CPU, at the paper's size, against torch, PatchCore and PaDiM.

    All have the same backbone and image size. Weights and images are generated; nothing is downloaded. Writes
    ``inference_speed.csv``, ``inference_profile.csv`` with a picture, ``inference_floor.csv`` and
    ``inference_start.csv``. About ten minutes on two idle cores, half of it exports.

    Args:
        parts: "speed": latency of one image after the other and throughput. "profile": where OpenVINO's time goes in
            f32, bf16 and int8_ptq, and the floor, operations over the measured rate of matrix products. "start":
            seconds and memory of `anomalib-uniad predict`, `anomalib predict` and anomalib's OpenVINOInferencer, from
            the start of the process.
        variants: What is measured; in "speed" torch in any case, as the others are compared with it, and bf16 where
            the CPU has it. "any_size" is the file that `anomalib export` writes by default, in f32, which resizes;
            "any_size_1024" the same with images of 1024 x 1024 pixels; other files take images of the model's size.
            "patchcore_10" keeps 10 % of the training images' patches, "patchcore_1" 1 %.
        rounds: How often everything is measured, in turn.
        seconds: About how long each variant is measured in a round, for latency and for throughput.
        training_images: Number of images that PatchCore's memory bank is as large as if it were from.
        calibration_images: Generated images with which INT8 is calibrated.
        threads: Threads of torch and OpenVINO; 0 takes all cores.
        output_dir: Folder of the results; with quick, the folder "quick" in it.
        work_dir: Folder that keeps the exported files, about 1 GB, for the next time; default: a temporary one.
        resume: Go on where a run with the same arguments was interrupted: rows that are there are not measured again.
        seed: Seed of weights and images.
        quick: Small models and numbers that only show that everything runs.
    """
    if quick:
        rounds, seconds, calibration_images, training_images = 2, 0.05, 4, 8
        output_dir = output_dir / "quick"
    for name, value, least in (
        ("rounds", rounds, 1),
        ("training_images", training_images, 1),
        ("calibration_images", calibration_images, 1),
        ("threads", threads, 0),
    ):
        if value < least:
            msg = f"{name} must be at least {least}, got {value}."
            raise ValueError(msg)
    if seconds <= 0:
        msg = f"seconds must be positive, got {seconds}."
        raise ValueError(msg)
    for name, chosen, known in (("parts", parts, get_args(Part)), ("variants", variants, get_args(Variant))):
        unknown = [repr(item) for item in chosen if item not in known]
        if unknown:
            msg = f"{name} must be among {', '.join(known)}, got {', '.join(unknown)}."
            raise ValueError(msg)
    from .session import Session

    session = Session(
        output_dir=output_dir,
        work_dir=work_dir,
        threads=threads,
        training_images=training_images,
        calibration_images=calibration_images,
        resume=resume,
        seed=seed,
        quick=quick,
    )
    session.run([part for part in get_args(Part) if part in parts], variants, rounds, seconds)
