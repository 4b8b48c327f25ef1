# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from pathlib import Path

import pytest

from anomalib_uniad.cli import main
from anomalib_uniad.report import write
from runs import write_predictions, write_run

VALUES = {"a": {"image_AUROC": 0.5, "pixel_AP": 0.25}, "b": {"image_AUROC": 1.0, "pixel_AP": 0.5}}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "UniAD" / "v0", VALUES)
    write_run(tmp_path / "Padim" / "v0", {"a": {"image_AUROC": 0.75}}, model="Padim")
    return ["UniAD/v0", "Padim"]


def test_report(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", *runs])
    out = capsys.readouterr().out
    assert "image_AUROC" in out
    assert "* 0.7500" in out
    assert "Warning: The runs have different categories: Padim lacks b." in out
    for name in ("report.md", "report.csv", "report.html"):
        assert f"Wrote report/{name}." in out
        assert "Padim" in (tmp_path / "report" / name).read_text()
    assert len(list((tmp_path / "report").iterdir())) == 3


def test_options(runs: list[str], tmp_path: Path) -> None:
    main(["report", "--names", "[A,B]", *runs, "--metrics", "[pixel_AP]", "--output", "x/y", "--heatmaps", "0"])
    lines = (tmp_path / "x" / "y" / "report.csv").read_text().splitlines()
    assert lines[0] == "metric,category,A,B,best,note,kind"
    assert {line.partition(",")[0] for line in lines[1:]} == {"pixel_AP"}


def test_one_run_and_files(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", "UniAD/v0/metrics.csv"])
    assert "* best" not in capsys.readouterr().out
    assert "0.7500" in (tmp_path / "report" / "report.md").read_text()


def test_nothing_is_overwritten(runs: list[str], tmp_path: Path) -> None:
    main(["report", *runs])
    (tmp_path / "report" / "report.html").unlink()
    (tmp_path / "report" / "report.md").write_text("mine")
    with pytest.raises(SystemExit, match=r"error: report/report.md \(and 1 more\) would be overwritten"):
        main(["report", *runs])
    assert (tmp_path / "report" / "report.md").read_text() == "mine"
    assert not (tmp_path / "report" / "report.html").exists()
    main(["report", *runs, "--overwrite", "true"])
    assert "Padim" in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["UniAD/v0", "nowhere"], r"^error: nowhere is not there: give the folder of a run"),
        (["empty"], r"^error: empty is not the folder of a run"),
        (["odd"], r"^error: odd/metrics.json is damaged: Expecting value"),
        (["UniAD/v0", "--metrics", "[F1]"], r"^error: No run has the metric F1: choose from image_AUROC, pixel_AP"),
        (["UniAD/v0", "Padim", "--names", "[A]"], r"^error: names has 1 names \(A\) for 2 runs"),
        (["UniAD/v0", "--heatmaps", "-1"], r"^error: heatmaps must be at least 0, got -1"),
        (["UniAD/v0", "--output", "file"], r"^error: file is a file: give a folder as output"),
        (["Padim"], r"^error: Padim/v0/predictions.csv is damaged: it has no column decision"),
    ],
)
def test_bad_input(runs: list[str], tmp_path: Path, arguments: list[str], match: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "metrics.json").write_text("?")
    (tmp_path / "file").touch()
    write_predictions(tmp_path / "Padim" / "v0", [], header="path,category,label")
    with pytest.raises(SystemExit, match=match) as caught:
        main(["report", *arguments])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report").exists()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["report", "--help"])
    out = capsys.readouterr().out
    assert "RUN [RUN ...]" in out
    assert "How many heatmaps per category" in " ".join(out.split())
    with pytest.raises(SystemExit, match="2"):
        main(["report"])


def test_nothing_is_left_of_a_failure(runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "to_html", lambda *arguments: None)  # cannot be written
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.md").write_text("mine")
    with pytest.raises(TypeError, match=r"data must be str"):
        main(["report", *runs, "--overwrite", "true"])
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["report.md"]
    assert (tmp_path / "report" / "report.md").read_text() == "mine"


def test_torch_is_not_imported(runs: list[str]) -> None:
    code = (
        f"import sys; from anomalib_uniad.cli import main; main(['report', *{runs!r}]);"
        "print([name for name in ('torch', 'anomalib', 'lightning') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
