# SPDX-License-Identifier: Apache-2.0
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import opset13 as ops
from PIL import Image
from torch.nn import functional as F

from anomalib_uniad.inference.compiled import compile_file
from anomalib_uniad.inference.heatmap import draw_heatmap, map_to_image
from anomalib_uniad.inference.images import ImageFile, find_images
from anomalib_uniad.inference.predictor import Output, Predictor, Requests
from tiny_openvino import HIGH, LOW, NORMALISED, SIZE, THRESHOLD, save_tiny


def write_images(folder: Path, count: int = 13, broken: tuple[int, ...] = ()) -> list[ImageFile]:
    """Images of several sizes; the later, the brighter."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number:03}.png"
        shape = (20 + 5 * (number % 3), 30, 3)
        pixels = generator.integers(0, 30, shape) + 200 * number // count
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        if number in broken:
            path.write_bytes(path.read_bytes()[:100])
    return find_images([folder])


def expected_map(file: ImageFile, antialias: bool = False) -> np.ndarray:
    """The tiny model's raw map, computed by torch: resized inside of it, or before it, as UniAD does it."""
    image = torch.from_numpy(np.asarray(Image.open(file.path)).copy()).permute(2, 0, 1)[None].float() / 255
    resized = F.interpolate(image, (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=antialias)
    return resized.mean(1)[0].numpy()


@pytest.mark.parametrize("sizes", [{}, {"size": SIZE}, {"batch": 4}, {"batch": 4, "size": SIZE}], ids=str)
def test_values_and_order(tmp_path: Path, sizes: dict[str, int]) -> None:
    """For inputs of any and of fixed size, for batches that are mixed, broken and not full."""
    files = write_images(tmp_path / "images", broken=(2, 9))
    compiled = compile_file(save_tiny(tmp_path / "model.xml", **sizes))
    assert compiled.batch_size == sizes.get("batch", 1)
    outputs = list(Predictor(compiled).predict(files))
    assert [output.file for output in outputs] == files
    assert [number for number, output in enumerate(outputs) if output.error] == [2, 9]
    assert len({output.score for output in outputs}) > 4
    for output in outputs:
        if output.error:
            assert output.score is output.label is output.anomaly_map is None
            continue
        values = expected_map(output.file, antialias="size" in sizes)
        assert output.raw_score == pytest.approx(values.max(), abs=1e-6)
        normalised = ((values - THRESHOLD) / (HIGH - LOW) + 0.5).clip(0, 1)
        np.testing.assert_allclose(output.anomaly_map, normalised, atol=1e-5)
        assert output.score == pytest.approx(normalised.max(), abs=1e-5)
        assert output.label == (normalised.max() > 0.5)
        assert output.image is None


@pytest.mark.parametrize("sizes", [{}, {"size": SIZE}], ids=str)
def test_more_than_eight_bits(tmp_path: Path, sizes: dict[str, int]) -> None:
    """Are not rounded on their way; the picture for a heatmap has 8."""
    (tmp_path / "images").mkdir()
    values = np.linspace(1000, 1100, 20 * 30).reshape(20, 30).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "images" / "0.png")
    file = save_tiny(tmp_path / "model.xml", replace(NORMALISED, value_range=(0.0, 65535.0)), **sizes)
    compiled = compile_file(file)
    assert compiled.dtype == np.float32
    pictures: list[np.ndarray] = []
    (output,) = Predictor(compiled).predict(find_images([tmp_path / "images"]), lambda o: pictures.append(o.image))
    image = torch.from_numpy(values.astype(np.float32) / 65535)[None, None]
    expected = F.interpolate(image, (SIZE, SIZE), mode="bilinear", antialias=bool(sizes)).max()
    assert output.raw_score == pytest.approx(float(expected), abs=1e-6)
    assert np.ptp(pictures[0]) > 0.3
    shown = map_to_image(output.anomaly_map, pictures[0].shape[:2])
    assert np.unique(np.asarray(draw_heatmap(pictures[0], shown))).size > 1


def test_raw_outputs(tmp_path: Path) -> None:
    (file, *_) = write_images(tmp_path / "images")
    compiled = compile_file(save_tiny(tmp_path / "model.xml", normalise=False))
    (output,) = Predictor(compiled).predict([file])
    assert output.score == pytest.approx(expected_map(file).max(), abs=1e-6)
    assert output.raw_score is output.label is None
    assert compiled.raw_outputs == {}
    maps: list[np.ndarray] = []
    for raw_branch in (True, False):  # as in files of any shape, and of a fixed one
        compiled = compile_file(save_tiny(tmp_path / "other.xml", raw_branch=raw_branch))
        (output,) = Predictor(compiled).predict([file], lambda output: maps.append(output.raw_map))
        assert output.raw_score == pytest.approx(expected_map(file).max(), abs=1e-5)
        np.testing.assert_allclose(maps[-1], expected_map(file), atol=1e-5)
        assert compiled.metadata == NORMALISED


