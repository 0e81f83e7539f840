"""What the wheel's metadata says that depends on the repository's public address.

The address stands once, as `repository` of [tool.hatch.metadata.hooks.custom] in pyproject.toml. While it is empty,
the metadata has no URLs and the README keeps its relative links; once it is set, project.urls and absolute links (a
package index resolves no relative ones) follow from it. tests/architecture/test_packaging.py builds both.
"""

from __future__ import annotations

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

README = "README.md"
_LINK = re.compile(r"(!?)(\[[^\]]*\])\((?![a-z][a-z+.-]*:|#|/)([^)\s]+)\)")


def absolute(text: str, repository: str) -> str:
    """Markdown with relative links turned into links to the main branch of a repository; unchanged without one."""
    if not repository:
        return text

    def link(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        return f"{image}{label}({repository.rstrip('/')}/{'raw' if image else 'blob'}/main/{target})"

    return _LINK.sub(link, text)


def urls(repository: str) -> dict[str, str]:
    """project.urls; none without an address."""
    if not repository:
        return {}
    base = repository.rstrip("/")
    return {
        "Repository": base,
        "Documentation": f"{base}/blob/main/docs",
        "Issues": f"{base}/issues",
        "Changelog": f"{base}/blob/main/CHANGELOG.md",
    }


class MetadataHook(MetadataHookInterface):
    """Called by hatchling for every build, editable installs too."""

    def update(self, metadata: dict) -> None:
        repository = str(self.config.get("repository", ""))
        text = (Path(self.root) / README).read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, repository)}
        if repository:
            metadata["urls"] = urls(repository)
