"""Pages of the site that are files of the repository itself: the front page, CONTRIBUTING and CHANGELOG.

Their links lead from the repository's root into docs/; here they lead from page to page.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the site, by the file of the repository that they are."""

LINK = re.compile(r"(\]\()([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the repository as pages."""
    root = Path(config.config_file_path).parent
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(root / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Point links to files of the repository at their pages."""
    uri = page.file.src_uri
    at = next((source for source, name in PAGES.items() if name == uri), f"docs/{uri}")

    def site_link(match: re.Match[str]) -> str:
        target = match[2]
        if ":" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(at), target))
        there = PAGES.get(path, path.removeprefix("docs/"))
        return match[1] + posixpath.relpath(there, posixpath.dirname(uri) or ".")

    return LINK.sub(site_link, markdown)
