"""What the site has beside the pages in docs/: the front page, CONTRIBUTING and CHANGELOG, and programs shown in full.

Links of those files lead from the repository's root into docs/; here they lead from page to page.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the site, by the file of the repository that they are."""

LINK = re.compile(r"(\]\()([^)#\s]+)")
PROGRAM = re.compile(r"^\[[\w.]+\]\(([\w.]+\.py)\)$", re.M)
"""A line that is a link to a program beside the page, and nothing else."""

CODE = re.compile(r"<code>[^<\n]+</code>")
"""Code within a line of text."""

WORD = re.compile(r"(?<![^ >])[^ <>]{2,18}(?![^ <])")
"""A word of such code that is short enough to stay on one line of a narrow page."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the repository as pages."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Point links to files of the repository at their pages, and show each program below the line that links to it."""
    uri = page.file.src_uri
    at = next((source for source, name in PAGES.items() if name == uri), f"docs/{uri}")

    def site_link(match: re.Match[str]) -> str:
        target = match[2]
        if ":" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(at), target))
        there = PAGES.get(path, path.removeprefix("docs/"))
        return match[1] + posixpath.relpath(there, posixpath.dirname(uri) or ".")

    def program(match: re.Match[str]) -> str:
        text = (ROOT / at).with_name(match[1]).read_text(encoding="utf-8")
        return f"{match[0]}\n\n```python\n{text}```"

    return PROGRAM.sub(program, LINK.sub(site_link, markdown))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Keep the short words of code on one line each: browsers break at hyphens."""
    return CODE.sub(lambda code: WORD.sub(r'<span class="word">\g<0></span>', code[0]), html)
