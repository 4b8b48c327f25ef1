# SPDX-License-Identifier: Apache-2.0
"""Which categories there are, and what is refused."""

from pathlib import Path

import pytest
from anomalib.data import AnomalibDataModule, MVTecAD

import layouts
from anomalib_uniad.data import MultiCategory
from helpers import make_mvtec_like, write_image

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_mvtec_like(tmp_path_factory.mktemp("x") / "products", ["bottle", "my_part", "cable"])


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
            ({"categories": ["tile"]}, r"no category 'tile' in .*products"),  # known, but would be downloaded
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
