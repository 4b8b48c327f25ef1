# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from anomalib.data import InferenceBatch
from anomalib.post_processing import PostProcessor

from anomalib_uniad.metrics.post_processor import LearnedPostProcessor
from anomalib_uniad.metrics.thresholds import global_thresholds
from replay import make_batch, post_processor


def learned(**arguments):
    """One of ours in the state of one of anomalib's."""
    other = post_processor(**arguments)
    made = LearnedPostProcessor(**arguments)
    made.load_state_dict(other.state_dict())
    return made, other


@pytest.mark.parametrize("normalises", [True, False])
def test_nothing_is_decided_before_something_was_learned(normalises):
    made = LearnedPostProcessor(enable_normalization=normalises)
    batch = make_batch(["a"] * 4, [0, 0, 1, 1]).update(pred_label=None, pred_mask=None)
    score = batch.pred_score.clone()
    made.post_process_batch(batch)
    assert batch.pred_label is batch.pred_mask is None
    assert batch.pred_score.equal(score)
    output = made(InferenceBatch(pred_score=score, anomaly_map=batch.anomaly_map))
    assert output.pred_label is output.pred_mask is None
    assert output.pred_score.equal(score)
    assert global_thresholds(made)["image"] != global_thresholds(made)["image"]


def test_decisions_of_the_model_itself_stay():
    batch = make_batch(["a"] * 4, [0, 0, 1, 1])
    own = batch.pred_label.clone()
    LearnedPostProcessor().post_process_batch(batch)
    assert batch.pred_label.equal(own)


@pytest.mark.parametrize("arguments", [{}, {"enable_normalization": False}, {"image_sensitivity": 0.7}])
def test_afterwards_it_is_as_in_anomalib(arguments):
    made, other = learned(**arguments)
    batch, same = (make_batch(["a"] * 4, [0, 0, 1, 1], scale=6).update(pred_label=None, pred_mask=None) for _ in "ab")
    output = InferenceBatch(pred_score=batch.pred_score, anomaly_map=batch.anomaly_map)
    for value, expected in zip(made(output), other(output), strict=True):
        assert value.equal(expected)
    made.post_process_batch(batch)
    other.post_process_batch(same)
    for name in ("pred_score", "pred_label", "anomaly_map", "pred_mask"):
        assert getattr(batch, name).equal(getattr(same, name))
    assert global_thresholds(made) == global_thresholds(other)


@pytest.mark.parametrize("is_learned", [True, False])
def test_export_without_use_knows_what_was_loaded(is_learned):
    made = learned()[0] if is_learned else LearnedPostProcessor()

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.processor = made

        def forward(self, score, anomaly_map):
            return self.processor(InferenceBatch(pred_score=score, anomaly_map=anomaly_map))

    program = torch.export.export(Model(), (torch.rand(2), torch.rand(2, 1, 4, 4)), strict=False)
    output = program.module()(torch.tensor([0.0, 9.0]), torch.rand(2, 1, 4, 4))
    assert (output[1] is not None) == is_learned
    if is_learned:
        assert output[1].tolist() == [False, True]


class Normalised(torch.nn.Module):
    def __init__(self, processor):
        super().__init__()
        self.processor = processor

    def forward(self, score, anomaly_map):
        return tuple(self.processor(InferenceBatch(pred_score=score, anomaly_map=anomaly_map)))


@pytest.mark.parametrize("ends", [(1.0, 3.0), (2.0, 2.0), (float("nan"), float("nan"))])
def test_exported_normalisation_is_anomalibs(ends):
    """Also where the ends are equal or not known; no pixel chooses between what depends on constants alone."""
    made, other = learned()
    for processor in (made, other):
        for level in ("image", "pixel"):
            getattr(processor, f"_{level}_threshold").fill_(2)
            for name, value in zip(("min", "max"), ends, strict=True):
                getattr(processor, f"{level}_{name}").fill_(value)
    inputs = torch.tensor([-9.0, 1.5, 2.0, 2.5, 9.0]), torch.linspace(0, 4, 5 * 16).reshape(5, 1, 4, 4)
    program = torch.export.export(Normalised(made), inputs, strict=False)
    for value, expected in zip(program.module()(*inputs), Normalised(other)(*inputs), strict=True):
        torch.testing.assert_close(value, expected)
    wheres = [node for node in program.graph.nodes if "where" in str(node.target)]
    assert wheres
    assert not [node for node in wheres if node.meta["val"].numel() > 1]


def test_checkpoints_of_anomalibs_post_processor_are_read():
    made, other = learned()
    assert set(made.state_dict()) == set(PostProcessor().state_dict())
    assert made.learned == {"pred_label": True, "pred_mask": True}
    assert float(made.image_threshold) == float(other.image_threshold)
