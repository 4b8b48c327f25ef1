# SPDX-License-Identifier: Apache-2.0
"""The tables of the README, each from its csv file in ``results/``."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from anomalib_uniad.benchmark import export_tables, quantization_tables
from anomalib_uniad.benchmark.evaluation import tables as evaluation
from anomalib_uniad.benchmark.inference import tables as inference
from anomalib_uniad.benchmark.training import tables as training
from anomalib_uniad.metrics.run_files import to_markdown


def _read(results: Path, name: str) -> pd.DataFrame:
    path = results / f"{name}.csv"
    if not path.is_file():
        msg = f"There is no {path} to render the table from."
        raise FileNotFoundError(msg)
    return pd.read_csv(path, dtype={"category": str})


def _pair(rows: pd.DataFrame) -> str:
    """Image / pixel AUROC in percent, mean over seeds."""
    image, pixel = (100 * rows[column].mean() for column in ("image_AUROC", "pixel_AUROC"))
    return f"{image:.1f} / {pixel:.1f}"


def _quickstart(results: Path) -> str:
    rows = _read(results, "quickstart")
    table = pd.DataFrame(
        {
            "category": rows["category"].unique(),
            **{
                f"seed {seed}": [_pair(part) for _, part in run.groupby("category", sort=False)]
                for seed, run in rows.groupby("seed")
            },
        }
    )
    seconds = rows.groupby("seed")["seconds"].first()
    return (
        f"Image / pixel AUROC in percent:\n\n{to_markdown(table)}\n\nSeconds from start to end, installation not "
        f"counted: {', '.join(f'{s:.0f}' for s in seconds)} (seeds {', '.join(map(str, seconds.index))})."
    )


def _industrial(results: Path) -> str:
    rows = _read(results, "industrial")
    table: dict[str, list] = {"category": list(rows["category"].unique())}
    for method, run in rows.groupby("method", sort=False):
        cells = {category: _pair(part) for category, part in run.groupby("category")}
        epochs = run["epochs"].dropna().unique()
        unit = "epoch" if list(epochs) == [1] else "epochs"
        head = f"{method} ({epochs[0]:.0f} {unit})" if len(epochs) else str(method)
        table[head] = [cells.get(category, "") for category in table["category"]]
    return f"Image / pixel AUROC in percent:\n\n{to_markdown(pd.DataFrame(table))}"


def _industrial_report(results: Path) -> str:
    rows = _read(results, "industrial_report").drop(columns=["best", "note"])
    means = rows[rows["category"] == "mean"].drop(columns="category").set_index("metric")
    table = (100 * means).map(lambda value: "" if pd.isna(value) else f"{value:.1f}").reset_index()
    return f"Means over the categories in percent:\n\n{to_markdown(table)}"


def _industrial_epochs(results: Path) -> str:
    rows = _read(results, "industrial_epochs")
    epochs = sorted(rows["epoch"].unique())
    table: dict[str, list] = {"epoch": epochs}
    for method, run in rows.groupby("method", sort=False):
        table[str(method)] = [_pair(run[run["epoch"] == e]) if e in set(run["epoch"]) else "" for e in epochs]
    return to_markdown(pd.DataFrame(table))


def _cifar10(results: Path) -> str:
    rows = _read(results, "cifar10")
    table: dict[str, list] = {"method": [], "epochs": [], "seeds": [], "image AUROC": [], "thresholds from": []}
    for method, run in rows[rows["category"] == "mean"].groupby("method", sort=False):
        table["method"].append(method)
        table["epochs"].append("" if run["epochs"].isna().all() else f"{run['epochs'].max():.0f}")
        table["seeds"].append(", ".join(f"{seed:.0f}" for seed in run["seed"].dropna()))
        table["image AUROC"].append(f"{100 * run['image_AUROC'].mean():.1f}{_range(run['image_AUROC'])}")
        table["thresholds from"].append(", ".join(run["thresholds"].dropna().unique()))
    return to_markdown(pd.DataFrame(table))


def _cifar10_epochs(results: Path) -> str:
    rows = _read(results, "cifar10_epochs")
    table: dict[str, list] = {"epoch": sorted(rows["epoch"].unique())}
    for (method, seed), run in rows.groupby(["method", "seed"], sort=False):
        values = {epoch: f"{100 * value:.1f}" for epoch, value in zip(run["epoch"], run["image_AUROC"], strict=True)}
        table[f"{method}, seed {seed}"] = [values.get(epoch, "") for epoch in table["epoch"]]
    return f"Image AUROC in percent:\n\n{to_markdown(pd.DataFrame(table))}"


def _score_pool(results: Path) -> str:
    rows = _read(results, "score_pool")
    table: dict[str, list] = {"pool, px": list(rows["size"].unique())}
    for category, run in rows.groupby("category", sort=False):
        values = dict(zip(run["size"], 100 * run["image_AUROC"], strict=True))
        table[str(category)] = [f"{values[size]:.1f}" for size in table["pool, px"]]
    table["mean"] = [f"{100 * rows[rows['size'] == size]['image_AUROC'].mean():.1f}" for size in table["pool, px"]]
    return f"Image AUROC in percent:\n\n{to_markdown(pd.DataFrame(table))}"


def _recipe(results: Path) -> str:
    rows = _read(results, "recipe_epochs")
    rows = rows[rows["method"].isin(["paper", "fast"])]
    table: dict[str, list] = {"epoch": sorted(rows["epoch"].unique())}
    for method, run in rows.groupby("method", sort=False):
        by_epoch = {epoch: _spread(part) for epoch, part in run.groupby("epoch")}
        table[f"{method} ({run['epoch'].max()} epochs)"] = [by_epoch.get(epoch, "") for epoch in table["epoch"]]
    return to_markdown(pd.DataFrame(table))


def _variants(rows: pd.DataFrame) -> str:
    table: dict[str, list] = {"recipe": [], "epochs": [], "seeds": []}
    table |= {str(category): [] for category in rows["category"].unique()}
    for method, run in rows.groupby("method", sort=False):
        table["recipe"].append(method)
        table["epochs"].append(run["epochs"].max())
        table["seeds"].append(", ".join(map(str, run["seed"].unique())))
        for category, part in run.groupby("category"):
            table[str(category)].append(_spread(part) if category == "mean" else _pair(part))
    return to_markdown(pd.DataFrame(table))


def _trials(results: Path, batch: bool) -> str:
    """Those of batch size and learning rate, or those of other choices; the first trial is what all differ from."""
    rows = _read(results, "trials")
    first = rows["method"] == rows["method"].iloc[0]
    rows = rows[first | (rows["method"].str.startswith("batch") == batch)]
    return f"Image / pixel AUROC in percent:\n\n{_variants(rows)}"


def _float16_features(results: Path) -> str:
    rows = _read(results, "float16_features")
    table: dict[str, list] = {"category": list(rows["category"].unique())}
    for method, run in rows.groupby("method", sort=False):
        values = {row.category: f"{row.image_AUROC:.4f} / {row.pixel_AUROC:.4f}" for row in run.itertuples()}
        table[str(method)] = [values[category] for category in table["category"]]
    return f"Image / pixel AUROC:\n\n{to_markdown(pd.DataFrame(table))}"


def _border(results: Path) -> str:
    rows = _read(results, "border")
    table: dict[str, list] = {"trained with": [], "tested with": []}
    for (trained, tested), run in rows.groupby(["trained_with", "tested_with"], sort=False):
        table["trained with"].append(trained)
        table["tested with"].append(tested)
        for category, part in run.groupby("category", sort=False):
            table.setdefault(str(category), []).append(f"{part['ratio'].mean():.2f} ({_pair(part)})")
    epochs = rows["epochs"].iloc[0]
    return (
        f"{to_markdown(pd.DataFrame(table))}\n\nIn parentheses: image / pixel AUROC in percent. Trained for {epochs} "
        "epochs."
    )


def _backbones(results: Path) -> str:
    rows = _read(results, "backbones")
    table: dict[str, list] = {}
    for name, run in rows.groupby("backbone", sort=False):
        sizes = dict.fromkeys(f"{row.height} x {row.width}" for row in run.itertuples())
        cells = {
            "backbone": name,
            "layers": run["layers"].iloc[0],
            "channels": run["channels"].iloc[0],
            "parameters": f"{run['backbone_parameters'].iloc[0] / 1e6:.1f} M",
            "image sizes": ", ".join(sizes),
            "padding": ", ".join(run["padding_mode"].unique()),
            "largest difference": f"{run['openvino_difference'].max():.0e}",
        }
        for column, cell in cells.items():
            table.setdefault(column, []).append(cell)
    return f"Differences are parts of the map's range:\n\n{to_markdown(pd.DataFrame(table))}"


def _spread(rows: pd.DataFrame) -> str:
    return _pair(rows) + _range(rows["image_AUROC"])


def _range(values: pd.Series) -> str:
    return f" ({100 * values.min():.1f} to {100 * values.max():.1f})" if len(values) > 1 else ""


def _import_torch(results: Path) -> str:
    rows = _read(results, "import_torch")
    return (
        f"{rows['plugin_ms'].median():.2f} ms of the {rows['import_torch_ms'].median():.0f} ms that `import torch` "
        f"takes (medians of {len(rows)} fresh processes)."
    )


def _training(name: str, render: Callable[[pd.DataFrame], str]) -> Callable[[Path], str]:
    return lambda results: render(training.complete(_read(results, name)))


def _training_gpu(results: Path) -> str:
    if not (results / "training_gpu.csv").is_file():
        return "Not measured: there was no GPU. `anomalib-uniad bench train --parts [gpu]` does it where there is one."
    return _training("training_gpu", training.gpu)(results)


TABLES: dict[str, Callable[[Path], str]] = {
    "evaluation_speed": lambda results: evaluation.speed(_read(results, "evaluation_speed")),
    "inference_speed": lambda results: inference.speed(_read(results, "inference_speed")),
    "inference_floor": lambda results: inference.floor(_read(results, "inference_floor")),
    "inference_start": lambda results: inference.start(_read(results, "inference_start")),
    "ports": lambda results: export_tables.ports(_read(results, "ports")),
    "export_parity": lambda results: export_tables.export_parity(_read(results, "export_parity")),
    "quantization": lambda results: quantization_tables.quantization(_read(results, "quantization")),
    "industrial_parity": lambda results: quantization_tables.industrial_parity(_read(results, "industrial_parity")),
    "backbones": _backbones,
    "border": _border,
    "quickstart": _quickstart,
    "industrial": _industrial,
    "industrial_epochs": _industrial_epochs,
    "industrial_report": _industrial_report,
    "cifar10": _cifar10,
    "cifar10_epochs": _cifar10_epochs,
    "recipe": _recipe,
    "score_pool": _score_pool,
    "recipe_variants": lambda results: _variants(_read(results, "recipe")),
    "trials_batch": lambda results: _trials(results, batch=True),
    "trials_choices": lambda results: _trials(results, batch=False),
    "float16_features": _float16_features,
    "import_torch": _import_torch,
    "training_speed": _training("training_speed", training.speed),
    "training_floor": _training("training_floor", training.floor),
    "training_scaling": _training("training_scaling", training.scaling),
    "training_gpu": _training_gpu,
}
