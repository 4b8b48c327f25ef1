# SPDX-License-Identifier: Apache-2.0
"""examples/serving: configurations against the fields that servers document, the client against a server."""

import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import jsonschema
import numpy as np
import openvino as ov
import pytest
import yaml
from openvino import opset13 as ops
from PIL import Image

from anomalib_uniad.errors import ExistingFileError, InputError, MissingFileError, NoConnectionError
from anomalib_uniad.geometry import Geometry
from anomalib_uniad.inference import ModelMetadata

EXAMPLES = Path(__file__).parents[2] / "examples" / "serving"
TEXT, WHOLE = {"type": "string"}, {"type": "integer", "minimum": 1}


def fields(required: list[str], **properties: dict) -> dict:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


def many(items: dict) -> dict:
    return {"type": "array", "items": items, "minItems": 1}


# What the documentation of OpenVINO Model Server says of its configuration, as far as it is used here.
MODEL_SERVER = fields(
    ["model_config_list"],
    model_config_list=many(
        fields(
            ["config"],
            config=fields(
                ["name", "base_path"],
                name=TEXT,
                base_path=TEXT,
                shape={"type": ["object", "string"]},
                layout={"type": ["object", "string"]},
                batch_size={"type": ["integer", "string"]},
                target_device=TEXT,
                nireq=WHOLE,
                plugin_config={"type": "object"},
                model_version_policy=fields([], latest=fields([], num_versions=WHOLE)),
            ),
        )
    ),
)
FORMAT = {"name": TEXT, "version": TEXT}
PROTOCOL = {"enum": ["v1", "v2", "grpc-v1", "grpc-v2"]}
# The same of KServe's resources.
KSERVE = {
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): fields(
        ["supportedModelFormats", "containers"],
        supportedModelFormats=many(fields(["name"], **FORMAT, autoSelect={"type": "boolean"})),
        protocolVersions=many(PROTOCOL),
        containers=many(
            fields(
                ["name", "image"],
                name={"const": "kserve-container"},
                image=TEXT,
                args=many(TEXT),
                ports=many(fields(["containerPort"], containerPort=WHOLE, protocol={"enum": ["TCP"]})),
                resources=fields([], requests={"type": "object"}, limits={"type": "object"}),
            )
        ),
    ),
    ("serving.kserve.io/v1beta1", "InferenceService"): fields(
        ["predictor"],
        predictor=fields(
            ["model"],
            minReplicas={"type": "integer", "minimum": 0},
            model=fields(
                ["modelFormat", "storageUri"],
                modelFormat=fields(["name"], **FORMAT),
                runtime=TEXT,
                protocolVersion=PROTOCOL,
                storageUri={"type": "string", "pattern": "^(pvc|s3|gs|https)://"},
            ),
        ),
    ),
}
# Request and answer of the Open Inference Protocol.
TENSOR = {"name": TEXT, "shape": many({"type": "integer"}), "datatype": {"enum": ["FP32", "BOOL", "INT64", "INT32"]}}
REQUEST = fields(
    ["inputs"],
    inputs=many(fields(["name", "shape", "datatype", "data"], **TENSOR, data={"type": "array"})),
    outputs=many(fields(["name"], name=TEXT)),
)
TYPES = {"f32": "FP32", "boolean": "BOOL", "i64": "INT64", "i32": "INT32"}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save_recognising(file: Path) -> Path:
    """A model that calls bright images nuts, those of one value unknown, and whose score is the brightness."""
    images = ops.parameter(ov.PartialShape([-1, 3, -1, -1]), np.float32, name="input")
    images.output(0).set_names({"input"})
    bright = ops.reduce_max(images, ops.constant([1, 2, 3]))
    bright.output(0).set_names({"uncalibrated_score"})
    product = ops.convert(ops.greater(bright, np.float32(0.5)), "i64")
    product.output(0).set_names({"product"})
    unknown = ops.greater(bright, np.float32(0.99))
    unknown.output(0).set_names({"unknown_product"})
    scale = ops.gather(ops.constant(np.float32([1, 0.5])), product, ops.constant(0))
    score = ops.select(unknown, ops.constant(np.float32(1)), ops.multiply(bright, scale))
    score.output(0).set_names({"pred_score"})
    label = ops.greater(score, np.float32(0.4))
    label.output(0).set_names({"pred_label"})
    model = ov.Model([ops.result(node) for node in (score, label)], [images])
    ModelMetadata(model="UniAD", products=("bolt", "nut"), category_thresholds={"bolt": {"image": 0.4}}).write(model)
    ov.save_model(model, file, compress_to_fp16=False)
    return file


