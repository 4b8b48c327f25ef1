# SPDX-License-Identifier: Apache-2.0
import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anomalib_uniad.files import file_names
from anomalib_uniad.report import pictures
from anomalib_uniad.report.comparison import compare
from anomalib_uniad.report.decisions import find_failures
from anomalib_uniad.report.html import to_html
from anomalib_uniad.report.pictures import choose, data_uri, find_curves, find_heatmaps
from anomalib_uniad.report.runs import read_runs
from runs import write_picture, write_predictions, write_run

VOID = {"meta", "img", "line", "circle", "br", "link"}


class Page(HTMLParser):
    """Elements of a page, which have to be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == "img"]


def render(folders: list[Path], names: list[str] | None = None, heatmaps: int = 2, failures: int = 0) -> str:
    return to_html(compare(read_runs(folders, names)), heatmaps, failures)


def full_run(folder: Path, values: dict[str, float], **about: Any) -> Path:
    """Write a run with curves, heatmaps and predictions."""
    write_run(folder, {name: {"image_AUROC": value} for name, value in values.items()}, **about)
    names = file_names(list(values))
    rows = []
    for name in values:
        write_picture(folder / "curves" / f"{names[name]}.png", (90, 30), noise=False)
        for number in range(2):
            for kind in ("good", "crack", "dent"):
                if "/" not in name:
                    write_picture(folder / "images" / name / "test" / kind / f"{number}.png")
                label = "normal" if kind == "good" else "anomalous"
                rows.append((f"data/{name}/test/{kind}/{number}.png", name, label, "normal"))
    write_predictions(folder, rows)
    return folder


def test_what_went_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Farthest from the threshold first, so many of each kind; the image itself where there is no heatmap."""
    folder = write_run(tmp_path / "run", {name: {"image_AUROC": 0.9} for name in ("nut", "<b>")})
    monkeypatch.chdir(tmp_path)  # only images below it, and in the run, are read
    photo = tmp_path / "nut" / "good" / "7.png"
    write_picture(photo, (50, 40))
    write_picture(folder / "images" / "nut" / "test" / "crack" / "1.png", (120, 40))
    header = "path,category,label,raw_score,normalised_score,threshold,decision"
    rows = [
        (photo, "nut", "normal", 9, 0.9, 5, "anomalous"),
        ("data/nut/test/good/1.png", "nut", "normal", 6, 0.6, 5, "anomalous"),
        ("data/nut/test/good/2.png", "nut", "normal", 5, "", 5, "unknown"),
        ("data/nut/test/good/3.png", "nut", "normal", 1, 0.1, 5, "normal"),
        ("data/nut/test/crack/0.png", "nut", "anomalous", 4, 0.4, 5, "normal"),
        ("data/nut/test/crack/1.png", "nut", "anomalous", 1, 0.1, 5, "normal"),
        ("data/b/test/dent/<i>.png", "<b>", "anomalous", 1, 0.1, 5, "normal"),
        ("data/b/test/dent/1.png", "<b>", "anomalous", 1, 0.1, 5, ""),
    ]
    (folder / "predictions.csv").write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]))
    table = find_failures(read_runs([folder])[0].predictions, 2)
    assert [(Path(row.path).name, row.failure) for row in table.itertuples()] == [
        ("2.png", "false alarm"),
        ("7.png", "false alarm"),
        ("1.png", "missed"),
        ("0.png", "missed"),
        ("<i>.png", "missed"),
    ]
    page = Page(render([folder], heatmaps=0, failures=2))
    assert {image["alt"]: decoded(image["src"]).size for image in page.images()} == {
        "false alarm: good/7.png": (50, 40),
        "missed: crack/1.png": (120, 40),
    }
    assert "dent/<i>.png" in "".join(page.texts)
    assert "What went wrong" not in render([folder], failures=0)


