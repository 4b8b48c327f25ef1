# SPDX-License-Identifier: Apache-2.0
"""Put an exported file into the folder of OpenVINO Model Server or KServe.

Which product an image shows becomes an output, if the model recognises products:

    python examples/serving/prepare.py --model model.xml
"""

import sys
from pathlib import Path

import openvino as ov
from jsonargparse import auto_cli

from anomalib_uniad.errors import UserError
from anomalib_uniad.files import check_output, replacing
from anomalib_uniad.inference.compiled import read_metadata

PRODUCT = ("product", "unknown_product")


def main(
    model: Path = Path("model.xml"),
    repository: Path = Path("models/uniad"),
    version: int = 1,
    overwrite: bool = False,
) -> Path:
    """Write ``<repository>/<version>/model.xml`` and ``model.bin``.

    Args:
        model: File of `anomalib export`.
        repository: Folder of the model, with a folder per version.
        version: Number of the version; servers take the highest.
        overwrite: Replace a version that is there, which a server may have open.
    """
    file = repository / str(version) / "model.xml"
    parts = [file, file.with_suffix(".bin")]
    check_output(file.parent, parts, overwrite)
    metadata, _ = read_metadata(model)
    graph = ov.Core().read_model(model)
    if metadata.products:
        inner = {name: port for node in graph.get_ops() for port in node.outputs() for name in port.names}
        graph.add_outputs([inner[name] for name in PRODUCT])
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(*parts, overwrite=overwrite) as (xml, weights):
        ov.serialize(graph, xml, weights)
    return file


if __name__ == "__main__":
    try:
        auto_cli(main)
    except UserError as error:
        sys.exit(f"error: {error}")
