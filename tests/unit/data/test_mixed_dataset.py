# SPDX-License-Identifier: Apache-2.0
import copy
import pickle

import pytest
from anomalib.data.utils import random_split, split_by_label
from torch.utils.data import DistributedSampler
from torchvision.transforms.v2 import Resize

from anomalib_uniad.data.mixed_dataset import MixedDataset, UnmixedBatchSampler
from mixed_products import GOOD, MASKED, UNMASKED, MixedProducts, make_products


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_products(tmp_path_factory.mktemp("x") / "parts")


def set_up(root, categories=None, batch_size=4):
    datamodule = MixedProducts(root, categories, batch_size)
    datamodule.setup()
    return datamodule


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_batches_never_mix_and_keep_all_images_in_order(root, batch_size):
    datamodule = set_up(root, batch_size=batch_size)
    assert datamodule.categories_with_masks == [MASKED]
    for loader in (datamodule.val_dataloader(), datamodule.test_dataloader(), datamodule.predict_dataloader()):
        batches = list(loader)
        assert [path for batch in batches for path in batch.image_path] == loader.dataset.samples.image_path.tolist()
        assert len(loader) == len(batches)
        for batch in batches:
            categories = {datamodule.category_by_path[path] for path in batch.image_path}
            assert categories == {MASKED} if batch.gt_mask is not None else categories <= {UNMASKED, GOOD}
            assert len(batch) <= batch_size
            if batch.gt_mask is not None:
                assert batch.gt_mask.flatten(1).any(dim=1).tolist() == batch.gt_label.bool().tolist()


def test_items_are_those_of_each_product_alone(root):
    joined = set_up(root).test_data
    assert isinstance(joined, MixedDataset)
    alone = {path: item for name in (GOOD, MASKED, UNMASKED) for path, item in items(set_up(root, [name])).items()}
    together = {item.image_path: item for item in (joined[row] for row in range(len(joined)))}
    assert together.keys() == alone.keys()
    for path, item in together.items():
        assert item.image.equal(alone[path].image)
        assert item.gt_label == alone[path].gt_label
        assert (item.gt_mask is None) == (alone[path].gt_mask is None)
        assert item.gt_mask is None or item.gt_mask.equal(alone[path].gt_mask)


def items(datamodule):
    return {(item := datamodule.test_data[row]).image_path: item for row in range(len(datamodule.test_data))}


def test_training_batches_have_the_empty_masks_of_good_images(root):
    batch = next(iter(set_up(root).train_dataloader()))
    assert batch.gt_mask is not None
    assert not batch.gt_mask.any()


def test_only_products_without_masks_are_as_before(root):
    datamodule = set_up(root, [UNMASKED, GOOD])
    assert datamodule.categories_with_masks == []
    assert datamodule.test_data.task == datamodule.train_data.task == "classification"
    assert not isinstance(datamodule.test_data, MixedDataset)
    assert next(iter(datamodule.test_dataloader())).gt_mask is None


def test_works_with_the_dataset_utilities_of_anomalib(root):
    data = set_up(root).test_data
    data.augmentations = Resize((8, 8))
    normal, defective = split_by_label(data)
    assert (len(normal), len(defective)) == (9, 6)
    first, second = random_split(data, 0.5, label_aware=True, seed=0)
    joined = pickle.loads(pickle.dumps(first + second))
    assert len(joined) == len(data)
    for row, path in enumerate(joined.samples.image_path):
        item = joined[row]
        assert item.image_path == path
        assert item.image.shape[-2:] == (8, 8)
        assert (item.gt_mask is not None) == (f"/{MASKED}/" in path)
    assert copy.deepcopy(data).subsample([0, 5])[1].image_path == data.samples.image_path[5]


@pytest.mark.parametrize("replicas", [2, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_processes_have_batches_of_the_same_sizes(replicas, batch_size):
    has_masks = [row in {2, 3, 4, 5, 6, 11} for row in range(13)]
    batches = []
    for rank in range(replicas):
        sampler = DistributedSampler(range(13), replicas, rank, shuffle=False)
        batches.append(list(UnmixedBatchSampler(sampler, batch_size, False, has_masks)))
        assert [row for batch in batches[-1] for row in batch] == list(sampler)
        assert all(len({has_masks[row] for row in batch}) == 1 for batch in batches[-1])
    assert all([*map(len, own)] == [*map(len, batches[0])] for own in batches)