def decoded(uri: str | None) -> Image.Image:
    assert uri is not None
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_page(tmp_path: Path) -> None:
    folders = [
        full_run(tmp_path / "0", {"bottle": 0.98765, "cable": 0.5}),
        full_run(tmp_path / "1", {"bottle": 0.5, "cable": 0.75}, command="anomalib train --model Padim"),
    ]
    text = render(folders, ["A", "B"])
    page = Page(text)
    shown = " ".join("".join(page.texts).split())
    assert "98.8" in shown
    assert any(attributes.get("title") == "0.98765, best" for _, attributes in page.elements)
    assert len(re.findall(r'class="number best"', text)) == 4  # two categories, their mean, the same in the summary
    assert "4 of 4" in shown  # missed, of each category
    assert "8 of 8" in shown
    assert "0 of 2" in shown
    assert "anomalib train --model Padim" in shown
    assert "16 test images" in shown
    assert "crack/0" in shown
    assert "dent/0" in shown
    assert "good/0" not in shown
    assert len(page.images()) == 2 * 2 + 2 * 2 * 2  # curves, then two heatmaps per category of two runs


def test_everything_is_inside(tmp_path: Path) -> None:
    text = render([full_run(tmp_path, {"bottle": 0.5})])
    page = Page(text)
    assert page.images()
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe", "object"}
        for name in ("src", "href", "srcset", "data", "action"):
            assert (attributes.get(name) or "#").startswith(("data:image/", "#")), (tag, attributes)
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style
    for word in ("http", "url(", "@import"):
        assert word not in style
    assert "http://" not in text
    assert "https://" not in text
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text


def test_names_are_safe(tmp_path: Path) -> None:
    odd = ["<b>bold</b>", '"><script>alert(1)</script>', "a|b", "a&amp;b", "{{ 7 * 7 }}"]
    folder = full_run(tmp_path, dict.fromkeys(odd, 0.5), command="<img src=x onerror=alert(1)>", dataset="<i>d</i>")
    page = Page(render([folder, folder], ["<u>A</u>", "'B\""]))
    assert {"b", "u", "script"} & {tag for tag, _ in page.elements} == set()
    assert all((attributes["src"] or "").startswith("data:") for attributes in page.images())
    shown = "".join(page.texts)
    for name in [*odd, "<u>A</u>", "<img src=x onerror=alert(1)>", "<i>d</i>"]:
        assert name in shown


def test_warnings_and_notes(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "0", {"a": {"image_AP": 0.5}, "b": {"image_AP": 0.5}}),
        write_run(tmp_path / "1", {"a": {"image_AP": None}, "b": {"image_AP": 0.25}}, dataset="other"),
        write_run(tmp_path / "2", {"a": {"image_AP": None}}, reasons={"a": {"image_AP": "only normal images"}}),
    ]
    shown = "".join(Page(render(folders, ["A", "B", "C"])).texts)
    assert "different data sets (A, C: line; B: other)" in shown
    assert "a (C): only normal images." in shown
    assert "25.0†" in shown
    assert "Curves and heatmaps" in shown  # as there are thresholds


def test_metrics_that_are_no_fractions(tmp_path: Path) -> None:
    shown = "".join(Page(render([write_run(tmp_path, {"a": {"latency": 12.345678}})])).texts)
    assert "12.35" in shown
    assert "1234.6" not in shown


def test_no_heatmaps_wanted(tmp_path: Path) -> None:
    page = Page(render([full_run(tmp_path, {"bottle": 0.5})], heatmaps=0))
    assert [attributes["class"] for attributes in page.images()] == ["curves"]


def test_pictures_that_a_run_lacks(tmp_path: Path) -> None:
    folders = [full_run(tmp_path / "0", {"bottle": 0.5}), write_run(tmp_path / "1", {"bottle": {"image_AUROC": 0.5}})]
    page = Page(render(folders, ["A", "B"]))
    assert len(page.images()) == 3
    assert "".join(page.texts).count("no picture") == 3


def test_damaged_pictures_are_left_out(tmp_path: Path) -> None:
    folder = full_run(tmp_path, {"bottle": 0.5})
    file = folder / "curves" / "bottle.png"
    for content in (b"no picture", file.read_bytes()[:60], b""):
        file.write_bytes(content)
        assert data_uri(file, "png", 10_000) == ""
        assert data_uri(file, "jpeg", 10_000) == ""
    assert len(Page(render([folder])).images()) == 2


