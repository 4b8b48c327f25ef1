# SPDX-License-Identifier: Apache-2.0
"""Put an exported file into the folder of OpenVINO Model Server or KServe.

Which product an image shows becomes an output, if the model recognises products:

    python examples/serving/prepare.py --model model.xml
"""

from pathlib import Path

import openvino as ov
from jsonargparse import auto_cli

from anomalib_uniad.inference import ModelMetadata

PRODUCT = ("product", "unknown_product")


def main(model: Path = Path("model.xml"), repository: Path = Path("models/uniad"), version: int = 1) -> Path:
    """Write ``<repository>/<version>/model.xml`` and ``model.bin``.

    Args:
        model: File of `anomalib export`.
        repository: Folder of the model, with a folder per version.
        version: Number of the version; servers take the highest.
    """
    graph = ov.Core().read_model(model)
    if ModelMetadata.read(graph, model).products:
        inner = {name: port for node in graph.get_ops() for port in node.outputs() for name in port.names}
        graph.add_outputs([inner[name] for name in PRODUCT])
    file = repository / str(version) / "model.xml"
    file.parent.mkdir(parents=True, exist_ok=True)
    ov.save_model(graph, file, compress_to_fp16=False)
    return file


if __name__ == "__main__":
    auto_cli(main)
