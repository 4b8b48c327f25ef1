# SPDX-License-Identifier: Apache-2.0
"""The folder layouts of the datasets that anomalib reads, with a few random images in them."""

import csv
import json
from pathlib import Path

from helpers import make_mvtec_like, write_image, write_mask


def visa(root: Path, categories: list[str]) -> None:
    """As downloaded: the split is in a csv file."""
    rows = [["object", "split", "label", "image", "mask"]]
    for index, category in enumerate(categories):
        images = Path(category, "Data", "Images")
        for number in range(4):
            path = images / "Normal" / f"{number:04}.JPG"
            write_image(root / path, (32, 40), 10 * index + number)
            rows.append([category, "train" if number < 2 else "test", "normal", path.as_posix(), ""])
        for number in range(2):
            path, mask = (
                images / "Anomaly" / f"{number:03}.JPG",
                Path(category, "Data", "Masks", "Anomaly", f"{number:03}.png"),
            )
            write_mask(root / mask, write_image(root / path, (32, 40), 10 * index + 5 + number, defect=True))
            rows.append([category, "test", "anomaly", path.as_posix(), mask.as_posix()])
    (root / "split_csv").mkdir()
    with (root / "split_csv" / "1cls.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def mvtec_ad_2(root: Path, categories: list[str]) -> None:
    """With its own validation set, a public test set and two private ones without labels."""
    for category in categories:
        for number in range(2):
            for folder in ("train/good", "validation/good", "test_public/good", "test_private", "test_private_mixed"):
                write_image(root / category / folder / f"{number:03}_regular.png", (32, 32), number)
            mask = write_image(root / category / "test_public/bad" / f"{number:03}.png", (32, 32), number, defect=True)
            write_mask(root / category / "test_public/ground_truth/bad" / f"{number:03}_mask.png", mask)


def mvtec_loco(root: Path, categories: list[str]) -> None:
    """With a folder of masks per image; AutoVI is the same without the validation set."""
    for category in categories:
        for number in range(3):
            for folder in ("train/good", "validation/good", "test/good"):
                write_image(root / category / folder / f"{number:03}.png", (32, 32), number)
            mask = write_image(root / category / "test/structural_anomalies" / f"{number:03}.png", (32, 32), 9, True)
            for part in range(2):
                write_mask(root / category / f"ground_truth/structural_anomalies/{number:03}/{part:04}.png", mask)


def real_iad(root: Path, categories: list[str]) -> None:
    """With the split in json files, and a folder per resolution."""
    for category in categories:
        split: dict[str, list[dict]] = {"train": [], "test": []}
        folder = root / "realiad_256" / category
        for number in range(4):
            write_image(folder / "OK" / f"S{number}.jpg", (32, 32), number)
            item = {"image_path": f"OK/S{number}.jpg", "mask_path": None, "anomaly_class": "OK"}
            split["train" if number < 2 else "test"].append(item)
        for number in range(2):
            write_mask(
                folder / "NG" / f"S{number}.png", write_image(folder / "NG" / f"S{number}.jpg", (32, 32), number, True)
            )
            item = {"image_path": f"NG/S{number}.jpg", "mask_path": f"NG/S{number}.png", "anomaly_class": "AK"}
            split["test"].append(item)
        file = root / "realiad_jsons" / "realiad_jsons" / f"{category}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(split))


def btech(root: Path, categories: list[str]) -> None:
    """With other names for normal and defective."""
    make_mvtec_like(root, categories, (32, 32), train=2, good=2, bad=2, normal="ok", defect="ko", mask_suffix="")


def mvtec_ad(root: Path, categories: list[str]) -> None:
    """MPDD, VAD and others have this layout as well."""
    make_mvtec_like(root, categories, (32, 32), train=2, good=2, bad=2)
