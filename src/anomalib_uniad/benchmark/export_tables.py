# SPDX-License-Identifier: Apache-2.0
"""Tables about exported files, from their csv files."""

import pandas as pd

from anomalib_uniad.metrics.run_files import to_markdown


def ports(rows: pd.DataFrame) -> str:
    """Inputs and outputs of an exported file.

    Args:
        rows (pd.DataFrame): ``ports.csv``.
    """
    table = pd.DataFrame(
        {
            "": rows["kind"],
            "name": [f"`{name}`" for name in rows["name"]],
            "type": rows["type"],
            "shape": [f"({shape})" for shape in rows["shape"]],
            "content": rows["content"],
        }
    )
    return to_markdown(table)


def graph(rows: pd.DataFrame) -> str:
    """Operations of a model before and after, most frequent first; those that are as frequent everywhere at the end.

    Args:
        rows (pd.DataFrame): ``graph.csv``.
    """
    (backbone,) = rows["backbone"].unique()
    counts = rows.pivot_table(index="operation", columns="graph", values="count", sort=False).fillna(0).astype(int)
    before, after, executed = (counts[name] for name in rows["graph"].unique())
    changed = counts[(before != after) & (counts.index != "all")].index
    table: dict[str, list] = {
        "operations": [*changed, "all"],
        "with torch's attention": [before[name] for name in (*changed, "all")],
        "exported": [after[name] for name in (*changed, "all")],
    }
    size = rows[rows["operation"] == "all"].set_index("graph")["bytes"] / 1e6
    table["operations"].append("constants, MB")
    table["with torch's attention"].append(f"{size[before.name]:.1f}")
    table["exported"].append(f"{size[after.name]:.1f}")
    image = f"{rows['height'].iloc[0]} x {rows['width'].iloc[0]} pixels"
    whole, used = (rows[f"backbone_parameters{end}"].max() / 1e6 for end in ("", "_used"))
    left = [name for name in ("Select", "ShapeOf", "StridedSlice") if executed.get(name, 0)]
    return (
        f"`{backbone}`, {image}; types of operations whose number differs:\n\n{to_markdown(pd.DataFrame(table))}\n\n"
        f"For a batch of fixed size OpenVINO makes {executed['all']} operations of the exported ones, "
        f"{executed['Const']} of them constants; {', '.join(left) or 'Select, ShapeOf and Slice'} "
        f"{'are' if left else 'are not'} among them. The map differs from that of torch by at most "
        f"{rows['difference'].max():.0e} of its range. Of the {whole:.1f} million parameters of the backbone, the "
        f"{used:.1f} million that lead to the maps in use are in the file."
    )


def export_parity(rows: pd.DataFrame) -> str:
    """Differences of exported maps from torch's.

    Args:
        rows (pd.DataFrame): ``export_parity.csv``.
    """
    (backbone,) = rows["backbone"].unique()
    (masked,) = rows["masked"].unique()
    table = pd.DataFrame(
        {
            "image size": rows["image_size"],
            "padding": rows["padding"],
            "batch": rows["batch"],
            "map": [f"{value:.0e}" for value in rows["map"]],
            "score": [f"{value:.0e}" for value in rows["score"]],
            "without the mask": [f"{value:.3f}" for value in rows["without_mask"]],
        }
    )
    return (
        f"`{backbone}`, random weights, OpenVINO in f32; largest differences from torch, as parts of the range of its "
        f"map:\n\n{to_markdown(table)}\n\nAttentions with a mask in each file: {masked}. In the last column: what the "
        "map would differ by if there were none."
    )
