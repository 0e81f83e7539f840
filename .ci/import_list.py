"""The list of public run files in docs/import.md: which of them `aift import` takes, and which keys rule the others out.

    python .ci/import_list.py FOLDER            # prints it; FOLDER holds llamafactory/ and axolotl/
    python .ci/import_list.py FOLDER --write    # writes it between the marks of docs/import.md

The files themselves are no part of the repository (AIFT_SHARED/data/recipes).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from ai_finetuning.config.foreign.convert import convert
from ai_finetuning.config.foreign.draft import Verdict
from ai_finetuning.errors import ConfigError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "import.md"
START, END = "<!-- list: python .ci/import_list.py -->", "<!-- end of list -->"
TOOLS = (("llamafactory", "LLaMA-Factory"), ("axolotl", "Axolotl"))
# Whole files that are no run files, by a word of what the refusal calls them.
KINDS = ("DeepSpeed", "dataset_info.json", "Accelerate")


def scope(path: Path) -> str:
    """`in`, or the keys that rule a file out."""
    try:
        conversion = convert(path)
    except ConfigError as error:
        return next((f"a {kind} file" for kind in KINDS if kind in error.en), error.en)
    refused = [f"`{entry.key}`" for entry in conversion.of(Verdict.REFUSED)]
    return ", ".join(refused) if refused else "in"


def listing(folder: Path) -> str:
    """One table for each tool: the path of each file in its repository's examples/, and its scope."""
    parts = []
    for name, label in TOOLS:
        rows = []
        for path in sorted((folder / name).iterdir()):
            shown = path.name.replace("__", "/")
            rows.append((shown, scope(path)))
        taken = sum(1 for _, answer in rows if answer == "in")
        parts.append(
            f"### {label}: {taken} of {len(rows)} in scope\n\n| examples/ | scope, or the keys that decide |\n|---|---|"
        )
        parts[-1] += "".join(f"\n| {shown} | {answer} |" for shown, answer in rows)
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str]) -> None:
    """Prints the list, or writes it into the page."""
    text = listing(Path(arguments[0]))
    if "--write" not in arguments:
        print(text, end="")
        return
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(START)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{START}\n\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
