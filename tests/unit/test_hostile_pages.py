# SPDX-License-Identifier: Apache-2.0
"""Names that are markup, script or no text at all: pages show them, and have no element or address of theirs."""

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from anomalib_uniad.benchmark.results import write as write_results
from anomalib_uniad.captions import fit, font_of
from anomalib_uniad.check.command import Checked
from anomalib_uniad.check.command import write as write_check
from anomalib_uniad.check.findings import Finding, Inspected
from anomalib_uniad.check.source import Source
from anomalib_uniad.data.layouts import Product
from anomalib_uniad.inference import Inspection
from anomalib_uniad.inference.heatmap import draw_inspection
from anomalib_uniad.report.benchmark_report import write_benchmark_report
from anomalib_uniad.report.write import write_report
from anomalib_uniad.review.page import write_page
from anomalib_uniad.serve import server
from benchmark_folders import write_training

ODD = [
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "<!--<script>",
    '"><img src=x onerror=alert(3)>',
    "' onmouseover='alert(4)",
    "javascript:alert(5)",
    "{{ 7 * 7 }}{% raw %}",
    "]]><svg onload=alert(6)>",
    "a\u2028b\u2029",
    "\u202egnp.exe",
    "&lt;b&gt;",
    "\udce9",
    "$\\frac{1}{$",
    "[x](javascript:alert(7)) ![y](http://example.com/z)",
]


class Page(HTMLParser):
    """Elements, attributes that run or load something, and text of a page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.runs: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        for name, value in attributes:
            loads = name in {"href", "src", "action", "formaction", "data", "style"} and ":" in (value or "")
            if name.startswith("on") or (loads and not (value or "").startswith("data:image/")):
                self.runs.append((name, value))

    def handle_data(self, text: str) -> None:
        self.texts.append(text)


def shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def check(odd: Path, plain: Path) -> None:
    """A page of odd names has the elements of the same page of plain ones, and shows the names."""
    pages = Page(odd), Page(plain)
    assert pages[0].tags == pages[1].tags
    assert [run for run in pages[0].runs if run not in pages[1].runs] == []
    text = "".join(pages[0].texts)
    assert [name for name in ODD if shown(name) not in text] == []


PLAIN = [f"name{number:02d}" for number in range(len(ODD))]
pytestmark = pytest.mark.filterwarnings("ignore:Glyph")  # of what is drawn


def test_check(tmp_path: Path) -> None:
    for folder, names in (("odd", ODD), ("plain", PLAIN)):
        products = [Inspected(Product(name, Path(name), name)) for name in names]
        findings = [Finding(True, name, name, name, name) for name in names]
        write_check(Checked(Source(names[0], [], names[1]), products, findings), tmp_path / folder)
    check(tmp_path / "odd" / "check.html", tmp_path / "plain" / "check.html")


def test_report(tmp_path: Path) -> None:
    for folder, names in (("odd", ODD), ("plain", PLAIN)):
        (tmp_path / folder).mkdir()
        categories = {name: {"values": {"AP": 0.5}, "images": 1} for name in names}
        about = {"model": names[0], "dataset": names[1], "command": names[2]}
        text = json.dumps({"run": about, "metrics": ["AP"], "categories": categories})
        (tmp_path / folder / "metrics.json").write_text(text)
        write_report([tmp_path / folder] * 2, tmp_path / f"{folder}_report", names=names[3:5])
    check(tmp_path / "odd_report" / "report.html", tmp_path / "plain_report" / "report.html")
    markdown = (tmp_path / "odd_report" / "report.md").read_text()
    assert "<script" not in markdown
    assert "](javascript:" not in markdown.replace("\\]", "")


@pytest.mark.slow
def test_benchmark(tmp_path: Path) -> None:
    names = [name for name in ODD if name.encode("utf-8", "replace").decode() == name]  # tables are text
    for folder, of in (("odd", names), ("plain", PLAIN[: len(names)])):
        values = dict.fromkeys(of, (0.5, 0.5))
        trainings = [
            write_training(tmp_path / folder, ("data", f"method{number}", "unified", 0), values) for number in range(2)
        ]
        write_results(trainings, tmp_path / folder, of[0])
        table = pd.read_csv(tmp_path / folder / "results.csv")
        table["data"] = of[1]
        table["method"] = table["method"].map({"method0": of[2], "method1": of[3]})
        table.to_csv(tmp_path / folder / "results.csv", index=False)
        write_benchmark_report(tmp_path / folder, tmp_path / f"{folder}_report")
    pages = [Page(tmp_path / f"{folder}_report" / "report.html") for folder in ("odd", "plain")]
    assert pages[0].tags == pages[1].tags
    assert [run for run in pages[0].runs if run not in pages[1].runs] == []
    assert all(name in "".join(pages[0].texts) for name in names)


def test_review(tmp_path: Path) -> None:
    columns = ["path", "category", "raw_score", "threshold", "decision", "heatmap", "error"]
    for folder, names in (("odd", ODD), ("plain", PLAIN)):
        (tmp_path / folder).mkdir()
        rows = [(f"{name}.png", name, 1, 2 + place, "normal", name, "") for place, name in enumerate(names)]
        rows += [(name, name, "", "", "", "", name) for name in names]
        file = tmp_path / folder / "predictions.csv"
        with file.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            csv.writer(stream).writerows([columns, *rows])
        write_page(file, tmp_path / f"{folder}.html")
    odd, plain = Page(tmp_path / "odd.html"), Page(tmp_path / "plain.html")
    assert odd.tags == plain.tags
    assert odd.runs == plain.runs == []
    data = json.loads(next(text for text in odd.texts if text.startswith('{"')))
    assert [group["name"] for group in data["groups"]] == sorted(ODD)
    assert data["leftOut"] == [[name, name] for name in ODD]


def test_the_page_of_the_server_puts_text_as_text() -> None:
    page = (Path(server.__file__).parent / "page.html").read_text()
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in page


def test_captions_of_pictures() -> None:
    for name in (*ODD, "a\nb", "a\0b", "x" * 10_000):
        found = Inspection("anomalous", name, 0.5, 0.5, 0.4, np.zeros((20, 30), np.float32))
        assert draw_inspection(np.zeros((20, 30, 3), np.uint8), found).width == 30
        large = font_of(20)
        assert large.getlength(fit(name, large, 100)) <= 100
