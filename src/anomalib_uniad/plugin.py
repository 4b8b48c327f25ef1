# SPDX-License-Identifier: Apache-2.0
"""How anomalib finds the models and datamodules of installed plugins, and how their users' mistakes end its command.

anomalib 2.7 reads no entry points: it knows a model once the module that defines it has been
imported. torch calls every entry point of the group ``torch.backends`` at the end of ``import torch``
(``torch._import_device_backends``); :func:`install` is one of them. All it does there is to put a
finder on ``sys.meta_path`` that waits for ``anomalib.models`` and ``anomalib.data``. Once one of them
has been imported, the entry points of the group of the same name are loaded and become attributes of it,
as if anomalib had shipped them. It also waits for anomalib's command line, which shows the traceback of each error, to
have mistakes of users end in one sentence (``messages.py``).

Nothing of torch or anomalib is imported here, and nothing here raises: a plugin that cannot be loaded
is reported as a warning. anomalib's ``ALLOWED_MODULES`` is a security list and stays as it is.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

# Module to wait for -> its last import. When torch is first imported by anomalib itself, the module is half executed by
# the time that ``install`` runs, and its own loader can no longer be wrapped: the end of its last import is then the
# signal. Groups of entry points have the names of the modules that receive them.
GROUPS = {"anomalib.models": "anomalib.models.video", "anomalib.data": "anomalib.data.predict"}
COMMAND_LINE = {"anomalib.cli.cli": "lightning.pytorch.cli"}  # imported when the parser is made


def install() -> None:
    """Wait for anomalib's packages, then load the plugins.

    Called at the end of ``import torch``; calling it again changes nothing.
    """
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    waiting: dict[str, Callable[[], None]] = {}
    for module, last_import in {**GROUPS, **COMMAND_LINE}.items():
        action = partial(load_entry_points, module) if module in GROUPS else end_in_sentences
        if module not in sys.modules:
            waiting[module] = action
        elif last_import not in sys.modules:
            waiting[last_import] = action
        else:
            action()
    if waiting:
        sys.meta_path.insert(0, _Finder(waiting))


def load_entry_points(group: str) -> None:
    """Load the entry points of a group and put them on the module of the same name.

    A name that the module already has is left alone: then anomalib has read the group itself, or
    ships a class of that name.

    Args:
        group (str): ``"anomalib.models"`` or ``"anomalib.data"``.
    """
    from importlib.metadata import entry_points

    host = sys.modules[group]
    for entry_point in entry_points(group=group):
        if hasattr(host, entry_point.name):
            continue
        try:
            setattr(host, entry_point.name, entry_point.load())
        except (Exception, SystemExit) as error:  # a broken plugin must not break anomalib
            _warn(
                f"The plugin {entry_point.value!r} (entry point {entry_point.name!r} of {group!r}) could not "
                f"be loaded and is left out: {type(error).__name__}: {error}"
            )


def end_in_sentences() -> None:
    """Have mistakes of users end anomalib's command with one sentence."""
    try:
        from anomalib_uniad import messages

        messages.install_excepthook()
        messages.install_parser_errors()
    except Exception as error:  # anomalib's command works without
        _warn(f"Errors of anomalib-uniad are shown with their tracebacks: {type(error).__name__}: {error}")


def _warn(message: str) -> None:
    import logging
    import warnings

    try:
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    except RuntimeWarning:  # warnings are errors here, but this one must not stop anomalib's import
        logging.getLogger(__name__).warning(message)


class _Finder:
    """Wraps the loaders of the watched modules, to be notified when these are executed."""

    def __init__(self, waiting: dict[str, Callable[[], None]]) -> None:
        self.waiting = waiting
        self.searching: set[str] = set()  # asked for by another finder that asks all finders, as this one does

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.waiting or fullname in self.searching:
            return None
        self.searching.add(fullname)
        try:
            for finder in [*sys.meta_path]:
                find_spec = getattr(finder, "find_spec", None)
                spec = find_spec(fullname, path, target) if find_spec and finder is not self else None
                if spec is not None:
                    if spec.loader is not None:
                        spec.loader = _Loader(spec.loader, self)
                    return spec
        finally:
            self.searching.discard(fullname)
        return None

    def done(self, fullname: str) -> None:
        """Do what waited for a module; after the last one, leave."""
        action = self.waiting.pop(fullname, None)
        if not self.waiting and self in sys.meta_path:
            sys.meta_path.remove(self)
        if action is not None:
            action()


class _Loader:
    """Wraps the real loader, and notifies the finder once the module is executed."""

    def __init__(self, loader: Any, finder: _Finder) -> None:
        self.loader = loader
        self.finder = finder

    def __getattr__(self, name: str) -> Any:  # get_source, get_resource_reader, ... of the real loader
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self.loader  # leave no trace of the detour
        self.loader.exec_module(module)
        self.finder.done(module.__name__)
