# SPDX-License-Identifier: Apache-2.0
"""A datamodule with several categories, ready to look at."""

from pathlib import Path

from anomalib.utils.path import generate_output_filename

from anomalib_uniad.data import MultiCategory

SETS = ("train_data", "val_data", "test_data")


def make(root, source="MVTecAD", **arguments) -> MultiCategory:
    datamodule = MultiCategory(source, root, num_workers=0, **arguments)
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def outputs(datamodule, name="test_data") -> list[Path]:
    return [
        generate_output_filename(path, "images", datamodule.name, datamodule.category, mkdir=False)
        for path in getattr(datamodule, name).samples.image_path
    ]
