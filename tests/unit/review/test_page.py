# SPDX-License-Identifier: Apache-2.0
"""The page, driven in a browser as a person would."""

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomalib_uniad.cli import main
from anomalib_uniad.errors import InputError
from anomalib_uniad.inference.thresholds_file import GivenThresholds
from anomalib_uniad.report.pictures import encode
from anomalib_uniad.review.labels import Labels
from anomalib_uniad.review.page import write_page
from anomalib_uniad.review.recalibrate import recalibrate
from tiny_openvino import NORMALISED, save_tiny

CHROMIUM = "/usr/bin/chromium"
NAMES = (
    "</script><script>alert(1)</script>",
    "a'b\"c\\",
    "<b>&amp;</b>",
    "Größe 1\x85",
    "{{ 7 * 7 }}",
    "__proto__",
    "no: {x}",
    "=1+1",
    "@a",
    "\U0001f529",
)
COLUMNS = ("path", "category", "label", "raw_score", "threshold", "decision", "error")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    program = next(filter(None, map(shutil.which, (CHROMIUM, "chromium", "google-chrome"))), None)
    if program is None:
        pytest.skip("needs Chromium")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page of a fresh browser whose errors and messages fail the test."""
    context = browser.new_context(viewport={"width": 900, "height": 900})
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text))
    page.on("dialog", lambda dialog: (errors.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: errors.extend([request.url] * (not re.match("file:|data:|blob:", request.url))))
    yield page
    context.close()
    assert errors == []


def write_table(file: Path, *rows: tuple[object, ...]) -> Path:
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([COLUMNS, *rows])
    return file


def saved(page: Any, name: str, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.click(f"text=Save {name}")
    assert waiting.value.suggested_filename == name
    waiting.value.save_as(folder / name)
    return folder / name


def data_of(html: Path) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_from_images_to_new_thresholds(page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predict, review, label, move the threshold, save; then decide and recalibrate by what was saved."""
    monkeypatch.chdir(tmp_path)
    save_tiny(Path("model.xml"))
    good, defective, unknown = (50, 60, 70, 80, 90, 140), (110, 120, 200), (100, 130)
    for folder, values in (("good", good), ("bad", defective), ("new", unknown)):
        (tmp_path / "in" / folder).mkdir(parents=True)
        for value in values:
            Image.fromarray(np.full((16, 16), value, np.uint8)).save(tmp_path / "in" / folder / f"{value}.png")
    main(["predict", "model.xml", "in"])
    main(["review", "predictions"])
    page.goto((tmp_path / "review.html").as_uri())
    counts = page.locator("#counts")
    assert counts.inner_text().split("\n") == ["False alarms 1 of 6 (16.7 %)", "Missed 2 of 3 (66.7 %)"]
    assert page.locator("#unlabelled").inner_text() == "2 without label, 1 of them called anomalous."
    order = [text.split("/")[-1] for text in page.locator(".image .path").all_inner_texts()]
    assert order[:4] == ["130.png", "120.png", "140.png", "110.png"]  # nearest to 127.5
    assert page.locator(".image img").count() == 11

    image = page.locator(".image", has_text="130.png")
    image.locator("text=good").click()
    assert counts.inner_text().startswith("False alarms 2 of 7 (28.6 %)")
    assert image.locator(".wrong-word").inner_text() == "false alarm"
    page.locator(".image", has_text="100.png").locator(".picture").focus()
    page.keyboard.press("d")
    assert counts.inner_text().endswith("Missed 3 of 4 (75.0 %)")

    page.focus("#slider")
    for key in ("PageDown", "PageDown", *["ArrowLeft"] * 50):  # a tenth, and a thousandth
        page.keyboard.press(key)
        if counts.inner_text().endswith("Missed 0 of 4 (0.0 %)"):
            break
    threshold = float(page.input_value("#threshold"))
    assert 90 / 255 < threshold < 100 / 255
    assert counts.inner_text().startswith("False alarms 2 of 7")
    assert page.locator(".image .path").first.inner_text().endswith(("100.png", "90.png"))

    page.reload()  # the browser has kept it all
    assert float(page.input_value("#threshold")) == threshold
    assert counts.inner_text().split("\n") == ["False alarms 2 of 7 (28.6 %)", "Missed 0 of 4 (0.0 %)"]

    given = GivenThresholds.read(saved(page, "thresholds.yaml", tmp_path))
    assert given == GivenThresholds({"image": threshold})
    labels = saved(page, "labels.csv", tmp_path)
    rows = {row["path"]: row["label"] for row in csv.DictReader(labels.read_text().splitlines())}
    wanted = {f"in/good/{value}.png": "good" for value in good} | {
        f"in/bad/{value}.png": "defective" for value in defective
    }
    assert rows == wanted | {"in/new/130.png": "good", "in/new/100.png": "defective"}

    main(["predict", "model.xml", "in", "--thresholds", "thresholds.yaml", "--output", "after"])
    after = csv.DictReader(Path("after/predictions.csv").read_text().splitlines())
    decided = {row["path"]: row["decision"] for row in after}
    assert all(decided[path] == "anomalous" for path, label in rows.items() if label == "defective")
    assert sum(decided[path] == "anomalous" for path, label in rows.items() if label == "good") == 2
    (change,) = recalibrate(
        Path("model.xml"), [Path("in")], labels, Path("thresholds.yaml"), output=Path("new.yaml")
    ).values()
    assert (len(change.good), len(change.defective), change.old) == (7, 4, threshold)

    page.fill("#threshold", "0.5")  # by number, and back
    assert counts.inner_text().startswith("False alarms 2 of 7 (28.6 %)")
    assert page.locator("#learned").is_hidden()
    write_page(Path("after"), Path("again.html"), labels)
    page.goto((tmp_path / "again.html").as_uri())
    assert counts.inner_text().split("\n") == ["False alarms 2 of 7 (28.6 %)", "Missed 0 of 4 (0.0 %)"]


