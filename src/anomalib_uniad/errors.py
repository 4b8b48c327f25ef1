# SPDX-License-Identifier: Apache-2.0
"""Errors whose message tells a user what is wrong and what to do.

Each is a kind of the built-in error that fits, so callers may catch that. Imports neither torch nor anomalib.
"""

from typing import Any, ClassVar


class UserError(Exception):
    """Mistake of a user, or a state of the machine that a user can change: one sentence, no traceback needed.

    Attributes:
        last (UserError | None): The one that was made last; parsers of arguments drop it from the chain of causes.
    """

    last: ClassVar["UserError | None"] = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        UserError.last = self


class InputError(UserError, ValueError):
    """A value that cannot be right, or a file whose content cannot."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that is not there."""


class ExistingFileError(UserError, FileExistsError):
    """A file or folder that is there already, and must not be replaced."""


class DiskError(UserError, OSError):
    """A file that cannot be written or read: no room, no permission."""


class NoConnectionError(UserError, ConnectionError):
    """A server that cannot be reached."""


class MissingPackageError(UserError, ModuleNotFoundError):
    """An optional package that is not installed."""
