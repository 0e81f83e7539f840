"""aift version, aift --version"""

from __future__ import annotations

import typer

from ...errors import localized

_LIBRARIES = ("torch", "transformers", "peft")


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("version", help=localized("バージョンを表示します。", "Shows the versions."))(version)


def version() -> None:
    """This toolkit, Python and the libraries that matter, without importing them."""
    import platform
    from importlib import metadata

    from ... import __version__

    print(f"ai-finetuning-toolkit {__version__}")
    print(f"python {platform.python_version()}")
    for name in _LIBRARIES:
        try:
            print(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(localized(f"{name} がありません", f"{name} is not installed"))
