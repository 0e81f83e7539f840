"""Every refusal of the toolkit.

Each error carries its message in Japanese and English (name, value, rule, way out), the exit code of
sysexits(3) that the command line ends with, and is also the builtin exception a caller would expect.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_LOCALE_VARIABLES = ("AIFT_LANG", "LC_ALL", "LC_MESSAGES", "LANG")


def prefers_japanese() -> bool:
    """Whether messages are shown in Japanese: the first locale variable that is set decides."""
    chosen = next((os.environ[name] for name in _LOCALE_VARIABLES if os.environ.get(name)), "")
    return chosen.lower().startswith("ja")


def localized(ja: str, en: str) -> str:
    """The text for the user's locale."""
    return ja if prefers_japanese() else en


# Where a secret stands in a text: user and password of an address (pathlib leaves one slash of two), a token of the hub.
_USER_INFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+:/{1,2})[^\s/?#@]+@")
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
# Variables whose value is one (HF_TOKEN, WANDB_API_KEY, MLFLOW_TRACKING_PASSWORD); shorter ones are switches.
_SECRET_NAMES = re.compile(r"(?:^|_)(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)$", re.IGNORECASE)
_SHORTEST_SECRET = 8


def without_secrets(text: str) -> str:
    """A text for a message or a file, with `***` for passwords in addresses, hub tokens, and the values of environment
    variables that hold secrets.
    """
    text = _HUB_TOKEN.sub("***", _USER_INFO.sub(r"\1***@", text))
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_NAMES.search(name):
            text = text.replace(value, "***")
    return text


@dataclass(frozen=True)
class Reason:
    """A few words that become part of a message, in both languages; `str()` gives those of the user's locale."""

    ja: str
    en: str

    def __str__(self) -> str:
        return localized(self.ja, self.en)

    @staticmethod
    def joined(reasons: Sequence[Reason], between: str = "; ") -> Reason:
        """Several reasons as one."""
        return Reason(between.join(reason.ja for reason in reasons), between.join(reason.en for reason in reasons))


@dataclass(frozen=True)
class Problem(Reason):
    """What is wrong with one setting.

    Attributes:
        key: the setting's dotted name; empty for a rule between settings.
    """

    key: str = ""


class ToolkitError(Exception):
    """A refusal with its reason and the way out, in both languages; secrets are left out of it.

    Attributes:
        for_files: the same as a file may hold it, without text of a row.
    """

    exit_code = 70

    def __init__(self, ja: str, en: str, for_files: Reason | None = None) -> None:
        self.ja, self.en = without_secrets(ja), without_secrets(en)
        super().__init__(self.ja, self.en)
        self.for_files = for_files or Reason(self.ja, self.en)

    def __str__(self) -> str:
        return localized(self.ja, self.en)


class UsageError(ToolkitError, ValueError):
    """The command line cannot be understood (EX_USAGE)."""

    exit_code = 64


class DataError(ToolkitError, ValueError):
    """The data cannot be trained on as it is (EX_DATAERR)."""

    exit_code = 65


class InputNotFoundError(ToolkitError, FileNotFoundError):
    """A named file, folder or model is not there (EX_NOINPUT)."""

    exit_code = 66


class HubError(ToolkitError, ConnectionError):
    """The model hub does not answer or refuses (EX_UNAVAILABLE)."""

    exit_code = 69


class DivergedError(ToolkitError, ArithmeticError):
    """Losses or gradients stopped being finite (EX_SOFTWARE)."""

    exit_code = 70


class OutOfMemoryError(ToolkitError, MemoryError):
    """The smallest micro-batch, the optimizer's state or its update does not fit (EX_SOFTWARE)."""

    exit_code = 70


class StorageError(ToolkitError, OSError):
    """A file cannot be written or there is too little space (EX_IOERR)."""

    exit_code = 74


# What the system says of a path that nobody could have opened -> why, and the way out.
_BY_SYSTEM = {
    errno.ENAMETOOLONG: Reason(
        "名前が長すぎます（多くのディスクでは、/ で区切った 1 つが 255 バイトまで）。短い名前にしてください",
        "the name is too long (on most disks 255 bytes between two /); give a shorter one",
    ),
    errno.ELOOP: Reason(
        "リンクが輪になっています。リンク先を直してください",
        "its links lead round in a circle; mend where they lead to",
    ),
    errno.ENOTDIR: Reason(
        "途中のフォルダーの名前がファイルのものです。別の場所にしてください",
        "what should be a folder on the way is a file; give another place",
    ),
    errno.EACCES: Reason(
        "読み書きする権限がありません。権限を変えるか、別の場所にしてください",
        "you may not read or write it; change its permissions, or give another place",
    ),
}
_SHOWN_PATH = 120


def refused_by_system(error: BaseException) -> StorageError | None:
    """A refusal in words of what the system cannot open by its name; None for other errors."""
    if not isinstance(error, OSError) or isinstance(error, ToolkitError) or error.filename is None:
        return None
    reason = _BY_SYSTEM.get(error.errno or 0)
    if reason is None:
        return None
    path = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename)
    path = path if len(path) <= _SHOWN_PATH else path[: _SHOWN_PATH - 1] + "…"
    return StorageError(f"{path} を開けません: {reason.ja}。", f"cannot open {path}: {reason.en}.")


