"""Makes the documented import paths (`from src.models.japanese_model import JapaneseModel`) work in a clone.

Only for clones: the wheel holds `ai_finetuning` alone. The folder is appended to sys.path, and only where the
package is not installed: put first, `src/models` could shadow a user's own `models.py`.
"""

import importlib.util
import pathlib
import sys

if importlib.util.find_spec("ai_finetuning") is None:
    sys.path.append(str(pathlib.Path(__file__).resolve().parent))