def test_pictures_are_scaled_to_their_limit(tmp_path: Path) -> None:
    photo = write_picture(tmp_path / "photo.png", (1600, 400))
    large, small = decoded(data_uri(photo, "jpeg", 10_000_000)), decoded(data_uri(photo, "jpeg", 40_000))
    assert (large.format, large.size) == ("JPEG", (1000, 250))
    assert small.width < 1000
    assert len(data_uri(photo, "jpeg", 40_000)) < 60_000
    drawing = write_picture(tmp_path / "drawing.png", (300, 100), noise=False)
    assert (decoded(data_uri(drawing, "png", 10_000)).format, decoded(data_uri(drawing, "png", 10_000)).size) == (
        "PNG",
        (300, 100),
    )
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert decoded(data_uri(tmp_path / "clear.png", "jpeg", 10_000)).getpixel((4, 4)) == (255, 255, 255)


def test_the_page_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = full_run(tmp_path, {"bottle": 0.5, "cable": 0.5})
    for path in (folder / "images").rglob("*.png"):
        write_picture(path, (1200, 600))
    large = len(render([folder]))
    monkeypatch.setattr("anomalib_uniad.report.html.HEATMAPS_BYTES", 100_000)
    small = len(render([folder]))
    assert small < large / 3
    assert pictures.CURVES_BYTES + pictures.HEATMAPS_BYTES <= 6_000_000


def test_choice_of_heatmaps(tmp_path: Path) -> None:
    (run,) = read_runs([full_run(tmp_path, {"bottle": 0.5})])
    found = find_heatmaps(run, "bottle")
    labels = {(kind, str(number)): kind != "good" for kind in ("good", "crack", "dent") for number in range(2)}
    assert set(found) == set(labels)
    order = [("crack", "0"), ("dent", "0"), ("crack", "1"), ("dent", "1"), ("good", "0"), ("good", "1")]
    assert choose([found], 9, labels) == order
    assert choose([found], 9, {}) == order  # told by the names of the folders
    fewer = {key: path for key, path in found.items() if key != ("crack", "0")}
    assert choose([found, fewer], 2, labels) == [("crack", "1"), ("dent", "0")]
    assert choose([], 2, labels) == []
    assert choose([found], 9, {("good", "1"): True, ("crack", "0"): False})[-1] == ("good", "0")


def test_labels_of_predictions_choose_the_heatmaps(tmp_path: Path) -> None:
    """Also against the names of the folders."""
    folder = full_run(tmp_path, {"bottle": 0.5})
    rows = [(f"d/bottle/test/{kind}/0.png", "bottle", int(kind == "good"), 1) for kind in ("good", "crack", "dent")]
    write_predictions(folder, [*rows, *((row[0].replace("/0", "/1"), *row[1:]) for row in rows)])
    page = Page(render([folder], heatmaps=1))
    assert "good/0" in page.texts


def test_heatmaps_of_a_single_category(tmp_path: Path) -> None:
    (run,) = read_runs([write_run(tmp_path, {"bottle": {"image_AUROC": 0.5}})])
    path = write_picture(tmp_path / "images" / "test" / "crack" / "0.png")
    assert find_heatmaps(run, "bottle") == {("crack", "0"): path}
    run.categories.append("cable")
    assert find_heatmaps(run, "bottle") == {}


@pytest.mark.parametrize("name", ["..", "../secret", "/etc", ""])
def test_categories_are_no_paths(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    (run,) = read_runs([write_run(folder, {name: {"image_AUROC": 0.5}, "b": {"image_AUROC": 0.5}})])
    write_picture(folder / "secret" / "0.png")
    (folder / "images").mkdir()
    (folder / "curves").mkdir()
    write_picture(folder / "secret.png")
    assert find_heatmaps(run, name) == {}
    assert find_curves(run, name) is None


def test_curves_have_the_names_that_evaluations_give_them(tmp_path: Path) -> None:
    from anomalib_uniad.metrics.run_files import RunFiles

    names = ["metal_nut", "a/b", "a|b", "a_b", "..", ".hidden", "<b>", "größe 2", ""]
    write_run(tmp_path, {name: {"image_AUROC": 0.5} for name in names}, number="-1")
    (tmp_path / "metrics.csv").touch()
    (tmp_path / "metrics-1.csv").unlink()
    (tmp_path / "metrics-1.json").rename(tmp_path / "kept.json")
    RunFiles(tmp_path).write_curves({name: name.encode() for name in names})
    (tmp_path / "kept.json").rename(tmp_path / "metrics-1.json")
    (run,) = read_runs([tmp_path])
    assert [path and path.read_bytes().decode() for path in (find_curves(run, name) for name in names)] == names
