# SPDX-License-Identifier: Apache-2.0
"""Markdown of what was measured, for the terminal and the README."""

from collections.abc import Callable

import pandas as pd

from anomalib_uniad.metrics.run_files import to_markdown

LARGE = "any_size_1024"  # with images of another size than the others
LABELS = {
    "torch": "UniAD, torch",
    "f32": "UniAD, OpenVINO, f32",
    "f16": "UniAD, OpenVINO, f16 file",
    "bf16": "UniAD, OpenVINO, bf16",
    "int8": "UniAD, OpenVINO, INT8 weights",
    "int8_ptq": "UniAD, OpenVINO, INT8",
    "any_size": "UniAD, OpenVINO, f32, file for any size",
    LARGE: "UniAD, OpenVINO, f32, file for any size, 1024 px",
    "patchcore_10": "PatchCore, 10 %, OpenVINO, f32",
    "patchcore_1": "PatchCore, 1 %, OpenVINO, f32",
    "padim": "PaDiM, OpenVINO, f32",
}
SHORT = {"torch": "torch", "patchcore_10": "PatchCore", "patchcore_1": "PatchCore 1 %"}


def speed(frame: pd.DataFrame) -> str:
    """Latency and throughput, and how many times those of torch and of PatchCore."""

    def one(rows: pd.DataFrame) -> str:
        tables: dict[str, list[str]] = {}
        of = {name: group.set_index("round") for name, group in rows.groupby("variant")}
        for name in (name for name in LABELS if name in of):
            own, alike = of[name], name != LARGE
            cells = {
                "model": LABELS[name],
                "ms per image": _spread(own["latency_ms"]),
                "as fast as torch": _times(of["torch"]["latency_ms"] / own["latency_ms"]) if alike else "",
                "images/s": _spread(own["images_per_second"]),
            }
            for other in ("torch", "patchcore_10", "patchcore_1"):
                if other in of:
                    ratio = own["images_per_second"] / of[other]["images_per_second"]
                    cells[f"of {SHORT[other]}'s"] = _times(ratio) if alike else ""
            for head, cell in cells.items():
                tables.setdefault(head, []).append(cell)
        first = rows.iloc[0]
        banks = rows.dropna(subset=["bank_vectors"]).groupby("variant", sort=False)["bank_vectors"].first()
        vectors = "; ".join(f"{LABELS[str(name)].split(', ')[1]}: {count:,.0f}" for name, count in banks.items())
        sizes = f"images of {first['image_size']} px{' where no other size is given' if LARGE in of else ''}"
        text = (
            f"{to_markdown(pd.DataFrame(tables))}\n\nBackbone {first['backbone']}, {sizes} in memory, "
            f"generated weights; medians of {rows['round'].nunique()} rounds, in parentheses the smallest "
            "and the largest. Images per second: OpenVINO with parallel requests, torch one after the other; what they "
            "are of the others' follows, as the median of the ratios of each round."
        )
        return f"{text} Vectors in PatchCore's memory bank: {vectors}." if vectors else text

    return _per_device(frame, one)


def floor(frame: pd.DataFrame) -> str:
    """Time and operations of the parts of a model, and the floor."""

    def one(rows: pd.DataFrame) -> str:
        names = list(rows["part"].unique())
        table: dict[str, list[str]] = {"part": names}
        first = rows[rows["variant"] == rows["variant"].iloc[0]].set_index("part")
        table["GFLOP"] = [f"{first['operations'][name] / 1e9:.3f}" for name in names]
        sentences = []
        for variant, part in rows.groupby("variant", sort=False):
            cells = part.set_index("part")
            total = cells["ms"]["whole"]
            table[f"{variant}, ms"] = [f"{cells['ms'][name]:.1f}" for name in names]
            table[f"{variant}, share"] = [f"{cells['ms'][name] / total:.0%}" for name in names]
            least, rate = cells["floor_ms"]["whole"], cells["matrix_gflop_per_second"]["whole"]
            if not pd.isna(least):
                sentences.append(f"in {variant} {least:.1f} ms, at {rate:.0f} GFLOP/s of matrix products")
        text = to_markdown(pd.DataFrame(table))
        return f"{text}\n\nFloor, all operations at the measured rate: {'; '.join(sentences)}." if sentences else text

    return _per_device(frame, one)


def start(frame: pd.DataFrame) -> str:
    """Seconds and memory of whole processes."""

    def one(rows: pd.DataFrame) -> str:
        table: dict[str, list[str]] = {}
        for method, part in rows.groupby("method", sort=False):
            table.setdefault("program", []).append(str(method))
            for count, group in part.groupby("images"):
                unit = "image" if count == 1 else "images"
                table.setdefault(f"s, {count} {unit}", []).append(_spread(group["seconds"]))
            table.setdefault("peak memory, MB", []).append(f"{part['peak_memory_bytes'].median() / 1e6:.0f}")
        rounds = rows["round"].nunique()
        note = (
            f"Whole processes, from start to end; medians of {rounds}, and in parentheses the smallest and the largest."
        )
        return f"{to_markdown(pd.DataFrame(table))}\n\n{note}"

    return _per_device(frame, one)


def _spread(values: pd.Series) -> str:
    low, middle, high = (f"{value:.3g}" for value in (values.min(), values.median(), values.max()))
    return middle if low == high else f"{middle} ({low} to {high})"


def _times(ratios: pd.Series) -> str:
    return f"{ratios.median():.3g} x"


def _per_device(frame: pd.DataFrame, render: Callable[[pd.DataFrame], str]) -> str:
    return "\n\n".join(f"On {device}:\n\n{render(rows)}" for device, rows in frame.groupby("device", sort=False))
