# SPDX-License-Identifier: Apache-2.0
"""How a mistake of a user ends a command: with one sentence, on anomalib's command line and on our own.

Imports neither torch nor anomalib.
"""

import atexit
import contextlib
import errno
import logging
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from anomalib_uniad.errors import UserError

# Environment variable that brings the traceback back.
TRACEBACK = "ANOMALIB_UNIAD_TRACEBACK"
_PACKAGE = __name__.partition(".")[0]
# Errors of the system that a user can mend: no room, no permission, a folder in the place of a file.
_DISK = {
    errno.ENOSPC,
    getattr(errno, "EDQUOT", errno.ENOSPC),
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
}
_OF_PATHS = {"anomalib.data.utils.path", "anomalib.data.utils.image"}  # look at paths of users, and say what is wrong
# What gloo, NCCL and torch's store say when a process of a training is gone.
_LOST = re.compile(
    r"(?is)(?=.*(?:gloo|nccl|TCPStore|client socket|DistNetworkError|DistBackendError))"
    r".*?(connection closed by peer|connection reset by peer|broken pipe|connection refused|remote process exited|"
    r"timed out|time ?out)"
)
_SECONDS_OF_RANK_ZERO = 5.0


def wants_traceback() -> bool:
    """Whether the user has asked for tracebacks of all errors, by ``ANOMALIB_UNIAD_TRACEBACK=1``."""
    return os.environ.get(TRACEBACK, "").lower() not in {"", "0", "false"}


def sentence_of(error: BaseException) -> str | None:
    """Find what to tell a user about an error.

    Args:
        error (BaseException): The error that has ended a command.

    Returns:
        str | None: The sentence of the ``UserError`` that it is, that it was raised from, that a worker process has
        raised, or that a parser has put into its own message; ``None`` if it is not about a mistake of the user.

    Examples:
        >>> sentence_of(UserError("There is no folder parts."))
        'There is no folder parts.'
        >>> sentence_of(ValueError("a fault of ours"))
    """
    cause: BaseException | None = error
    for _ in range(100):  # chains may have circles
        if cause is None:
            break
        sentence = _sentence_in_traceback(str(cause))
        if sentence is not None:
            return sentence
        if isinstance(cause, UserError):
            return str(cause)
        cause = cause.__cause__
    # jsonargparse puts the messages of all types that it has tried into one error, and drops the errors.
    if UserError.last is not None and _words(str(UserError.last)) in _words(str(error)):
        return str(UserError.last)
    return None


def disk_sentence_of(error: BaseException, traceback: TracebackType | None) -> str | None:
    """Find what to tell a user about a disk that is full or must not be written.

    Args:
        error (BaseException): The error that has ended a command.
        traceback (TracebackType | None): Where it was raised.

    Returns:
        str | None: A sentence; ``None`` if it is another error, or one of a command that has neither a model nor a
        datamodule of this package.
    """
    if not isinstance(error, OSError) or error.errno not in _DISK or not _is_ours(traceback):
        return None
    if error.errno == errno.EISDIR:
        return f"{error.filename} is a folder, where a file or link is to be written: rename or remove it."
    if error.errno in {errno.ENOTDIR, errno.EEXIST}:
        return f"There is a file in the way of the folder {error.filename}: choose another folder."
    if error.filename is None:
        return f"{error.strerror}: make room or choose other folders."
    return f"{error.filename}: {error.strerror}; change its permissions, make room, or choose another folder."


def path_sentence_of(error: BaseException, traceback: TracebackType | None) -> str | None:
    """Find what anomalib says about a path that it was given, such as that of images to predict.

    Args:
        error (BaseException): The error that has ended a command.
        traceback (TracebackType | None): Where it was raised.

    Returns:
        str | None: A sentence; ``None`` if it is another error, or one of a command that has neither a model nor a
        datamodule of this package.
    """
    if traceback is None or not isinstance(error, ValueError | OSError) or not _is_ours(traceback):
        return None
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback.tb_frame.f_globals.get("__name__") not in _OF_PATHS:
        return None
    return f"{error}".rstrip(".") + "."


def process_sentence_of(error: BaseException, traceback: TracebackType | None) -> str | None:
    """Find what to tell a user about a training of several processes that has lost one.

    Args:
        error (BaseException): The error that has ended a command.
        traceback (TracebackType | None): Where it was raised.

    Returns:
        str | None: A sentence; ``None`` if it is another error, or one of a command that has neither a model nor a
        datamodule of this package.
    """
    lost = _LOST.match(f"{type(error).__name__}: {error}") if isinstance(error, RuntimeError) else None
    if lost is None or not _is_ours(traceback):
        return None
    return (
        f"Another process of this training was killed or cannot be reached ({lost[1].lower()}): see what it has "
        "written and whether memory was short, then repeat the command with --ckpt_path and the resume.ckpt in "
        "weights/lightning of the run's folder."
    )


def install_excepthook() -> None:
    """Have mistakes of users end this process with their sentence; all other errors are left to the present hook."""
    previous = sys.excepthook
    if getattr(previous, "__module__", "") == __name__:
        return

    def excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        sentence = None
        if not wants_traceback():
            try:
                finders = (disk_sentence_of, path_sentence_of, process_sentence_of)
                found = (find(error, traceback) for find in finders)
                sentence = sentence_of(error) or next(filter(None, found), None)
            except Exception:  # whatever this is, the error itself has to be shown
                sentence = None
        if sentence is None:
            previous(kind, error, traceback)
        elif os.environ.get("LOCAL_RANK", "0") == "0":
            say(sentence)
            if "LOCAL_RANK" in os.environ:
                _tell_other_ranks()
        elif not _rank_zero_says_it():
            say(sentence)

    sys.excepthook = excepthook