@pytest.fixture
def server(tmp_path: Path, monkeypatch) -> Iterator[str]:
    """A server of the protocol, which has the prepared model."""
    monkeypatch.chdir(tmp_path)
    served = load("prepare").main(save_recognising(Path("model.xml")))
    assert served == Path("models/uniad/1/model.xml")
    model = ov.Core().compile_model(served, "CPU")

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments) -> None:
            pass

        def answer(self, content: dict, status: int = 200) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def do_GET(self) -> None:
            if self.path != "/v2/models/uniad":
                return self.answer({"error": "Model with requested name is not found"}, 404)
            ports = [
                [
                    {
                        "name": port.any_name,
                        "datatype": TYPES[port.element_type.get_type_name()],
                        "shape": [d.get_length() if d.is_static else -1 for d in port.partial_shape],
                    }
                    for port in side
                ]
                for side in (model.inputs, model.outputs)
            ]
            return self.answer({"name": "uniad", "platform": "OpenVINO", "inputs": ports[0], "outputs": ports[1]})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            jsonschema.validate(request, REQUEST)
            (tensor,) = request["inputs"]
            results = model({tensor["name"]: np.array(tensor["data"], np.float32).reshape(tensor["shape"])})
            outputs = [
                {"name": wanted["name"], "shape": list(results[wanted["name"]].shape), "datatype": "FP32"}
                | {"data": results[wanted["name"]].ravel().tolist()}
                for wanted in request["outputs"]
            ]
            self.answer({"model_name": "uniad", "outputs": outputs})

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_configurations() -> None:
    config = json.loads((EXAMPLES / "config.json").read_text())
    jsonschema.validate(config, MODEL_SERVER)
    runtime, service = yaml.safe_load_all((EXAMPLES / "kserve.yaml").read_text())
    for resource in (runtime, service):
        jsonschema.validate(resource["spec"], KSERVE[resource["apiVersion"], resource["kind"]])
        assert set(resource) == {"apiVersion", "kind", "metadata", "spec"}
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in {kind["name"] for kind in runtime["spec"]["supportedModelFormats"]}
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    (of_server,) = (entry["config"] for entry in config["model_config_list"])
    arguments = dict(text[2:].split("=", 1) for text in runtime["spec"]["containers"][0]["args"])
    assert json.loads(arguments["shape"]) == of_server["shape"]
    assert json.loads(arguments["plugin_config"]).items() <= of_server["plugin_config"].items()


def test_shape_and_layout_are_those_of_the_file(server: str) -> None:
    config = json.loads((EXAMPLES / "config.json").read_text())["model_config_list"][0]["config"]
    model = ov.Core().read_model("models/uniad/1/model.xml")
    shape = ov.PartialShape([int(number) for number in config["shape"]["input"].strip("()").split(",")])
    assert [port.any_name for port in model.inputs] == list(config["shape"]) == list(config["layout"])
    model.reshape({"input": shape})
    assert model.input().partial_shape == shape
    ov.Core().compile_model(model, config["target_device"], config["plugin_config"])


def test_the_client(server: str, capsys) -> None:
    client = load("v2_client")
    expected = {60: ("bolt", "normal"), 110: ("bolt", "anomalous"), 150: ("nut", "normal"), 255: ("", "unknown")}
    for value, (product, decision) in expected.items():
        Image.fromarray(np.full((5, 7, 3), value, np.uint8)).save("new.png")
        found = client.main(Path("new.png"), server, model=Path("model.xml"))
        assert (found["product"], found["decision"]) == (product, decision)
        assert found["score"] == pytest.approx({"bolt": value / 255, "nut": value / 510, "": 1}[product])
        assert capsys.readouterr().out.startswith(f"new.png: {decision}, score ")
    Image.fromarray(np.full((5, 7), 60, np.uint8)).save("new.png")
    assert client.main(Path("new.png"), server)["product"] == 0


def test_no_version_is_overwritten(server: str) -> None:
    prepare, served = load("prepare"), Path("models/uniad/1")
    older = (served / "model.xml").stat().st_ino
    with pytest.raises(ExistingFileError, match=r"model\.xml \(and 1 more\) would be overwritten"):
        prepare.main(Path("model.xml"))
    assert (served / "model.xml").stat().st_ino == older
    with pytest.raises(MissingFileError, match=r"There is no model gone\.xml"):
        prepare.main(Path("gone.xml"), version=2)
    assert prepare.main(Path("model.xml"), overwrite=True) == served / "model.xml"
    assert sorted(file.name for file in served.iterdir()) == ["model.bin", "model.xml"]
    assert (served / "model.xml").stat().st_ino != older


def test_images_that_a_model_cannot_crop_or_pad() -> None:
    check = load("v2_client").check
    crop, pad = Geometry((4, 4), crop=(0, 2, 4, 8)), Geometry((4, 4), "pad")
    for geometry, taken in ((crop, (-1, -1)), (crop, (5, 10)), (pad, (-1, -1)), (pad, (5, 10)), (None, (4, 4))):
        check(Path("a.png"), (5, 10), taken, geometry)
    with pytest.raises(InputError, match=r"^a\.png: the (crop|image).*\.$"):
        check(Path("a.png"), (5, 9), (-1, -1), crop)
    for geometry in (crop, pad):
        with pytest.raises(InputError, match=r"^a\.png: the model crops or pads, .* images of 4 x 4 pixels alone\.$"):
            check(Path("a.png"), (5, 10), (4, 4), geometry)


def test_mistakes_of_the_client(server: str, tmp_path: Path) -> None:
    client = load("v2_client")
    Image.fromarray(np.full((5, 7), 4000, np.uint16)).save("deep.png")
    Image.fromarray(np.full((5, 7), 60, np.uint8)).save("new.png")
    with pytest.raises(InputError, match=r"deep\.png cannot be read: it has more than 8 bits"):
        client.main(Path("deep.png"), server)
    with pytest.raises(InputError, match=r"/v2/models/nut refuses: .*not found"):
        client.main(Path("new.png"), server, "nut")
    with pytest.raises(NoConnectionError, match=r"No answer from http://127.0.0.1:1/v2/models/uniad: "):
        client.main(Path("new.png"), "http://127.0.0.1:1")
