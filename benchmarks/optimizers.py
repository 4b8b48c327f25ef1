# SPDX-License-Identifier: Apache-2.0
"""Why Muon learns faster: one training on the quickstart's products, with other optimizers in its place.

python benchmarks/optimizers.py
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jsonargparse import auto_cli
from torch.nn import functional as F
from tqdm.auto import trange

from anomalib_uniad import UniAD
from anomalib_uniad.training.muon import Muon
from anomalib_uniad.training.schedule import WarmupStableDecay
from harness import CPU, RESULTS, add_rows, origin, show
from trained_model import Features, extract, read_recipe

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
Parameters = list[torch.nn.Parameter]


class Lengthened(Muon):
    """Momentum as long as Muon's step for each matrix, but not orthogonalised: what the length alone does."""

    @staticmethod
    def directions(momenta: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Momenta (n, rows, columns) with the Frobenius norm of an orthogonal matrix of their shape."""
        del dtype  # This variable is not used.
        return momenta / (torch.linalg.matrix_norm(momenta, keepdim=True) + 1e-12) * min(momenta.shape[1:]) ** 0.5


def muon(cls: type[Muon], rate: float) -> Callable[[Parameters, Parameters], torch.optim.Optimizer]:
    """Muon, or what takes its place, with the recipe's AdamW for everything else."""
    return lambda matrices, others: cls(matrices, others, rate, learning_rate=0.003)


def adamw(rate: float) -> Callable[[Parameters, Parameters], torch.optim.Optimizer]:
    """AdamW for everything."""
    return lambda matrices, others: torch.optim.AdamW([*matrices, *others], lr=rate, weight_decay=1e-4)


def prepare(features: torch.Tensor, of: torch.Tensor, how: str) -> torch.Tensor:
    """Features (M, C, h, w) as they are (``raw``), ``standard`` or ``white`` by the statistics of others."""
    if how == "raw":
        return features / of.std()  # so that the same jitter and learning rates are of their scale
    mean, std = of.mean(dim=(0, 2, 3), keepdim=True), of.std(dim=(0, 2, 3), keepdim=True)
    features, of = (features - mean) / std, (of - mean) / std
    if how == "standard":
        return features
    values, vectors = torch.linalg.eigh(torch.cov(of.transpose(0, 1).flatten(1)))
    white = vectors @ torch.diag(values.clamp(min=1e-3 * values.mean()).rsqrt()) @ vectors.T
    return torch.einsum("cd,bdhw->bchw", white, features)


def condition(features: torch.Tensor) -> float:
    """Largest by smallest eigenvalue of the covariance of the channels of features (M, C, h, w)."""
    values = torch.linalg.eigvalsh(torch.cov(features.transpose(0, 1).flatten(1)).double())
    return (values[-1] / values[0]).item()


def effective_rank(moves: torch.Tensor) -> float:
    """Exponential of the entropy of the singular values' shares (https://ieeexplore.ieee.org/document/7098875).

    Example:
        >>> round(effective_rank(torch.eye(4)), 2), round(effective_rank(torch.ones(4, 4)), 2)
        (4.0, 1.0)
    """
    values = torch.linalg.svdvals(moves)
    shares = (values / values.sum()).clamp(min=1e-12)
    return float((-shares * shares.log()).sum().exp())


def train(
    model: UniAD,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    make_optimizer: Callable[[Parameters, Parameters], torch.optim.Optimizer],
    epochs: int,
    batch_size: int,
    evaluate: Callable[[], dict[str, float]],
    seed: int,
) -> tuple[list[dict[str, float]], float]:
    """Train and evaluate after every other epoch.

    Returns:
        tuple[list[dict[str, float]], float]: Loss and metrics; the mean effective rank of a step of a matrix, as a
        share of the highest that there can be, over the second half of the training.
    """
    network = model.model
    matrices = network.transformer.inner_matrices()
    inside = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in network.transformer.parameters() if id(parameter) not in inside]
    optimizer = make_optimizer(matrices, others)
    steps = epochs * -(-len(inputs) // batch_size)
    schedule = WarmupStableDecay(optimizer, steps)
    order, course, ranks, done = torch.Generator().manual_seed(seed), [], [], 0
    for epoch in trange(1, epochs + 1, leave=False):
        network.train()
        losses = []
        for batch in torch.randperm(len(inputs), generator=order).split(batch_size):
            reconstruction = network.reconstruct(inputs[batch])
            loss = F.mse_loss(reconstruction, targets[batch])
            optimizer.zero_grad()
            loss.backward()
            looked = done % 20 == 0 and 2 * done >= steps
            before = [matrix.detach().clone() for matrix in matrices] if looked else []
            optimizer.step()
            schedule.step()
            ranks += [
                effective_rank(matrix.detach() - old) / min(old.shape)
                for matrix, old in zip(matrices, before, strict=False)
            ]
            done += 1
            losses.append(loss.item())
        if epoch % 2 == 0:
            network.eval()
            course.append({"epoch": epoch, "train_loss": float(np.mean(losses)), **evaluate()})
    return course, float(np.mean(ranks))


def metrics(model: UniAD, inputs: torch.Tensor, targets: torch.Tensor, images: Features) -> dict[str, float]:
    """Mean AUROC over products."""
    with torch.no_grad():
        maps = model.model.anomaly_map(model.model.reconstruct(inputs), targets)
        frame = pd.DataFrame(images.auroc(model.model.score(maps), maps))
    return frame.drop(columns="category").mean().to_dict()


def optimizers(seeds: Sequence[int] = (0, 1, 2), output_dir: Path = RESULTS) -> None:
    """Train with each optimizer, on features that are standardised, raw or white; ``optimizers.csv`` and ``.png``.

    The images looked at are those that the quickstart sets aside for thresholds, not its test images. Trainings whose
    rows are in the file are not repeated.

    Args:
        seeds: Seeds of weights, order of images and jitter.
        output_dir: Folder of the files.
    """
    recipe, datamodule = read_recipe(CONFIG)
    of_training = extract(recipe, datamodule, datamodule.train_dataloader()).features
    held_out = extract(recipe, datamodule, datamodule.val_dataloader())
    variants = [
        *[(f"AdamW, learning rate {rate:g}", adamw(rate), "standard") for rate in (3e-4, 1e-3, 3e-3)],
        ("AdamW, learning rate 0.001, white input", adamw(1e-3), "white"),
        *[
            (f"momentum of Muon's length, x {times:g}", muon(Lengthened, 0.01 * times), "standard")
            for times in (0.3, 1)
        ],
        ("Muon", muon(Muon, 0.01), "standard"),
        ("Muon, white input", muon(Muon, 0.01), "white"),
        ("Muon, raw features", muon(Muon, 0.01), "raw"),
        ("AdamW, learning rate 0.001, raw features", adamw(1e-3), "raw"),
    ]
    path = output_dir / "optimizers.csv"
    columns = ["optimizer", "seed"]
    there = set(pd.read_csv(path)[columns].itertuples(index=False, name=None)) if path.is_file() else set()
    for seed in seeds:
        for name, make_optimizer, how in variants:
            if (name, seed) in there:
                continue
            torch.manual_seed(seed)
            model = UniAD(**{**recipe.hparams, "seed": seed, "feature_norm": "none"})
            inputs, shown = (prepare(part, of_training, how) for part in (of_training, held_out.features))
            targets, wanted = inputs, shown
            if how == "white":  # what is reconstructed, and so the map, stays the same
                targets, wanted = (prepare(part, of_training, "standard") for part in (of_training, held_out.features))

            def evaluate(model: UniAD = model, shown: Any = shown, wanted: Any = wanted) -> dict[str, float]:
                return metrics(model, shown, wanted, held_out)

            course, rank = train(
                model,
                inputs,
                targets,
                make_optimizer,
                10,
                datamodule.train_batch_size,
                evaluate,
                seed,
            )
            about = {"optimizer": name, "condition": condition(inputs), "rank": rank, **origin(CPU, seed)}
            add_rows(path, [{**row, **about} for row in course], columns)
    draw(pd.read_csv(path), output_dir / "optimizers.png")
    show(path, ("optimizer", "seed", "epoch", "train_loss", "image_AUROC", "pixel_AUROC", "condition", "rank"))


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Draw loss and image AUROC over epochs, and the rank of steps against what was learned."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    places = figure.subplots(1, 3)
    means = frame.groupby(["optimizer", "epoch"], sort=False).mean(numeric_only=True).reset_index()
    for name, rows in means.groupby("optimizer", sort=False):
        style = {"linestyle": "-" if name.startswith("Muon") else "--", "marker": "."}
        places[0].plot(rows["epoch"], rows["train_loss"], label=name, **style)
        places[1].plot(rows["epoch"], 100 * rows["image_AUROC"], **style)
        last = rows.iloc[-1]
        places[2].plot(100 * last["rank"], 100 * last["image_AUROC"], "o")
    places[0].set(xlabel="epoch", ylabel="training loss", yscale="log")
    places[1].set(xlabel="epoch", ylabel="image AUROC, %")
    places[2].set(xlabel="effective rank of a step, % of full", ylabel="image AUROC at the end, %", xlim=(0, 100))
    figure.legend(*places[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    auto_cli(optimizers)
