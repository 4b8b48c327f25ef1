# SPDX-License-Identifier: Apache-2.0
"""Pages of html from templates; for all rooms, no torch."""

from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def render(room: str, template: str, **values: Any) -> str:
    """Render a template of a room, which may include the style of reports.

    Args:
        room (str): The room, such as ``"check"``.
        template (str): Name of the file in it.
        **values (Any): What it shows; text is escaped.

    Returns:
        str: The page.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(f"anomalib_uniad.{name}", ".") for name in dict.fromkeys((room, "report"))]),
        autoescape=True,  # names may be anything
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
