# SPDX-License-Identifier: Apache-2.0
"""Links from docs/ to other files of the repository: they work on GitHub as they stand, and here on the site.

Pictures in results/ become part of the site; everything else is a link to the repository.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(((?:\.\./)+)([^)#]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pictures of results/ to the site."""
    for picture in sorted((ROOT / "results").glob("*.png")):
        files.append(File.generated(config, f"results/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Rewrite the links of a page that lead out of docs/."""
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def rewrite(link: re.Match) -> str:
        up, path, anchor = link.groups()
        target = posixpath.normpath(posixpath.join(folder, up, path))
        if target.startswith("docs/"):
            return link[0]
        if target.startswith("results/") and target.endswith(".png"):
            return f"]({posixpath.relpath(f'docs/{target}', folder)})"
        return f"]({config.repo_url.rstrip('/')}/blob/main/{target}{anchor or ''})"

    return LINK.sub(rewrite, markdown)
