# SPDX-License-Identifier: Apache-2.0
"""MultiCategory around each of the datasets that it can wrap."""

from contextlib import nullcontext

import anomalib.data
import pandas as pd
import pytest
from anomalib.data import MVTecAD

import layouts
from anomalib_uniad.category import categories_of
from anomalib_uniad.data import MultiCategory
from helpers import make_mvtec_like
from multi_category_data import SETS, make, outputs

pytestmark = [
    pytest.mark.filterwarnings("error::UserWarning"),
    pytest.mark.filterwarnings("error::FutureWarning:anomalib_uniad"),
]


@pytest.mark.parametrize(
    ("source", "write", "categories", "arguments", "sizes"),
    [
        ("Visa", layouts.visa, ["candle", "pcb1"], {}, (4, 8, 8)),
        ("BTech", layouts.btech, ["01", "03"], {}, (4, 8, 8)),
        ("MPDD", layouts.mvtec_ad, ["connector", "tubes"], {}, (4, 8, 8)),
        ("VAD", layouts.mvtec_ad, ["vad", "vad_2"], {}, (4, 8, 8)),
        ("RealIAD", layouts.real_iad, ["audiojack", "toy"], {"test_split_mode": "from_dir"}, (4, 8, 8)),
        ("MVTecAD2", layouts.mvtec_ad_2, ["can", "vial"], {}, (4, 4, 8)),
        ("MVTecAD2", layouts.mvtec_ad_2, ["can", "vial"], {"source_args": {"test_type": "private"}}, (4, 4, 4)),
        ("MVTecLOCO", layouts.mvtec_loco, ["juice_bottle", "pushpins"], {}, (6, 6, 12)),
        ("AutoVI", layouts.mvtec_loco, ["pipe_clip", "tank_screw"], {}, (6, 12, 12)),
    ],
)
@pytest.mark.filterwarnings("ignore:The 'future.infer_string' option")
def test_wraps_the_datasets_of_anomalib(tmp_path, source, write, categories, arguments, sizes):
    # anomalib 2.7 reads MVTec LOCO and AutoVI with the strings of pandas 2 only.
    old_strings = source in ("MVTecLOCO", "AutoVI")
    with pd.option_context("future.infer_string", False) if old_strings else nullcontext():
        _check_wrapping(tmp_path, source, write, categories, dict(arguments), sizes)


def _check_wrapping(tmp_path, source, write, categories, arguments, sizes):
    write(tmp_path / "root", categories)
    datamodule = make(tmp_path / "root", source=source, **arguments)
    assert datamodule.categories == categories
    assert tuple(len(getattr(datamodule, name)) for name in SETS) == sizes
    for name in SETS:
        assert set(getattr(datamodule, name).samples.category) == set(categories)
        assert len(set(outputs(datamodule, name))) == len(outputs(datamodule, name))
    for loader in (datamodule.train_dataloader(), datamodule.val_dataloader(), datamodule.test_dataloader()):
        batch = next(iter(loader))
        assert set(categories_of(batch.image_path, datamodule)) == set(categories)
    # What the wrapped class yields for a single category is what is in the joined set.
    further = arguments.pop("source_args", {})
    single = getattr(anomalib.data, source)(
        root=tmp_path / "root", category=categories[1], num_workers=0, **arguments, **further
    )
    single.setup()
    samples = datamodule.test_data.samples
    own = single.test_dataloader().dataset.samples
    assert samples[samples.category == categories[1]].image_path.tolist() == own.image_path.tolist()
    # A second look at the same folder finds the same.
    assert MultiCategory(source, root=tmp_path / "root").categories == categories


def test_generated_products_are_all_made(tmp_path, monkeypatch):
    from anomalib_uniad.synthetic import synthetic_products

    def generate(root, category, progress=None):
        make_mvtec_like(root, [category], (16, 16), train=2, good=1, bad=1)

    monkeypatch.setattr(synthetic_products, "generate_category", generate)
    make_mvtec_like(tmp_path / "p", ["washer"], (16, 16), train=2, good=1, bad=1)
    datamodule = make(tmp_path / "p", source="SyntheticProducts")
    assert datamodule.categories == sorted(synthetic_products.CATEGORIES)
    assert len(datamodule.test_data) == 2 * len(datamodule.categories)


def test_a_class_of_the_user(root):
    datamodule = make(root, source=f"{__name__}.Mine", categories=["bottle", "cable"])
    assert len(datamodule.train_data) == 8


class Mine(MVTecAD):
    """Hands all arguments on, and has no default category."""

    def __init__(self, category: str, **kwargs) -> None:
        super().__init__(category=category, **kwargs)
