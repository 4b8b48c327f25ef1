# SPDX-License-Identifier: Apache-2.0
"""What is told about an error, whoever has wrapped it."""

import errno
import logging
import os
import sys
import traceback

import pytest
import torch
from anomalib.data import PredictDataset
from torch._utils import ExceptionWrapper

from anomalib_uniad import MultiCategory, UniAD, messages
from anomalib_uniad.errors import DiskError, InputError, MissingFileError, UserError
from anomalib_uniad.messages import ParserErrors, disk_sentence_of, parser_sentence, sentence_of


def caught(function, *arguments) -> BaseException:
    with pytest.raises(BaseException) as error:
        function(*arguments)
    return error.value


def test_sentences_of_wrapped_errors() -> None:
    def wrap(error: Exception, cause: Exception | None) -> None:
        raise error from cause

    ours = MissingFileError("There is no folder parts.")
    assert sentence_of(ours) == "There is no folder parts."
    assert sentence_of(caught(wrap, RuntimeError("setup failed"), ours)) == "There is no folder parts."
    # as jsonargparse does it: indented, among others, without our error in the chain
    text = "Does not validate\nErrors:\n  - Expected a <class 'NoneType'>\n  - There is no\n    folder parts.\nGiven: x"
    assert sentence_of(caught(wrap, ValueError(text), TypeError("None"))) == "There is no folder parts."


def test_other_errors_are_left_alone() -> None:
    InputError("There is no folder parts.")
    for error in (ValueError("There is no folder."), KeyError("parts"), OSError(errno.ENOENT, "gone", "x")):
        assert sentence_of(error) is None
        assert disk_sentence_of(error, None) is None

    def handled_and_then_a_fault_of_ours() -> None:
        try:
            raise InputError("There is no folder parts.")
        except InputError:
            [][0]

    assert sentence_of(caught(handled_and_then_a_fault_of_ours)) is None


def test_errors_of_workers() -> None:
    """A dataloader raises them again in the main process, as the same class, with the traceback in the message."""
    try:
        try:
            raise InputError("a.png is damaged.")
        except InputError as error:
            raise DiskError("a.png cannot be read.") from error
    except DiskError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    error = caught(wrapped.reraise)
    assert "Traceback" in str(error)
    assert sentence_of(error) == "a.png cannot be read."


def test_texts_of_other_processes() -> None:
    def text(*errors: Exception) -> str:
        return "".join(f"Traceback (most recent call last):\n  File 'a.py'\n{line}" for line in map(line_of, errors))

    def line_of(error: Exception) -> str:
        return traceback.format_exception_only(error)[0]

    ours = InputError("a.png is damaged:\n  copy it again.")
    assert sentence_of(RuntimeError(f"Process 1 failed:\n{text(ours)}")) == "a.png is damaged:\n  copy it again."
    UserError.last = None
    assert sentence_of(RuntimeError(text(ours, RuntimeError("a fault of ours")))) is None


@pytest.fixture
def hook(monkeypatch) -> list[BaseException]:
    """What the hook before ours has shown."""
    shown: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, traceback: shown.append(error))
    messages.install_excepthook()
    messages.install_excepthook()
    return shown


def test_excepthook(hook, monkeypatch, capsys) -> None:
    ours, theirs = InputError("naïve 日本 is wrong."), ValueError("naïve")
    sys.excepthook(type(ours), ours, None)
    assert capsys.readouterr().err == "error: naïve 日本 is wrong.\n"
    assert hook == []
    sys.excepthook(type(theirs), theirs, None)
    monkeypatch.setenv("ANOMALIB_UNIAD_TRACEBACK", "1")
    sys.excepthook(type(ours), ours, None)
    assert hook == [theirs, ours]
    assert capsys.readouterr().err == ""


def test_a_full_disk_is_told_where_our_model_is_at_work(hook, capsys) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "results/x.ckpt")

    def write(model: object) -> None:
        raise full

    for model, count in ((torch.nn.Linear(1, 1), 1), (torch.nn.Module.__new__(UniAD), 1)):
        error = caught(write, model)
        sys.excepthook(type(error), error, error.__traceback__)
        assert len(hook) == count
        error.__traceback__ = None
    assert capsys.readouterr().err.startswith("error: results/x.ckpt: No space left on device; ")


