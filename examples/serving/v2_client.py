# SPDX-License-Identifier: Apache-2.0
"""Ask a server that speaks the Open Inference Protocol (v2), by REST, about an image.

OpenVINO Model Server and KServe do:

    python examples/serving/v2_client.py --image new.png --url http://127.0.0.1:8000

The image is read as by `anomalib-uniad predict`, and its pixels are sent as they are; images of more than 8 bits are
refused. With `--model`, so are images in which the model's crop does not lie, and those of another size than the server
takes if the model crops or pads. Without it, that is not checked. Heatmaps, regions of defects, other thresholds and
regions of interest are not here.
"""

import json
import sys
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
from jsonargparse import auto_cli

from anomalib_uniad.errors import InputError, NoConnectionError, UserError
from anomalib_uniad.geometry import Geometry
from anomalib_uniad.image_files import read_image
from anomalib_uniad.inference import ModelMetadata
from anomalib_uniad.inference.compiled import read_metadata
from anomalib_uniad.inference.images import resize_image

WANTED = ("pred_score", "pred_label", "product", "unknown_product")


def main(
    image: Path,
    url: str = "http://127.0.0.1:8000",
    name: str = "uniad",
    model: Path | None = None,
    timeout: float = 60.0,
) -> dict[str, Any]:
    """Print product, score and decision.

    Args:
        image: The image.
        url: Where the server is.
        name: Of the model on the server.
        model: The exported file, for its crop and the names of its products; without it, they are numbers.
        timeout: Seconds to wait for an answer.
    """
    metadata = ModelMetadata() if model is None else read_metadata(model)[0]
    place = f"{url.rstrip('/')}/v2/models/{name}"
    about = ask(place, None, timeout)
    (port,) = about["inputs"]
    pixels = read_image(image)  # (H, W, 3)
    size = tuple(int(number) for number in port["shape"][2:])
    check(image, pixels.shape[:2], size, metadata.geometry)
    pixels = resize_image(pixels, size) if min(size) > 0 else pixels  # a file of fixed size
    values = np.moveaxis(pixels.astype(np.float32) / 255, -1, 0)[None]  # (1, 3, H, W)
    tensor = {"name": port["name"], "shape": list(values.shape), "datatype": "FP32", "data": values.ravel().tolist()}
    outputs = [{"name": output["name"]} for output in about["outputs"] if output["name"] in WANTED]
    answer = ask(f"{place}/infer", {"inputs": [tensor], "outputs": outputs}, timeout)
    found = {output["name"]: output["data"][0] for output in answer["outputs"]}
    product = found.get("product", "")
    if model is not None and product != "":
        product = metadata.products[int(product)]
    decision = "anomalous" if found["pred_label"] else "normal"
    if found.get("unknown_product"):
        product, decision = "", "unknown"
    result = {"product": product, "score": found["pred_score"], "decision": decision}
    print(f"{image}: {decision}, score {found['pred_score']:.4g}" + (f", product {product}" if product != "" else ""))
    return result


def check(image: Path, size: tuple[int, int], taken: tuple[int, int], geometry: Geometry | None) -> None:
    """Refuse an image that the model cannot look at as it has learned to; sizes are height and width."""
    if geometry is None:
        return
    try:
        geometry.check(size)
    except InputError as error:
        raise InputError(f"{image}: {error}.") from error
    if min(taken) > 0 and size != taken and geometry != Geometry(geometry.image_size):
        wanted = " x ".join(map(str, taken))
        raise InputError(f"{image}: the model crops or pads, and the server takes images of {wanted} pixels alone.")


def ask(address: str, content: dict[str, Any] | None, timeout: float) -> dict[str, Any]:
    """Send a request, with a body if there is content; return the answer."""
    body = None if content is None else json.dumps(content).encode()
    try:
        with urlopen(Request(address, body, {"Content-Type": "application/json"}), timeout=timeout) as answer:
            return json.load(answer)
    except HTTPError as error:
        raise InputError(f"{address} refuses: {error.read().decode(errors='replace')[:300] or error.reason}") from error
    except (URLError, TimeoutError, ConnectionError) as error:
        raise NoConnectionError(f"No answer from {address}: {error}.") from error


if __name__ == "__main__":
    try:
        auto_cli(main)
    except UserError as error:
        sys.exit(f"error: {error}")
