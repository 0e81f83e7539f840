"""One question to the hub, bounded in time: whether something is there; and where the user's token may go."""

from __future__ import annotations

import base64
import os
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass

from ..errors import Reason

LIMIT_SECONDS = 5.0
_ASKS_WHO = (401, 403)
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_TRUE = {"1", "ON", "YES", "TRUE"}


@dataclass
class Answer:
    """Status and X-Error-Code of an answer; status None and the reason where there was none."""

    status: int | None = None
    code: str = ""
    reason: Reason = Reason("", "")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect proves that the file is there; following it would carry the token to another host."""

    def redirect_request(self, *args: object, **kwargs: object) -> None:
        return None


def offline() -> bool:
    """Whether the user switched the hub off (HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE)."""
    return any(os.environ.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def endpoint() -> str:
    """Address of the hub: HF_ENDPOINT, or the public one."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def carries_tokens(url: str) -> bool:
    """Whether a token stays secret on the way to an address: by https, or on this machine."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme == "https" or (parts.hostname or "") in _LOOPBACK


def withhold_tokens() -> None:
    """Keeps huggingface_hub from sending the user's token by itself, in this process and those that it starts."""
    from huggingface_hub import constants

    os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
    constants.HF_HUB_DISABLE_IMPLICIT_TOKEN = True


def head(url: str, limit_seconds: float = LIMIT_SECONDS) -> Answer:
    """The answer to HEAD, within the limit.

    The user's hub token goes along only where the hub asks for it (401 or 403), never to another host, and never
    unencrypted over a network.
    """
    from huggingface_hub import get_token

    # Outside the thread: on a busy machine this import alone can take longer than the limit.
    token = get_token() if carries_tokens(url) else None
    answer = Answer(reason=Reason(f"{limit_seconds:g} 秒以内に応答なし", f"no answer within {limit_seconds:g} s"))
    # A thread, because a socket's time-out bounds neither the name look-up nor an answer that trickles in.
    asker = threading.Thread(target=_ask, args=(url, token, limit_seconds, answer), daemon=True)
    asker.start()
    asker.join(limit_seconds)
    return answer


def _ask(url: str, token: str | None, limit_seconds: float, answer: Answer) -> None:
    obtained = _asked(url, None, limit_seconds)
    if obtained.status in _ASKS_WHO and token:
        obtained = _asked(url, token, limit_seconds)
    # In this order: whoever waits looks at the status last.
    answer.code, answer.reason, answer.status = obtained.code, obtained.reason, obtained.status


def _reason(error: object) -> Reason:
    """Why a connection failed, in words."""
    for kind, ja, en in (
        (socket.gaierror, "名前を解決できません（オフライン？）", "its name cannot be resolved (offline?)"),
        (ConnectionRefusedError, "接続を拒否されました", "connection refused"),
        (TimeoutError, "時間内に応答がありません", "no answer in time"),
    ):
        if isinstance(error, kind):
            return Reason(ja, en)
    return Reason(str(error), str(error))


def _asked(url: str, token: str | None, limit_seconds: float) -> Answer:
    answer = Answer()
    # urllib takes the user and password of an address for a part of the host's name.
    parts = urllib.parse.urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    url = parts._replace(netloc=host).geturl()
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "ai-finetuning-toolkit"})
    if user:
        basic = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {basic}")
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=limit_seconds) as response:
            answer.status = response.status
    except urllib.error.HTTPError as error:
        answer.code, answer.status = error.headers.get("X-Error-Code", ""), error.code
    except (OSError, ValueError) as error:
        answer.reason = _reason(getattr(error, "reason", error))
    return answer