def test_paths_that_anomalib_refuses_for_our_model(hook, capsys, tmp_path) -> None:
    def predict(model: object, path: object) -> tuple:
        return model, PredictDataset(path)

    ours = torch.nn.Module.__new__(UniAD)
    gone = tmp_path / "gone"
    for model, path, said in ((ours, gone, f"error: Path does not exist: {gone}.\n"), (ours, tmp_path, "0 images")):
        error = caught(predict, model, path)
        sys.excepthook(type(error), error, error.__traceback__)
        assert said in capsys.readouterr().err
        error.__traceback__ = None
    assert hook == []
    for function, *arguments in ((predict, torch.nn.Linear(1, 1), gone), (lambda model: int("x"), ours)):
        error = caught(function, *arguments)
        sys.excepthook(type(error), error, error.__traceback__)
        assert hook.pop() is error
        error.__traceback__ = None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:50122",
            "closed by peer",
        ),
        (
            "[/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:387: Connection reset by peer. GLHF!",
            "reset by peer",
        ),
        ("[/gloo/gloo/transport/tcp/pair.cc:446] writev [127.0.0.1]:3: Broken pipe", "broken pipe"),
        ("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation", "timed out"),
        ("The client socket has timed out after 60000ms while trying to connect to (node0, 29500).", "timed out"),
        ("NCCL error in: ProcessGroupNCCL.cpp:2, remote process exited or there was a network error", "process exited"),
    ],
)
def test_a_process_that_is_lost(hook, capsys, text: str, reason: str) -> None:
    def train(model: object, message: str) -> None:
        raise RuntimeError(message)

    ours = torch.nn.Module.__new__(UniAD)
    error = caught(train, ours, text)
    sys.excepthook(type(error), error, error.__traceback__)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: Another process of this training was killed or cannot be reached (")
    assert f"{reason}): see what it has written" in line
    for model, message in ((torch.nn.Linear(1, 1), text), (ours, "Connection reset by peer"), (ours, "gloo is here")):
        other = caught(train, model, message)
        sys.excepthook(type(other), other, other.__traceback__)
        assert hook.pop() is other


def test_one_of_several_processes_says_it(hook, monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(messages.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(messages, "_SECONDS_OF_RANK_ZERO", 0.05)
    error = InputError("The loss is not finite.")
    for rank, parents, said in (
        ("1", [1, 1], True),  # the first one is there, and has said nothing
        ("1", [1, 2], False),  # it has ended
        ("0", [1], True),
        ("1", [os.getpid()] * 2, False),  # it has said so
    ):
        monkeypatch.setenv("LOCAL_RANK", rank)
        answers = iter(parents)
        monkeypatch.setattr(messages.os, "getppid", lambda answers=answers: next(answers))
        sys.excepthook(type(error), error, None)
        assert ("The loss is not finite." in capsys.readouterr().err) == said


PROBLEM = (
    "Errors:\n  - Expected a <class 'NoneType'>\n  - Problem with given class_path '{}':\n      {}\nGiven value type: "
)
PROBLEM += "<class 'jsonargparse._util.NestedArg'>\nGiven value: NestedArg(key='x', val='y')"


@pytest.mark.parametrize(
    ("cls", "problem", "sentence"),
    [
        (
            UniAD,
            "Option 'lerning_rate' is not accepted",
            "UniAD has no argument lerning_rate; did you mean learning_rate?",
        ),
        (
            UniAD,
            "Parser key \"image_score\":\n  Expected a typing.Literal['max', 'top', 'mean', 'std']. Got value: maxx",
            "image_score of UniAD must be one of max, top, mean, std, got maxx.",
        ),
        (
            UniAD,
            "Parser key \"seed\":\n  Does not validate\n  Given value type: <class 'str'>\n  Given value: abc",
            "seed of UniAD must be int or null, got abc.",
        ),
        (
            MultiCategory,
            "Parser key \"categories\":\n  Does not validate\n  Given value type: <class 'list'>\n  Given value: [1]",
            "categories of MultiCategory must be Sequence[str] or str or null, got [1] (write names that are numbers",
        ),
        (MultiCategory, "Option 'xyz' is not accepted", "MultiCategory has no argument xyz. It has "),
    ],
)
def test_parser_sentences(cls: type, problem: str, sentence: str) -> None:
    message = PROBLEM.format(f"{cls.__module__}.{cls.__qualname__}", problem.replace("\n", "\n      "))
    assert (parser_sentence(message) or "").startswith(sentence)


def test_parsers_of_others_speak_for_themselves(capsys) -> None:
    handler = ParserErrors()
    for message in (
        "Unrecognized arguments: --x",
        PROBLEM.format("anomalib.models.Padim", "Option 'x' is not accepted"),
    ):
        handler.emit(logging.LogRecord("", logging.ERROR, "", 0, message, (), None))
    assert capsys.readouterr().err == ""