def test_a_normalisation_that_is_not_known(tmp_path: Path) -> None:
    """Neither by a selection nor by its steps."""
    import openvino as ov
    from openvino import opset13 as ops

    images = ops.parameter(ov.PartialShape([-1, 3, -1, -1]), np.float32)
    score = ops.reduce_max(images, ops.constant([1, 2, 3]))
    for last in (ops.clamp(score, 0.0, 1.0), ops.clamp(ops.sigmoid(score), 0.0, 1.0), ops.add(score, np.float32(1))):
        last.output(0).set_names({"pred_score"})
        ov.save_model(ov.Model([ops.result(last)], [images]), tmp_path / "other.xml")
        assert compile_file(tmp_path / "other.xml").raw_outputs == {}


def test_a_fixed_size_that_is_too_small(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model.xml", replace(NORMALISED, image_size=(64, 48)), size=50)
    with pytest.raises(ValueError, match=r"takes images of 50 x 50 pixels alone, .* less than the 64 x 48 "):
        compile_file(model)


def test_memory_is_bounded(tmp_path: Path) -> None:
    """No more images are read ahead than fit the requests, however slowly the results are taken."""
    files = write_images(tmp_path / "images", 60)
    predictor = Predictor(compile_file(save_tiny(tmp_path / "model.xml"), threads=1))
    finished: list[Output] = []
    outputs = predictor.predict(files, finished.append)
    next(outputs)
    threading.Event().wait(0.3)
    assert 1 <= len(finished) <= 4 * predictor.requests.count + 1 < len(files)
    assert len(list(outputs)) == len(files) - 1


def test_finish_has_the_image_and_its_errors_end_all(tmp_path: Path) -> None:
    files = write_images(tmp_path / "images", 5)
    predictor = Predictor(compile_file(save_tiny(tmp_path / "model.xml")))
    shapes = {}
    list(predictor.predict(files, lambda output: shapes.update({output.file: output.image.shape})))
    assert [shapes[file] for file in files] == [(20 + 5 * (number % 3), 30, 3) for number in range(5)]

    def full(output: Output) -> None:
        raise OSError("No space left")

    with pytest.raises(OSError, match="No space left"):
        list(predictor.predict(files, full))


def test_numpy_is_met_first_in_one_thread(tmp_path: Path, monkeypatch) -> None:
    """Two threads that are first at the same time may wait for each other for ever inside of OpenVINO."""
    threads = []
    request = Requests._request

    def recorded(self: Predictor, *arguments) -> list[np.ndarray]:
        threads.append(threading.current_thread())
        return request(self, *arguments)

    monkeypatch.setattr(Requests, "_request", recorded)
    predictor = Predictor(compile_file(save_tiny(tmp_path / "model.xml")))
    assert threads == [threading.current_thread()] * predictor.requests.count


def test_errors_of_openvino_are_of_the_image(tmp_path: Path, monkeypatch) -> None:
    files = write_images(tmp_path / "images", 3)
    predictor = Predictor(compile_file(save_tiny(tmp_path / "model.xml")))
    request = predictor.requests._request

    def fails(of: object, images: np.ndarray) -> list[np.ndarray]:
        if images.shape[1] == 25:
            raise RuntimeError("Exception from\nnode.cpp:1:\nout of memory")
        return request(of, images)

    monkeypatch.setattr(predictor.requests, "_request", fails)
    errors = [output.error for output in predictor.predict(files)]
    assert errors == [
        "",
        f"{files[1].path} cannot be predicted by OpenVINO: Exception from node.cpp:1: out of memory.",
        "",
    ]


@pytest.mark.parametrize("name", ["pred_score", "raw"])
def test_a_score_that_is_not_a_number_is_an_error(tmp_path: Path, monkeypatch, name: str) -> None:
    """Also if only the raw one is: OpenVINO cuts NaN to 0, as if the image were as good as can be."""
    files = write_images(tmp_path / "images", 3)
    compiled = compile_file(save_tiny(tmp_path / "model.xml"))
    predictor = Predictor(compiled)
    request, index = (
        predictor.requests._request,
        (compiled.raw_outputs if name == "raw" else compiled.outputs)["pred_score"],
    )

    def damaged(of: object, images: np.ndarray) -> list[np.ndarray]:
        results = request(of, images)
        if images.shape[1] == 25:
            results[index][:] = np.nan
        return results

    monkeypatch.setattr(predictor.requests, "_request", damaged)
    first, second, third = predictor.predict(files)
    assert second.error == f"{files[1].path} has a score that is not a number: the model is damaged."
    assert second.score is second.raw_score is second.label is second.anomaly_map is None
    assert not first.error
    assert not third.error


def test_bad_files(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model.xml")
    compile_file(model.with_suffix(".bin"))
    with pytest.raises(FileNotFoundError, match=r"There is no model .*gone.xml: give the model.xml"):
        compile_file(tmp_path / "gone.xml")
    with pytest.raises(FileNotFoundError, match=r"is a folder: give the model.xml"):
        compile_file(tmp_path)
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(ValueError, match=r"model.ckpt must be an .xml or .onnx file; make one with `anomalib export"):
        compile_file(tmp_path / "model.ckpt")
    (tmp_path / "lonely.xml").write_text(model.read_text())
    with pytest.raises(FileNotFoundError, match=r"There is no .*lonely.bin: the weights have to be beside lonely.xml"):
        compile_file(tmp_path / "lonely.xml")
    (tmp_path / "lonely.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^.*lonely.xml is not a model that OpenVINO can read: [^\n]+$"):
        compile_file(tmp_path / "lonely.xml")
    (tmp_path / "lonely.xml").write_text("<annotation/>")
    with pytest.raises(ValueError, match=r"lonely.xml is not a model that OpenVINO can read: it does not begin as one"):
        compile_file(tmp_path / "lonely.xml")
    (tmp_path / "model.onnx").write_text("nothing")
    with pytest.raises(ValueError, match=r"^.*model.onnx is not a model that OpenVINO can read: [^\n]+$"):
        compile_file(tmp_path / "model.onnx")


def test_bad_arguments(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model.xml")
    with pytest.raises(ValueError, match=r"There is no device 'TPU'; this machine has CPU"):
        compile_file(model, device="TPU")
    with pytest.raises(ValueError, match=r"^OpenVINO cannot compile .* for HETERO:TPU with [^\n]+TPU[^\n]+$"):
        compile_file(model, device="HETERO:TPU")
    with pytest.raises(ValueError, match=r"threads must be positive.* got -1"):
        compile_file(model, threads=-1)


def test_models_of_others(tmp_path: Path) -> None:
    import openvino as ov
    from openvino import opset13 as ops

    def save(shape: list[int], output: str) -> Path:
        images = ops.parameter(shape, np.float32)
        node = ops.relu(images)
        node.output(0).set_names({output})
        ov.save_model(ov.Model([node], [images]), tmp_path / "other.xml")
        return tmp_path / "other.xml"

    with pytest.raises(ValueError, match="is not a model of anomalib: it has no output pred_score, but logits"):
        compile_file(save([1, 3, 8, 8], "logits"))
    with pytest.raises(ValueError, match=r"must have one input \(B, 3, H, W\), but has \[1,1,8,8\]"):
        compile_file(save([1, 1, 8, 8], "pred_score"))


@pytest.mark.parametrize(("hint", "expected"), [("f32", "f32"), ("bf16", "bf16"), ("auto", None)])
def test_precision_and_threads(tmp_path: Path, hint: str, expected: str | None) -> None:
    compiled = compile_file(save_tiny(tmp_path / "model.xml"), precision_hint=hint, threads=1)
    assert compiled.model.get_property("INFERENCE_NUM_THREADS") == 1
    assert "THROUGHPUT" in str(compiled.model.get_property("PERFORMANCE_HINT"))
    precision = compiled.model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    bf16 = "BF16" in __import__("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if expected == "f32" or bf16:
        assert precision == (expected or "bf16")


@pytest.mark.parametrize(("size", "bad"), [(-1, {0, 3, 6, 9, 12}), (25, {0, 2, 3, 5, 6, 8, 9, 11, 12})])
def test_images_that_do_not_fit_the_crop(tmp_path: Path, size: int, bad: set[int]) -> None:
    """Of 20, 25 and 30 rows; a file of fixed size that crops takes no other images, not even resized."""
    files = write_images(tmp_path / "images")
    metadata = replace(NORMALISED, crop=(0, 0, 22, 25))
    compiled = compile_file(save_tiny(tmp_path / "model.xml", metadata, size=size))
    outputs = list(Predictor(compiled).predict(files))
    assert {number for number, output in enumerate(outputs) if output.error} >= bad
    assert outputs[0].error == (
        f"{files[0].path} cannot be predicted: the image has 20 x 30 pixels (height x width), but the model's crop "
        "[0, 0, 22, 25] needs at least 22 x 25."
    )
    if size == 25:
        assert "exported for images of 25 x 25 alone" in outputs[1].error
    else:
        assert outputs[1].score is not None


def test_a_map_that_is_not_a_number_is_an_error(tmp_path: Path) -> None:
    """The largest value of such a map may be one."""
    images = ops.parameter(ov.PartialShape([-1, 3, -1, -1]), np.float32, name="input")
    values = ops.sqrt(ops.subtract(ops.reduce_mean(images, ops.constant([1]), keep_dims=True), np.float32(0.5)))
    score = ops.reduce_max(ops.select(ops.is_nan(values), np.float32(0), values), ops.constant([1, 2, 3]))
    outputs = {"pred_score": score, "anomaly_map": values}
    for name, node in outputs.items():
        node.output(0).set_names({name})
    images.output(0).set_names({"input"})
    model = ov.Model([ops.result(node, name=name) for name, node in outputs.items()], [images])
    ov.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    for name, darkest in (("good", 200), ("wrong", 0)):
        pixels = np.full((8, 8, 3), 200, np.uint8)
        pixels[0, 0] = darkest
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    good, wrong = Predictor(compile_file(tmp_path / "model.xml")).predict(find_images([tmp_path]))
    assert good.score == pytest.approx((200 / 255 - 0.5) ** 0.5, abs=1e-5)
    assert wrong.score is None
    assert wrong.error.endswith("wrong.png has an anomaly map with values that are not numbers: the model is damaged.")
