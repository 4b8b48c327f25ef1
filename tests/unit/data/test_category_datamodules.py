# SPDX-License-Identifier: Apache-2.0
"""Datasets that MultiCategory can wrap, which categories they have, and what is refused."""

from contextlib import nullcontext
from pathlib import Path
from urllib.error import URLError

import anomalib.data
import pandas as pd
import pytest
from anomalib.data import AnomalibDataModule, BTech, MVTecAD, Visa

import layouts
from anomalib_uniad.category import categories_of
from anomalib_uniad.data import MultiCategory
from anomalib_uniad.data.category_datamodules import listed_categories
from anomalib_uniad.synthetic.synthetic_products import SyntheticProducts
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
    if source == "Visa":  # as downloaded: its images are sorted into folders first
        with pytest.raises(ValueError, match=r"no categories of Visa .*candle.*: .* set download to true to have Visa"):
            make(tmp_path / "root", source=source)
        make(tmp_path / "root", source=source, download=True)
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
    assert make(tmp_path / "p", source="SyntheticProducts").categories == ["washer"]
    datamodule = make(tmp_path / "p", source="SyntheticProducts", download=True)
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
        for download in (False, True):
            with pytest.raises(ValueError, match="no category 'tile'"):
                MultiCategory("MVTecAD", root, ["bottle", "tile"], download)

    def test_one_archive_each(self, tmp_path):
        layouts.mvtec_loco(tmp_path, ["pipe_clip"])
        assert MultiCategory("AutoVI", root=tmp_path).categories == ["pipe_clip"]
        datamodule = MultiCategory("AutoVI", root=tmp_path, categories=["pipe_clip", "tank_screw"], download=True)
        with pytest.raises(ValueError, match=r"no category 'tank_screw' in .* There are: pipe_clip\."):
            MultiCategory("AutoVI", root=tmp_path, categories=["pipe_clip", "tank_screw"])
        assert datamodule.categories == ["pipe_clip", "tank_screw"]
        with pytest.raises(ValueError, match=r"no category 'nope' in .* There are: pipe_clip\."):
            MultiCategory("AutoVI", root=tmp_path, categories=["nope"], download=True)

    def test_published_by_the_class(self, root):
        source = f"{__name__}.Published"
        assert MultiCategory(source, root=root).categories == ["bottle", "cable", "my_part"]
        assert MultiCategory(source, root, download=True).categories == ["bottle", "cable", "drawn", "my_part"]
        assert MultiCategory(source, root, ["drawn"], download=True).categories == ["drawn"]
        with pytest.raises(ValueError, match="no category 'tile'"):  # of its base class
            MultiCategory(source, root, ["tile"], download=True)


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
        (tmp_path / "empty" / "train").mkdir(parents=True)
        (tmp_path / "license.txt").touch()
        assert MultiCategory("MVTecAD", root=tmp_path).categories == ["bottle"]

    def test_all_known_if_there_is_nothing_yet(self, tmp_path):
        for root in (tmp_path / "new", tmp_path):
            assert MultiCategory("BTech", root=root, download=True).categories == ["01", "02", "03"]

    def test_nothing_is_known(self, tmp_path):
        write_image(tmp_path / "images" / "a.png")
        with pytest.raises(ValueError, match=r"Found no categories in .*: set categories, or root"):
            MultiCategory(f"{__name__}.Unlisted", root=tmp_path)

    @pytest.mark.parametrize("categories", [None, ["bottle"]])
    def test_root_is_a_category(self, root, categories):
        with pytest.raises(ValueError, match=r"bottle seems to be a category: .*/products\."):
            MultiCategory("MVTecAD", root=root / "bottle", categories=categories)

    def test_root_is_too_high(self, root):
        with pytest.raises(ValueError, match=r"There are categories in .*/products, where MVTecAD does not look"):
            MultiCategory("MVTecAD", root=root.parent, categories=["bottle"])

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
            ({"source": "Kolektor"}, "'Kolektor' has no argument `category`"),
            ({"source": "MultiCategory"}, "'MultiCategory' has no argument `category`"),
            ({"source": "UCSDped"}, "'UCSDped' is made of videos"),
            ({"source": "MVTecAD2", "val_split_mode": "none"}, "MVTecAD2 has no argument 'val_split_mode'"),
            ({"source": "RealIAD", "val_split_ratio": 0.2}, "RealIAD has no argument 'val_split_ratio'"),
            ({"source": "MVTecAD", "source_args": {"colour": 1}}, "MVTecAD has no argument 'colour'"),
            ({"source": "MVTecAD", "source_args": {"category": "bottle"}}, "Set 'categories' of MultiCategory itself"),
            ({"source": "MVTecAD", "source_args": {"seed": 1}}, "Set 'seed' of MultiCategory itself"),
            ({"categories": []}, "`categories` is empty"),
            ({"categories": ""}, "`categories` is empty"),
            ({"categories": ["bottle", "cable", "bottle"]}, "Categories given twice: bottle"),
            ({"categories": [1, 2]}, "Categories are strings, got 1; in YAML, write it in quotes"),
            (
                {"categories": ["bottle", "nope"]},
                r"no category 'nope' in .*products. There are: bottle, cable, my_part\.",
            ),
            ({"val_split_mode": "nope"}, "val_split_mode must be one of 'none', .*, 'mixed', got 'nope'"),
            ({"val_split_mode": "from_dir"}, "val_split_mode is 'from_dir', but own folders have no validation images"),
            ({"test_split_mode": "none"}, "test_split_mode is 'none', but own folders have test images"),
            ({"normal_split_ratio": 1.5}, "normal_split_ratio is 1.5, it has to be a number between 0 and 1"),
            ({"source_args": {"resolution": 3}}, "source_args is for a source: leave it out"),
            ({"download": True}, "download is for a source: leave it out"),
            ({"source": "Visa", "normal_dir": "good"}, "normal_dir is for own folders, not for the source Visa, which"),
        ],
    )
    def test_at_construction(self, root, arguments, message):
        with pytest.raises(ValueError, match=message):
            MultiCategory(root=root, **arguments)

    def test_unknown_name_is_refused_before_a_download(self, tmp_path):
        with pytest.raises(ValueError, match=r"no category 'nope' in .*new\. There are: 01, 02, 03"):
            MultiCategory("BTech", root=tmp_path / "new", categories=["01", "nope"], download=True)

    def test_missing_after_the_download(self, tmp_path, monkeypatch):
        datamodule = MultiCategory("MVTecAD", tmp_path / "new", ["bottle", "tile"], download=True)
        with pytest.raises(FileNotFoundError, match=r"no categories in .*new: MVTecAD has not put any there"):
            datamodule.setup()
        monkeypatch.setattr(MVTecAD, "prepare_data", lambda self: make_mvtec_like(self.root, ["bottle"]))
        with pytest.raises(ValueError, match=r"no category 'tile' in .*new\. There are: bottle\."):
            datamodule.prepare_data()
        with pytest.raises(ValueError, match="no category 'tile'"):
            datamodule.setup()

    def test_no_connection(self, tmp_path, monkeypatch):
        def prepare_data(self):
            raise URLError("Temporary failure in name resolution")

        monkeypatch.setattr(MVTecAD, "prepare_data", prepare_data)
        with pytest.raises(ConnectionError, match=r"MVTecAD cannot be downloaded to .*/new: Temporary failure in name"):
            MultiCategory("MVTecAD", tmp_path / "new", download=True).prepare_data()