def say(sentence: str) -> None:
    """Write a sentence to stderr, in a line of its own, after what is on stdout.

    Args:
        sentence (str): What is wrong.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if sys.stderr is not None:
        encoding = sys.stderr.encoding or "utf-8"
        text = f"error: {sentence}\n".encode(encoding, "backslashreplace").decode(encoding)
        sys.stderr.write(text)
        sys.stderr.flush()


class ParserErrors(logging.Handler):
    """Ends the process with one sentence where jsonargparse refuses an argument of a class of this package.

    Its parsers log each error before they print it, with the types and values of all that they have tried.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)

    def emit(self, record: logging.LogRecord) -> None:
        """Say what is wrong, if it is about a class of this package, and exit as the parser does."""
        try:
            sentence = None if wants_traceback() else parser_sentence(record.getMessage())
        except Exception:  # then the parser says it
            return
        if sentence is not None:
            say(sentence)
            sys.exit(2)


def install_parser_errors() -> None:
    """Have the parsers of this process end with a sentence where an argument of ours is wrong."""
    logger = logging.getLogger("jsonargparse_null_logger")  # that of parsers without one
    if not any(isinstance(handler, ParserErrors) for handler in logger.handlers):
        logger.addHandler(ParserErrors())


def parser_sentence(message: str) -> str | None:
    """Make a sentence of a message of jsonargparse about an argument of a class of this package.

    Args:
        message (str): The message, of many lines.

    Returns:
        str | None: The sentence; ``None`` if the message is about something else.
    """
    match = re.search(rf"Problem with given class_path '({_PACKAGE}\.[\w.]+)':\n(.*)", message, re.DOTALL)
    if match is None:
        return None
    module, _, name = match[1].rpartition(".")
    cls, problem = getattr(sys.modules[module], name), match[2].strip()
    arguments = get_type_hints(cls.__init__)
    arguments.pop("return", None)
    if unknown := re.match(r"Option '(\w+)' is not accepted", problem):
        import difflib

        near = difflib.get_close_matches(unknown[1], arguments, 1)
        hint = f"; did you mean {near[0]}?" if near else f". It has {', '.join(arguments)}."
        return f"{name} has no argument {unknown[1]}{hint}"
    if (wrong := re.match(r'Parser key "(\w+)":', problem)) is None or wrong[1] not in arguments:
        return None
    wanted = _in_words(arguments[wrong[1]])
    # The first value is the innermost one, such as an item of a list; the last one is the argument's, unless the class
    # with all of its arguments follows.
    got = re.findall(r"(?:Got value|Given value): (.*)", problem.partition("Given value type: <class 'jsonarg")[0])
    got = [value for value in got if not value.startswith("{'class_path': ")]
    quotes = got and re.search(r"\bstr\b", wanted) and re.search(r"\d", got[-1])
    hint = " (write names that are numbers in quotes: \"['01', '02']\")" if quotes else ""
    return f"{wrong[1]} of {name} must be {wanted}{f', got {got[-1]}' if got else ''}{hint}."


def _in_words(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(annotation)))}"
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(map(_in_words, get_args(annotation)))
    if annotation is type(None):
        return "null"
    text = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Za-z])", "", text).replace(" | ", " or ").replace("None", "null")


def _sentence_in_traceback(text: str) -> str | None:
    """The message of ours with which a text ends that has the traceback of another process in it."""
    found = list(re.finditer(rf"^{_PACKAGE}\.errors\.\w+: ", text, re.MULTILINE))
    if not found or "Traceback (most recent call last)" not in text[: found[-1].start()]:
        return None
    sentence = text[found[-1].end() :].strip()
    return None if "Traceback (most recent call last)" in sentence else sentence


def _words(text: str) -> str:
    return " ".join(text.split())


def _is_ours(traceback: TracebackType | None) -> bool:
    """Whether a model or datamodule of this package was at work."""
    while traceback is not None:
        frame = traceback.tb_frame
        local = [frame.f_locals.get(name) for name in ("self", "model", "datamodule")]
        modules = [frame.f_globals.get("__name__", ""), *(type(value).__module__ for value in local)]
        if any(module == _PACKAGE or module.startswith(f"{_PACKAGE}.") for module in modules):
            return True
        traceback = traceback.tb_next
    return False


def _rank_zero_says_it() -> bool:
    """Whether this is one of several processes, and the first one has said what is wrong.

    Lightning starts the others from the first one, which leaves a file to tell them, or has ended by then.
    """
    parent, start = os.getppid(), time.monotonic()
    file = _said(parent)
    while time.monotonic() - start < _SECONDS_OF_RANK_ZERO:
        if os.getppid() != parent:
            return True
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime < 60:  # not of an earlier process
                return True
        time.sleep(0.1)
    return False


def _tell_other_ranks() -> None:
    with contextlib.suppress(OSError):
        file = _said(os.getpid())
        file.touch()
        atexit.register(file.unlink, missing_ok=True)


def _said(process: int) -> Path:
    return Path(tempfile.gettempdir()) / f"anomalib-uniad-{process}.said"
