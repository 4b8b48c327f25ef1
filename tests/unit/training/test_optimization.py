# SPDX-License-Identifier: Apache-2.0
"""Optimizer, schedules, clipping and compilation of the training step."""

import copy
import math
import pickle

import pytest
import torch
from anomalib.data import ImageBatch
from lightning.pytorch import LightningModule, Trainer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, TensorDataset

from anomalib_uniad import UniAD
from anomalib_uniad.training.feature_cache import FeatureCache
from anomalib_uniad.training.optimization import adamw
from anomalib_uniad.training.schedule import WarmupStableDecay, learning_rate_factor

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def small_model(**arguments) -> UniAD:
    sizes = {"image_size": 64, "neighbor_size": 3, "hidden_dim": 16, "num_heads": 2, "feedforward_dim": 16}
    layers = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    return UniAD("resnet18", pre_trained=False, evaluator=False, **sizes, **layers, **arguments)


def make_trainer(**arguments) -> Trainer:
    return Trainer(accelerator="cpu", **QUIET, **arguments)


class Line(LightningModule):
    """Fits a line with the recipe of UniAD, and remembers its learning rates and gradients."""

    def __init__(self, **arguments) -> None:
        super().__init__()
        self.source = small_model(**arguments)
        self.layer = torch.nn.Linear(4, 1)
        self.rates, self.norms = [], []

    def training_step(self, batch, batch_idx):
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return 1000 * self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        self.source.trainer = self.trainer
        return self.source.configure_optimizers()


def rates(epochs=4, steps=5, **arguments) -> list[float]:
    model = Line(**arguments)
    make_trainer(max_epochs=epochs).fit(model, DataLoader(TensorDataset(torch.randn(steps, 4))))
    assert len(model.rates) == epochs * steps
    return model.rates


def test_step_schedule_of_whole_epochs() -> None:
    expected = [1e-4] * 10 + [1e-5] * 10
    assert rates(lr_decay_epoch=2) == pytest.approx(expected)


def test_step_schedule_with_warmup() -> None:
    expected = [1e-4 * (step + 1) / 7 for step in range(7)] + [1e-4] * 3 + [1e-5] * 10
    assert rates(lr_decay_epoch=2, lr_warmup_epochs=1.4) == pytest.approx(expected)


def test_cosine_schedule() -> None:
    expected = [1e-4 * (1 + math.cos(math.pi * step / 20)) / 2 for step in range(20)]
    expected[:5] = [rate * (step + 1) / 5 for step, rate in enumerate(expected[:5])]
    assert rates(lr_schedule="cosine", lr_warmup_epochs=1) == pytest.approx(expected)
    assert learning_rate_factor("cosine", 5, 20)(25) == 0


def test_wsd_schedule() -> None:
    factors = [(step + 1) / 5 for step in range(5)] + [1.0] * 11 + [1.0, 0.75, 0.5, 0.25]
    recipe = {"lr_schedule": "wsd", "lr_warmup_epochs": 1, "optimizer": "muon", "learning_rate": 3e-3}
    model = Line(**recipe)
    make_trainer(max_epochs=4).fit(model, DataLoader(TensorDataset(torch.randn(5, 4))))
    assert model.rates == pytest.approx([0.01 * factor for factor in factors])
    assert [group["lr"] for group in model.trainer.optimizers[0].param_groups] == [0, 0], "both follow it"


def test_wsd_without_decay() -> None:
    assert rates(lr_schedule="wsd", lr_decay_fraction=0.0) == pytest.approx([1e-4] * 20)


def wsd(total_steps: int = 100) -> WarmupStableDecay:
    return WarmupStableDecay(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0), total_steps)


def advance(schedule: WarmupStableDecay, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return found


def test_decay_can_start_early_and_goes_on_after_a_checkpoint() -> None:
    schedule = wsd()
    assert advance(schedule, 40) == [2.0] * 40
    schedule.start_decay(40)
    assert (schedule.decay_start, schedule.end) == (40, 50), "a fifth of the shortened training"
    assert advance(schedule, 4) == pytest.approx([2.0, 1.8, 1.6, 1.4])
    resumed = wsd(total_steps=1000)
    resumed.load_state_dict(schedule.state_dict())
    assert advance(resumed, 8) == pytest.approx([1.2, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0])


def test_decay_starts_once() -> None:
    schedule = wsd()
    advance(schedule, 12)
    schedule.start_decay(5)
    assert (schedule.decay_start, schedule.end) == (12, 15), "what is past stays"
    schedule.start_decay(20)
    assert schedule.end == 15, "once is enough"


def test_decay_is_not_put_off() -> None:
    schedule = wsd()
    schedule.start_decay(90)
    assert (schedule.decay_start, schedule.end) == (80, 100)


def test_a_resumed_training_may_be_longer() -> None:
    short, long = wsd(total_steps=10), wsd(total_steps=20)
    advance(short, 9)
    long.load_state_dict(short.state_dict())
    assert advance(long, 9) == pytest.approx([1.0, *[2.0] * 7, 1.5])  # the step at hand has its rate already


def test_cosine_counts_steps_of_accumulated_gradients() -> None:
    model = Line(lr_schedule="cosine")
    trainer = make_trainer(max_epochs=2, accumulate_grad_batches=2)
    trainer.fit(model, DataLoader(TensorDataset(torch.randn(6, 4))))
    assert model.rates[::2] == pytest.approx([1e-4 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)])


def test_cosine_ends_at_max_steps() -> None:
    model = Line(lr_schedule="cosine", lr_warmup_epochs=0.5)
    make_trainer(max_epochs=-1, max_steps=10).fit(model, DataLoader(TensorDataset(torch.randn(4, 4))))
    expected = [1e-4 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]
    assert model.rates == pytest.approx([expected[0] / 2, *expected[1:]])