class RunLockedError(ToolkitError, BlockingIOError):
    """Another run holds the output folder (EX_TEMPFAIL)."""

    exit_code = 75


class PreemptedError(ToolkitError, InterruptedError):
    """The run was asked to stop and has saved its state (EX_TEMPFAIL)."""

    exit_code = 75


class ConfigError(ToolkitError, ValueError):
    """A setting has a value that it cannot have (EX_CONFIG).

    Attributes:
        problems: what is wrong, setting by setting; of a refusal that is about no setting alone, its own text.
    """

    exit_code = 78

    def __init__(self, ja: str, en: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(ja, en)
        self.problems = tuple(problems) or (Problem(ja, en),)

    @staticmethod
    def of(problems: Sequence[Problem]) -> ConfigError:
        """One refusal that names every problem."""
        if len(problems) == 1:
            return ConfigError(problems[0].ja, problems[0].en, problems)
        ja = "".join(f"\n  {problem.ja}" for problem in problems)
        en = "".join(f"\n  {problem.en}" for problem in problems)
        return ConfigError(
            f"設定に {len(problems)} 個の問題があります:{ja}",
            f"{len(problems)} problems with the settings:{en}",
            problems,
        )


class ModelError(ToolkitError, ValueError):
    """The model cannot do what was asked of it (EX_CONFIG)."""

    exit_code = 78


class ProcessesError(ToolkitError, RuntimeError):
    """A process of the run died or stood still (EX_SOFTWARE)."""

    exit_code = 70


class CheckpointError(ToolkitError, RuntimeError):
    """No checkpoint can be used for what was asked (EX_DATAERR)."""

    exit_code = 65


def reason_of(error: BaseException) -> str:
    """The first line of what a library said, cut; the name of the error where it said nothing."""
    return (str(error).strip().splitlines() or [""])[0][:200] or type(error).__name__


@contextlib.contextmanager
def refusing(kind: type[ToolkitError], ja: str, en: str) -> Iterator[None]:
    """Runs a library over what came from outside; whatever it raises means that this is damaged, and becomes a refusal.

    Readers of others (transformers, tokenizers, peft, safetensors, pyarrow, zipfile) raise some twenty kinds between them,
    bare `Exception` among them, and promise none. What the toolkit refuses by itself, and a machine without memory, are
    not of these.

    Args:
        kind: of the refusal.
        ja, en: its texts; `{reason}` becomes what the library said.

    Raises:
        ToolkitError: of that kind, in place of the library's error.
    """
    try:
        yield
    except (ToolkitError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
            raise
        reason = reason_of(error)
        raise kind(ja.replace("{reason}", reason), en.replace("{reason}", reason)) from error