def test_names_that_are_no_plain_text(page: Any, tmp_path: Path) -> None:
    odd = 'dir/"x", <img src=x onerror=alert(2)>.png'
    rows = [(f"{index}/{odd}", name, "normal", 1.25, 2.5, "normal", "") for index, name in enumerate(NAMES)]
    extra = (odd, "x", "", "", "", "", "<script>alert(3)</script>")
    table = write_table(tmp_path / "predictions.csv", *rows, extra)
    text = table.read_text().replace("2.5", "2.75", 1)  # thresholds differ: of products
    table.write_text(text)
    write_page(table, tmp_path / "<i>.html")
    page.goto((tmp_path / "<i>.html").as_uri())
    assert page.locator("#overview button").all_inner_texts() == sorted(NAMES)
    assert page.locator("#left-out td").all_text_contents() == [odd, "<script>alert(3)</script>"]
    page.click("#overview tr:nth-child(2) button")
    page.fill("#threshold", "0.0000001")
    page.locator(".image .defective").click()
    given = GivenThresholds.read(saved(page, "thresholds.yaml", tmp_path))
    changed = sorted(NAMES)[1]
    wanted = {name: {"image": 2.5} for name in NAMES}
    assert given.products == wanted | {NAMES[0]: {"image": 2.75}, changed: {"image": 1e-7}}
    labels = Labels(saved(page, "labels.csv", tmp_path))
    assert labels.of([row[0] for row in rows]) == [name == changed for name in NAMES]


def test_labels_in_the_large_view_and_start_again(page: Any, tmp_path: Path) -> None:
    rows = [(f"a/{score}.png", "", "", score, 5, "normal", "") for score in (1, 2, 4)]
    write_page(write_table(tmp_path / "predictions.csv", *rows), tmp_path / "review.html")
    page.goto((tmp_path / "review.html").as_uri())
    page.locator(".picture").first.click()
    for key in ("g", "d", "u", "ArrowLeft", "g", "Escape"):  # the last image stays
        page.keyboard.press(key)
    states = [card.locator("[aria-pressed=true]").all_inner_texts() for card in page.locator("#grid .image").all()]
    assert states == [["good"], ["good"], []]
    page.evaluate("window.confirm = () => true")
    page.click("text=Start again")
    assert page.locator("#grid [aria-pressed=true]").count() == 0


def test_what_is_in_the_page(tmp_path: Path) -> None:
    """The pictures nearest to the threshold, small, without the line below; thresholds of a file that was used."""
    save_tiny(tmp_path / "model.xml", NORMALISED)
    (tmp_path / "in" / "bottle").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(90, 120, (900, 1200, 3), dtype=np.uint8)
    for value in range(6):
        Image.fromarray(noise + np.uint8(value)).save(tmp_path / "in" / "bottle" / f"{value}.png")
    main(["predict", str(tmp_path / "model.xml"), str(tmp_path / "in"), "--output", str(tmp_path / "out")])
    (tmp_path / "old.yaml").write_text("global: {pixel: 0.25}\nproducts: {cable: {image: 0.75}}")
    write_page(tmp_path, tmp_path / "review.html", thresholds=tmp_path / "old.yaml", pictures=2)
    data = data_of(tmp_path / "review.html")
    (group,) = data["groups"]
    by_margin = sorted(group["images"], key=lambda image: abs(image[2] - group["threshold"]))
    assert [bool(image[4]) for image in by_margin] == [True] * 2 + [False] * 4
    assert all(len(image[4]) < 80_000 for image in by_margin)
    heatmap = Image.open(tmp_path / "out" / "heatmaps" / "bottle" / f"{Path(by_margin[0][1]).stem}.jpg")
    assert by_margin[0][4] == encode(heatmap.crop((0, 0, 1200, 900)), "jpeg", 60_000)
    assert data["given"] == {"everywhere": {"pixel": 0.25}, "products": [["cable", {"image": 0.75}]]}


def test_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path / "predictions.csv", ("a.png", "", "", 1, 2, "normal", ""))
    with pytest.raises(InputError, match=r"output must be a file that ends in \.html, got review"):
        write_page(table, Path("review"))
    with pytest.raises(InputError, match="pictures must be at least 0"):
        write_page(table, tmp_path / "a.html", pictures=-1)
    write_page(table, tmp_path / "a.html")
    with pytest.raises(FileExistsError, match="would be overwritten"):
        write_page(table, tmp_path / "a.html")
