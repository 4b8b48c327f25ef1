# SPDX-License-Identifier: Apache-2.0
"""Commands, Python and links of README, docs and configs: commands go through the parsers, nothing is run."""

import ast
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser, capture_parser

from anomalib_parser import anomalib_parser
from anomalib_uniad import CIFAR10, MetaFile, MultiCategory, UniAD, cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
PICTURE = ROOT / "tools" / "readme_picture.py"
# Programs of others, which have no parser here.
OTHERS = {".ci/run", "cd", "docker", "git", "mkdocs", "mypy", "pip", "pip-audit", "pre-commit", "pytest", "ruff"}
MODULES_OF_OTHERS = {"build", "pip"}

Command = tuple[str, ...]


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a language, without the indentation of a list."""
    found = re.finditer(rf"^( *)```{language}\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{match[1]}", "", match[2], flags=re.MULTILINE) for match in found]


def split(block: str) -> Iterator[Command]:
    """Commands of a block: continued lines are joined, comments and variables dropped, && separates."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(re.sub(r"^[A-Z_]+=\S+ ", "", line), comments=True)
        while "&&" in words:
            end = words.index("&&")
            yield tuple(words[:end])
            words = words[end + 1 :]
        if words:
            yield tuple(words)


def in_comments(text: str) -> str:
    """Commands that stand, indented, in the comments of a config or the docstring of a script."""
    lines = [re.sub(r"^#? {4,}", "", line) for line in text.splitlines() if re.match(r"^#? {4,}\S", line)]
    joined = "\n".join(lines).replace("\\\n", " ")
    return "\n".join(line for line in joined.splitlines() if re.match(r"(anomalib|anomalib-uniad|python) ", line))


def commands() -> dict[Command, str]:
    """Every command -> where it stands."""
    found: dict[Command, str] = {}
    for name, text in TEXTS.items():
        for block in blocks(text, "bash"):
            found = dict.fromkeys(split(block), name) | found  # named by the first page that has them: the README
    for file in [*sorted((ROOT / "configs").rglob("*.yaml")), *sorted((ROOT / "examples").glob("*.py")), PICTURE]:
        text = in_comments(file.read_text(encoding="utf-8"))
        found = dict.fromkeys(split(text), str(file.relative_to(ROOT))) | found
    return found


COMMANDS = commands()


def of(program: str) -> list:
    chosen = [(command, where) for command, where in COMMANDS.items() if command[0] == program]
    return [pytest.param(list(command), id=f"{where}: {' '.join(command)[:90]}") for command, where in chosen]


@pytest.fixture(scope="module")
def uniad_parser() -> ArgumentParser:
    return capture_parser(cli.main, [])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader of the docs is: configs of the clone, and the files that the docs tell to write."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for text in TEXTS.values():
        for block in blocks(text, "yaml"):
            if name := re.match(r"# (\w+\.yaml)", block):
                (tmp_path / name[1]).write_text(block)
    (tmp_path / "uniad.yaml").write_text((tmp_path / "model.yaml").read_text())  # import-checkpoint writes it
    run = tmp_path / "results" / "UniAD" / "mydata" / "latest"
    run.mkdir(parents=True)
    written = {"model": {"class_path": "anomalib_uniad.UniAD"}, "data": {"class_path": "anomalib_uniad.MultiCategory"}}
    (run / "model.yaml").write_text(yaml.safe_dump(written))  # a training writes it
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 30
    readme = [command for command, where in COMMANDS.items() if where == "README.md"]
    assert ("anomalib", "train", "--config", "configs/quickstart.yaml") in readme
    assert {"anomalib-uniad", "pytest", "python"} < {command[0] for command in readme}


@pytest.mark.parametrize("command", of("anomalib"))
def test_anomalib(command: list[str], folder: Path) -> None:
    arguments = command[1:]
    if "--model.help" in arguments:
        return
    anomalib_parser().parse_args(arguments)


@pytest.mark.parametrize("command", of("anomalib-uniad"))
def test_anomalib_uniad(command: list[str], uniad_parser: ArgumentParser) -> None:
    uniad_parser.parse_args(command[1:])


@pytest.mark.parametrize("command", of("python"))
def test_python(command: list[str]) -> None:
    if command[1] == "-m":
        assert command[2] in MODULES_OF_OTHERS
    else:
        assert (ROOT / command[1]).is_file()


def test_other_programs() -> None:
    assert {command[0] for command in COMMANDS} - {"anomalib", "anomalib-uniad", "python"} <= OTHERS


def test_a_wrong_command_is_found(folder: Path, uniad_parser: ArgumentParser, capsys) -> None:
    for parser, line in (
        (anomalib_parser(), "train --model UniAD --model.hidden_dims 3"),
        (anomalib_parser(), "train --config configs/none.yaml"),
        (uniad_parser, "predict model.xml images --outputs x"),
    ):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(line.split())


@pytest.mark.parametrize("name", TEXTS)
def test_words_in_the_text(name: str, uniad_parser: ArgumentParser) -> None:
    """Subcommands and arguments that sentences name exist."""
    for words in re.findall(r"`anomalib-uniad ([a-z][a-z-]*)", TEXTS[name]):
        assert words in cli.COMMANDS
    arguments = {
        "model": inspect.signature(UniAD).parameters,
        "data": [name for cls in (MultiCategory, MetaFile, CIFAR10) for name in inspect.signature(cls).parameters],
    }
    for section, argument in re.findall(r"--(model|data)\.(?:init_args\.)?(\w+)", TEXTS[name]):
        assert argument in arguments[section] or argument == "help"


@pytest.mark.parametrize("name", TEXTS)
def test_python_blocks(name: str) -> None:
    for block in blocks(TEXTS[name], "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("anomalib"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize("name", TEXTS)
def test_yaml_blocks(name: str) -> None:
    for block in blocks(TEXTS[name], "yaml"):
        assert isinstance(yaml.safe_load(block), dict)


@pytest.mark.parametrize("name", TEXTS)
def test_files_that_are_named_exist(name: str) -> None:
    text = re.sub(r"```.*?```", "", TEXTS[name], flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (ROOT / name).parent.joinpath(target).exists(), target
    results_of_users = "results/UniAD", "results/weights"
    for path in re.findall(r"`((?:benchmarks|configs|docs|examples|results|src|tests|tools)/[\w./-]*)`", text):
        if path.startswith(results_of_users):
            continue
        assert (ROOT / path).exists(), path


def test_the_readme_is_short() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 250
