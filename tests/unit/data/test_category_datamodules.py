# SPDX-License-Identifier: Apache-2.0
"""Datasets that MultiCategory can wrap, which categories they have, and what is refused."""

from contextlib import nullcontext
from pathlib import Path

import anomalib.data
import pandas as pd
import pytest
from anomalib.data import AnomalibDataModule, MVTecAD

import layouts
from anomalib_uniad.category import categories_of
from anomalib_uniad.data import MultiCategory
from anomalib_uniad.data.category_datamodules import listed_categories
from helpers import make_mvtec_like, write_image
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
        check_wrapping(tmp_path, source, write, categories, dict(arguments), sizes)


def check_wrapping(tmp_path, source, write, categories, arguments, sizes):
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


def test_every_dataset_of_anomalib_is_in_the_table():
    with pytest.raises(ValueError, match=r"Unknown source 'Nope'\. Usable are ADAM3D, .*, Visa, or") as error:
        MultiCategory("Nope")
    for name in str(error.value).partition("Usable are ")[2].partition(", or ")[0].split(", "):
        assert listed_categories(getattr(anomalib.data, name)), name


class TestMissingCategories:
    """Some are on disk, another one is asked for."""

    def test_one_archive_with_all_of_them(self, root):
        with pytest.raises(ValueError, match="no category 'tile'"):
            MultiCategory(root=root, categories=["bottle", "tile"])

    def test_one_archive_each(self, tmp_path):
        layouts.mvtec_loco(tmp_path, ["pipe_clip"])
        assert MultiCategory("AutoVI", root=tmp_path).categories == ["pipe_clip"]
        datamodule = MultiCategory("AutoVI", root=tmp_path, categories=["pipe_clip", "tank_screw"])
        assert datamodule.categories == ["pipe_clip", "tank_screw"]
        with pytest.raises(ValueError, match=r"no category 'nope' in .* There are: pipe_clip\."):
            MultiCategory("AutoVI", root=tmp_path, categories=["nope"])

    def test_published_by_the_class(self, root):
        source = f"{__name__}.Published"
        assert MultiCategory(source, root=root).categories == ["bottle", "cable", "drawn", "my_part"]
        assert MultiCategory(source, root=root, categories=["drawn"]).categories == ["drawn"]
        with pytest.raises(ValueError, match="no category 'tile'"):  # of its base class
            MultiCategory(source, root=root, categories=["tile"])


class Published(MVTecAD):
    """Makes categories that are missing."""

    available_categories = ("drawn", "bottle")


def test_a_class_of_the_user(root):
    datamodule = make(root, source=f"{__name__}.Mine", categories=["bottle", "cable"])
    assert len(datamodule.train_data) == 8


class Mine(MVTecAD):
    """Hands all arguments on, and has no default category."""

    def __init__(self, category: str, **kwargs) -> None:
        super().__init__(category=category, **kwargs)


class TestWhatIsACategory:
    def test_other_folders_are_none(self, root, tmp_path):
        make_mvtec_like(tmp_path, ["bottle", ".hidden", "group/inner"])
        make_mvtec_like(tmp_path / "bottle", ["nested"])
        (tmp_path / "empty" / "train").mkdir(parents=True)
        (tmp_path / "license.txt").touch()
        assert MultiCategory(root=tmp_path).categories == ["bottle"]

    def test_all_known_if_there_is_nothing_yet(self, tmp_path):
        for root in (tmp_path / "new", tmp_path):
            assert MultiCategory("BTech", root=root).categories == ["01", "02", "03"]

    def test_nothing_is_known(self, tmp_path):
        write_image(tmp_path / "images" / "a.png")
        with pytest.raises(ValueError, match=r"Found no categories in .*: set `categories`, or `root`"):
            MultiCategory(f"{__name__}.Unlisted", root=tmp_path)

    @pytest.mark.parametrize("categories", [None, ["bottle"]])
    def test_root_is_a_category(self, root, categories):
        with pytest.raises(ValueError, match=r"bottle seems to be a category: .*/products\."):
            MultiCategory(root=root / "bottle", categories=categories)

    def test_root_is_too_high(self, root):
        with pytest.raises(ValueError, match=r"There are categories in .*/products, where MVTecAD does not look"):
            MultiCategory(root=root.parent, categories=["bottle"])

    def test_other_resolution(self, tmp_path):
        layouts.real_iad(tmp_path, ["toy"])
        with pytest.raises(ValueError, match=r"There are categories in .*realiad_256, where RealIAD does not look"):
            MultiCategory("RealIAD", root=tmp_path, source_args={"resolution": 512})


class Unlisted(AnomalibDataModule):
    """Lists no categories."""

    def __init__(self, root: str, category: str = "any", num_workers: int = 0) -> None:
        super().__init__(1, 1, num_workers)
        self.root = Path(root)
        self.category = category

    def _setup(self, _stage=None):
        raise NotImplementedError


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"source": "Nope"}, "Unknown source 'Nope'. Usable are .*MVTecAD, .*SyntheticProducts.*Visa"),
            ({"source": "nope.Nope"}, "'nope.Nope' cannot be imported: No module named 'nope'"),
            ({"source": "pathlib.Path"}, "Unknown source 'pathlib.Path'"),
            ({"source": "Folder"}, "'Folder' has no argument `category`"),
            ({"source": "Kolektor"}, "'Kolektor' has no argument `category`"),
            ({"source": "MultiCategory"}, "'MultiCategory' has no argument `category`"),
            ({"source": "UCSDped"}, "'UCSDped' is made of videos"),
            ({"source": "MVTecAD2", "val_split_mode": "none"}, "MVTecAD2 has no argument 'val_split_mode'"),
            ({"source": "RealIAD", "val_split_ratio": 0.2}, "RealIAD has no argument 'val_split_ratio'"),
            ({"source_args": {"colour": 1}}, "MVTecAD has no argument 'colour'"),
            ({"source_args": {"category": "bottle"}}, "Set 'categories' of MultiCategory itself"),
            ({"source_args": {"seed": 1}}, "Set 'seed' of MultiCategory itself"),
            ({"categories": []}, "`categories` is empty"),
            ({"categories": ""}, "`categories` is empty"),
            ({"categories": ["bottle", "cable", "bottle"]}, "Categories given twice: bottle"),
            ({"categories": [1, 2]}, "Categories are strings, got 1; in YAML, write it in quotes"),
            (
                {"categories": ["bottle", "nope"]},
                r"no category 'nope' in .*products. There are: bottle, cable, my_part\.",
            ),
            ({"val_split_mode": "nope"}, "'nope' is not a valid ValSplitMode"),
        ],
    )
    def test_at_construction(self, root, arguments, message):
        with pytest.raises(ValueError, match=message):
            MultiCategory(root=root, **arguments)

    def test_unknown_name_is_refused_before_a_download(self, tmp_path):
        with pytest.raises(ValueError, match=r"no category 'nope' in .*new. There are: 01, 02, 03"):
            MultiCategory("BTech", root=tmp_path / "new", categories=["01", "nope"])

    def test_missing_after_the_download(self, tmp_path, monkeypatch):
        datamodule = MultiCategory(root=tmp_path / "new", categories=["bottle", "tile"])
        monkeypatch.setattr(MVTecAD, "prepare_data", lambda self: make_mvtec_like(self.root, ["bottle"]))
        with pytest.raises(ValueError, match=r"no category 'tile' in .*new. There are: bottle\."):
            datamodule.prepare_data()
        with pytest.raises(ValueError, match="no category 'tile'"):
            datamodule.setup()