class TestNothingIsDownloaded:
    """Without `download: true`, no datamodule of anomalib prepares anything, and no folder is made."""

    @pytest.fixture(autouse=True)
    def refuse(self, monkeypatch):
        for cls in (MVTecAD, BTech, Visa, SyntheticProducts):
            monkeypatch.setattr(cls, "prepare_data", lambda self: pytest.fail("it was called"))

    @pytest.mark.parametrize("source", [None, "Folder", "MVTecAD", "BTech", "Visa", "SyntheticProducts", "RealIAD"])
    @pytest.mark.parametrize(
        ("files", "folder", "message"),
        [
            ([], "prodcts", r"The root .*/prodcts is not there; did you mean .*/products\?"),
            ([], "products", "(no folders of products. It has nothing; expected|no categories .*it is empty)"),
            (
                ["a.png", "notes/b.txt"],
                "products",
                r"(has 1 image, 1 folder without|no categories .*a.png, notes)",
            ),
        ],
    )
    def test_root(self, tmp_path, source, files, folder, message):
        (tmp_path / "products").mkdir()
        for file in files:
            (tmp_path / "products" / file).parent.mkdir(exist_ok=True)
            (tmp_path / "products" / file).touch()
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            MultiCategory(source, tmp_path / folder)
        assert ("set download to true" in str(caught.value)) == (source not in (None, "Folder"))
        assert "\n" not in str(caught.value)
        assert sorted(tmp_path.rglob("*")) == before

    def test_nor_for_categories_that_are_there(self, root):
        assert len(make(root).test_data) == 18