def test_predictions_are_in_full_precision() -> None:
    """As thresholds and scores of the validation are."""
    model = small_model().eval()
    batch = next(iter(image_batches(1)))
    steps = (model.validation_step, model.test_step, model.predict_step)
    expected = [step(batch.update(in_place=False), 0).anomaly_map for step in steps]
    with torch.autocast("cpu", torch.bfloat16):
        actual = [step(batch.update(in_place=False), 0).anomaly_map for step in steps]
    for one, other in zip(actual, expected, strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_schedule_needs_an_end(schedule: str) -> None:
    model = Line(lr_schedule=schedule)
    with pytest.raises(ValueError, match=rf"lr_schedule '{schedule}'.*trainer\.max_epochs"):
        make_trainer(max_epochs=-1).fit(model, DataLoader(TensorDataset(torch.randn(2, 4))))


@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("bf16-mixed", True)])
def test_fused_adamw_equals_plain(precision: str, fused: bool) -> None:
    trainer = make_trainer(precision=precision)
    ours, reference = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    reference.load_state_dict(ours.state_dict())
    optimizer = adamw(ours.parameters(), 1e-2, 1e-2, trainer)
    assert optimizer.defaults["fused"] is fused
    plain = torch.optim.AdamW(reference.parameters(), lr=1e-2, weight_decay=1e-2)
    for _ in range(5):
        x = torch.randn(7, 5)
        for module, step in ((ours, optimizer), (reference, plain)):
            step.zero_grad()
            module(x).square().mean().backward()
            step.step()
    torch.testing.assert_close(ours.weight, reference.weight)


def test_no_fused_adamw_under_loss_scaling() -> None:
    trainer = make_trainer()
    trainer.strategy.precision_plugin.precision = "16-mixed"
    assert not adamw(torch.nn.Linear(2, 2).parameters(), 1e-2, 0, trainer).defaults["fused"]


def image_batches(count: int, size: int = 4) -> DataLoader:
    return DataLoader([ImageBatch(image=torch.rand(size, 3, 64, 64)) for _ in range(count)], batch_size=None)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("limit", [1e-4, 0.0])
def test_gradients_are_clipped(precision: str, limit: float) -> None:
    model, norms = small_model(gradient_clip_norm=limit), []

    def look(optimizer, args, kwargs) -> None:
        norms.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm().item())

    hook = register_optimizer_step_post_hook(look)
    try:
        make_trainer(max_epochs=1, precision=precision, **model.trainer_arguments).fit(model, image_batches(2))
    finally:
        hook.remove()
    assert len(norms) == 2
    assert min(norms) > 1e-3 if limit == 0 else norms == pytest.approx([limit, limit], rel=1e-3)


@pytest.mark.slow
def test_compiled_training_equals_eager() -> None:
    """Without dropout and jitter, whose random numbers differ."""
    weights = []
    for compile_mode in (None, "default"):
        torch.manual_seed(0)
        model = small_model(compile_mode=compile_mode, dropout=0.0, jitter_scale=0.0, learning_rate=1e-3)
        make_trainer(max_epochs=2, **model.trainer_arguments).fit(model, image_batches(2))
        weights.append(torch.cat([p.flatten() for p in model.model.transformer.parameters()]).detach())
        assert set(model.state_dict()) == set(small_model().state_dict())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-4)  # two steps move a weight by 4e-3


def test_a_compiled_model_can_be_saved_and_copied() -> None:
    model = small_model(compile_mode="default")
    model.setup("fit")
    copied = pickle.loads(pickle.dumps(model))
    assert copied._compiled is None
    assert copy.deepcopy(model)._compiled is None
    assert model._compiled is not None
    model.teardown("fit")
    assert model._compiled is None


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_compilation_gets_the_mode(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def fake_compile(function, **arguments):
        compiled.append(arguments)
        return function

    monkeypatch.setattr(torch, "compile", fake_compile)
    model = small_model(compile_mode=mode)
    make_trainer(max_epochs=1, **model.trainer_arguments).fit(model, image_batches(1))
    assert compiled == [{"mode": mode, "dynamic": False}]


def test_off_without_quotes() -> None:
    """A yaml parser makes False of it."""
    model = small_model(feature_cache=False)
    assert model.hparams["feature_cache"] == "off"
    assert not any(isinstance(callback, FeatureCache) for callback in model.configure_callbacks())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lr_schedule", "linear", "lr_schedule must be one of 'step', 'cosine', 'wsd', got 'linear'"),
        ("feature_cache", "ram", "feature_cache must be one of 'off', 'memory', 'disk', got 'ram'"),
        ("feature_cache_dtype", "int8", "feature_cache_dtype must be one of"),
        ("compile_mode", "fast", "compile_mode must be one of None, 'default'"),
        ("optimizer", "sgd", "optimizer must be one of 'adamw', 'muon', got 'sgd'"),
        ("feature_norm", "batch", "feature_norm must be one of 'none', 'standard', got 'batch'"),
        ("muon_learning_rate", -1, "muon_learning_rate must be at least 0"),
        ("muon_momentum", 1.5, r"muon_momentum must lie in \[0, 1\]"),
        ("lr_decay_fraction", 2, r"lr_decay_fraction must lie in \[0, 1\]"),
        ("lr_warmup_epochs", -1, "lr_warmup_epochs must be at least 0"),
        ("resume_interval", -1, "resume_interval must be at least 0"),
    ],
)
def test_bad_arguments(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_model(**{name: value})
