"""Answers of a base and of its adapter, side by side, from a file with one question a line.

python examples/compare_before_after.py ADAPTER_DIR questions.txt
"""

from __future__ import annotations

import sys
from pathlib import Path

from ai_finetuning.inference.session import Chat, open_model

adapter, questions = sys.argv[1:3]
opened = open_model(adapter)
for question in Path(questions).read_text(encoding="utf-8").splitlines():
    without, with_it = Chat(opened).compare(question, max_new_tokens=60, do_sample=False)
    print(f"問: {question}\n  なし: {without}\n  あり: {with_it}")