def of_another_type(root: Path) -> None:
    file = root / "nut/train/good/000.png"
    file.rename(file.with_suffix(".JPG"))


def without_a_mask(root: Path) -> None:
    (root / "nut/ground_truth/broken/001_mask.png").unlink()


def behind_a_link(root: Path) -> None:
    (root / "nut/train/good").rename(root.parent / "good")
    (root / "nut/train/good").symlink_to(root.parent / "good")


def masks_without_image(root: Path) -> None:
    (root / "nut/test/broken/001.png").unlink()


def without_leading_zeros(root: Path) -> None:
    for name in ("test/broken/{}.png", "ground_truth/broken/{}_mask.png"):
        for old, new in (("000", "1"), ("001", "2"), ("002", "10")):
            (root / "nut" / name.format(old)).rename(root / "nut" / name.format(new))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_another_type, r"nut/train/good/000.JPG is no PNG file, which MVTecAD does not read: leave source out"),
        (without_a_mask, r"nut/test/broken/001.png has no mask, which MVTecAD does not read"),
        (behind_a_link, r"nut/train/good/000.png is behind a link, which MVTecAD does not read"),
        (masks_without_image, r"nut: 1 mask without an image \(ground_truth/broken/001_mask.png\)"),
        (without_leading_zeros, r"MVTecAD cannot pair the images and masks of 'nut'"),
    ],
)
def test_what_mvtec_ad_would_misread(tmp_path, change, message):
    root = make_mvtec_like(tmp_path / "own", ["nut", "ring"], (16, 16), train=2, good=1, bad=3)
    change(root)
    with pytest.raises(ValueError, match=message):
        make(root)
    if change is not masks_without_image:
        with_own_reader = make(root, source=None, val_split_mode="same_as_test")
        assert len(with_own_reader.train_data) == 4
        assert len(with_own_reader.test_data) == 8


def test_classes_derived_from_mvtec_ad(tmp_path):
    root = make_mvtec_like(tmp_path / "own", ["nut"], (16, 16))
    write_image(root / "nut" / "train" / "good" / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg is no PNG file, which Derived does not read"):
        make(root, source=f"{__name__}.Derived")
    make(root, source=f"{__name__}.ReadsOtherwise")


class Derived(MVTecAD):
    """Reads what its base reads."""


class ReadsOtherwise(MVTecAD):
    """Has a reader of its own, of which nothing is known."""

    def _setup(self, _stage=None):
        super()._setup(_stage)


@pytest.mark.parametrize("mode", ["from_test", "from_train", "synthetic", "mixed"])
def test_a_split_drawn_again_is_the_same(root, mode):
    def names(**arguments):
        module = make(root, val_split_mode=mode, val_split_ratio=0.5, **arguments)
        files = [Path(path) for path in module.val_data.samples.image_path]
        return sorted(f"{file.parent.name}/{file.name} {hash(file.read_bytes())}" for file in files)

    assert names() == names() == names(seed=0)
    assert len({tuple(names(seed=seed)) for seed in range(6)}) > 1


def test_mixed_split_of_a_wrapped_class(root):
    module = make(root, val_split_mode="mixed", val_split_ratio=0.4)
    counts = {name: getattr(module, name).samples.groupby(["category", "label_index"]).size() for name in SETS}
    assert set(counts["train_data"]) == {2}
    assert set(counts["val_data"].xs(0, level=1)) == {2 + 1}
    assert set(counts["val_data"].xs(1, level=1)) == {1}
    assert set(counts["test_data"]) == {2}
    paths = [path for name in SETS for path in getattr(module, name).samples.image_path]
    assert len(paths) == len(set(paths)) == 3 * 10
    assert module.val_split_mode == "mixed"
    batch = next(iter(module.val_dataloader()))
    assert (batch.gt_mask.flatten(1).any(1) == batch.gt_label).all()


def test_mixed_split_of_classes_with_their_own_validation_set(tmp_path):
    layouts.mvtec_ad_2(tmp_path, ["can", "vial"])
    module = make(tmp_path, source="MVTecAD2", val_split_mode="mixed")
    assert all("/validation/" not in path for path in module.val_data.samples.image_path)
    assert len(module.val_data) == 2 * (1 + 2)
