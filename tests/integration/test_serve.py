# SPDX-License-Identifier: Apache-2.0
"""The server, as it is started from the command line."""

import base64
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from anomalib_uniad.cli import main
from anomalib_uniad.inference import Inspector
from serving import PIXELS, encoded, free_port, serving
from tiny_openvino import save_tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("serve") / "model.xml")


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[httpx.Client]:
    with serving(model, "--max_batch_size", "5", "--batch_timeout", "0.3", "--max_megabytes", "0.1") as client:
        yield client


def test_answers_are_those_of_the_inspector(client: httpx.Client, model: Path) -> None:
    inspector = Inspector(model)
    wanted = inspector.inspect(PIXELS, "bottle")
    form = {"data": {"product": "bottle", "map": "png"}, "files": {"image": ("a.png", encoded(), "image/png")}}
    raw = {"content": encoded(kind="BMP"), "headers": {"content-type": "image/bmp"}}
    for path, arguments in (("/inspect", form), ("/inspect?product=bottle&map=png", raw)):
        found = client.post(path, **arguments).raise_for_status().json()
        assert (found["decision"], found["product"], found["threshold"]) == ("anomalous", "bottle", 0.45)
        assert (found["score"], found["raw_score"]) == pytest.approx((wanted.score, wanted.raw_score))
        assert (found["model"], found["thresholds"]) == inspector.origin
        (region,), (of_inspector,) = found["regions"], wanted.regions
        assert region.pop("box") == [of_inspector.left, of_inspector.top, of_inspector.width, of_inspector.height]
        assert region == {
            name: pytest.approx(getattr(of_inspector, name)) for name in ("area", "share", "peak", "mean")
        }
        shown, mask = (np.asarray(Image.open(BytesIO(base64.b64decode(found[name])))) for name in ("map", "mask"))
        assert (mask == wanted.mask * 255).all()
        np.testing.assert_allclose(shown / 255, wanted.anomaly_map, atol=0.5 / 255)
    plain = client.post("/inspect", content=encoded()).json()
    assert not {"map", "mask", "drawn"} & set(plain)


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        ({"files": {"image": ("a.png", encoded()[:60])}}, 400, "The image cannot be read: it is cut off (truncated)."),
        ({"files": {"image": ("a.png", b"text")}}, 400, "The image cannot be read: it is none of BMP, GIF, JPEG,"),
        ({"files": {"image": ("a.png", b"")}}, 400, "The image is empty."),
        ({"data": {"product": "bottle"}, "files": {"": ("", b"")}}, 400, "The form has no file: send the image"),
        ({"files": {"image": ("a.png", bytes(200_000))}}, 413, "The request is larger than 0.1 MB."),
        ({"content": iter([bytes(60_000)] * 9)}, 413, "The request is larger than 0.1 MB."),
        ({"content": b"P5 20000 20000 255\n"}, 413, "The image has more than 89,478,485 pixels."),
        (
            {"files": {"image": ("a.txt", b"text")}},
            415,
            "An image is needed, as the file of a form or as it is, not te",
        ),
        ({"json": {"image": "a"}}, 415, "An image is needed, as the file of a form or as it is, not application/json."),
        (
            {"files": {"image": ("a.png", encoded())}, "data": {"product": "nut"}},
            422,
            "The model has no threshold of the product 'nut', only of: bottle, cable.",
        ),
        ({"content": encoded(), "params": {"map": "all"}}, 422, "map must be png or drawn, got 'all'."),
    ],
)
def test_what_is_refused(client: httpx.Client, arguments: dict, status: int, sentence: str) -> None:
    answer = client.post("/inspect", **arguments)
    assert answer.status_code == status
    assert answer.json()["detail"].startswith(sentence)


def test_a_broken_image_in_a_batch_is_alone(client: httpx.Client) -> None:
    images = [encoded(), encoded(), encoded()[:60], encoded(np.full_like(PIXELS, 60)), encoded()]
    start = time.monotonic()
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda image: client.post("/inspect", content=image), images))
    assert [answer.status_code for answer in answers] == [200, 200, 400, 200, 200]
    words = [answer.json().get("decision") for answer in answers]
    assert words == ["anomalous", "anomalous", None, "normal", "anomalous"]
    assert time.monotonic() - start < 5 * 0.3  # they did not wait for each other


def test_page_and_metrics(client: httpx.Client) -> None:
    def metrics() -> dict[str, float]:
        lines = client.get("/metrics").raise_for_status().text.splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    client.post("/inspect", content=encoded())
    before = metrics()
    for image in (encoded(), encoded(), b"text"):
        client.post("/inspect", content=image)
    names = ('inspections_total{decision="anomalous"}', 'errors_total{status="400"}', "seconds_count")
    after = metrics()
    changes = [after[name] - before.get(name, 0) for name in (f"anomalib_uniad_{name}" for name in names)]
    assert changes == [2, 1, 3]
    page = client.get("/ui").raise_for_status().text
    assert "http" not in page.replace("http-equiv", "")  # it loads nothing from elsewhere
    assert client.get("/ui/style.css").headers["content-type"].startswith("text/css")
    assert client.get("/info").json()["model"]["products"] == ["bottle", "cable"]
    drawn = client.post("/inspect?map=drawn", content=encoded()).json()["drawn"]
    assert Image.open(BytesIO(base64.b64decode(drawn))).width == 64


def test_mistakes_are_told_before_it_starts(model: Path, tmp_path: Path) -> None:
    thresholds = tmp_path / "thresholds.yaml"
    thresholds.write_text("products: {nut: {image: 3}}")
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        opened.listen()
        for arguments, message in (
            (["gone.xml"], "There is no model gone.xml"),
            ([str(model), "--thresholds", str(thresholds)], "has thresholds of nut, but the model knows bottle, cable"),
            ([str(model), "--workers", "0"], "workers must be at least 1, got 0"),
            ([str(model), "--port", "80"], r"port must lie in \[1024, 65535\], got 80"),
            ([str(model), "--port", str(opened.getsockname()[1])], r"Port \d+ of 127.0.0.1 is in use: choose another"),
        ):
            if "--port" not in arguments:
                arguments += ["--port", str(free_port())]
            with pytest.raises(SystemExit, match=f"error: .*{message}"):
                main(["serve", *arguments])


def test_without_litserve(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "litserve", None)
    with pytest.raises(SystemExit, match=r"litserve is not installed: pip install 'anomalib-uniad\[serve\]'"):
        main(["serve", str(model)])


def test_heavy_packages_are_not_imported() -> None:
    heavy = ("torch", "torchvision", "torchmetrics", "anomalib", "lightning", "timm", "pandas", "matplotlib", "scipy")
    code = f"import sys, anomalib_uniad.serve.server\nprint([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert result.stdout == "[]\n"
