"""一括回答: a file of questions to one of answers, by `aift answer` as a job that nobody owns."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from ....errors import ConfigError, DataError, UsageError
from ....system.files import write_in_place
from .. import job_routes, uploads
from ..api import answer, blocking, body, text
from ..followed import Followed
from ..site import Site, language_of, site_of
from ..tickets import ticket
from .chosen import choices, chosen

if TYPE_CHECKING:
    from ....inference.question_files import Questions
    from ....runs.jobs import Job

KIND = job_routes.ANSWERS
_QUESTIONS = "questions.jsonl"
_ANSWER = ("回答", "モデルの回答")
_TABLES = (".csv", ".tsv")
# What a job is that has ended before all was answered.
_ENDED = ("stopped", "failed")
# Rows of a page, and answers after which a time is estimated.
_PAGE, _ENOUGH = 100, 4
_SHOWN = ("all", "match", "differ", "without")
# Bytes of a file of questions, which the server itself reads whole, and jobs that it remembers.
_MOST, _REMEMBERED = 20_000_000, 8


async def _choices(request: Request) -> JSONResponse:
    from ....inference.question_files import KINDS

    site = site_of(request)
    files = [
        {"id": one.id, "shown": one.shown}
        for one in await blocking(uploads.list_uploads, site)
        if one.file.suffix.lower() in KINDS
    ]
    found = await blocking(choices, site)
    return answer({"files": files, "choices": [one.plain() for one in found]})


async def _columns(request: Request) -> JSONResponse:
    """What is known of a file: its columns, and those that ask and that hold the expected answers, where that is clear."""
    file = request.query_params.get("file", "")
    return answer(await blocking(_known, site_of(request), file, language_of(request)))


def _known(site: Site, file: str, language: str) -> dict[str, Any]:
    from ....data.columns import role_of
    from ..asked import headings_of

    upload = _small(site, file)
    with _as_shown(upload):
        names = headings_of(upload.file, language, sheet=upload.sheet)
    given = upload.columns or {}
    asking = [name for name in names if role_of(name) == ("instruction", False)]
    column = given.get("instruction") or (asking[0] if len(asking) == 1 else None)
    return {"columns": names, "column": column, "expected": _expecting(names, given, column), "sheet": upload.sheet}


def _small(site: Site, file: str) -> uploads.Upload:
    """The upload of an id.

    Raises:
        InputNotFoundError: there is none. UsageError: it is too large for this page.
    """
    upload = uploads.find(site, file)
    if upload.file.stat().st_size > _MOST:
        most = _MOST // 1_000_000
        raise UsageError(
            f"この画面で使えるのは {most} MB までです。{upload.shown} には aift answer を使ってください。",
            f"this page takes files of at most {most} MB; use aift answer for {upload.shown}.",
        )
    return upload


@contextlib.contextmanager
def _as_shown(upload: uploads.Upload) -> Iterator[None]:
    """Refusals call a file what people call it."""
    try:
        yield
    except (DataError, ConfigError) as error:
        place = str(upload.file)
        raise type(error)(error.ja.replace(place, upload.shown), error.en.replace(place, upload.shown)) from error


def _expecting(names: list[str], given: Mapping[str, str], column: str | None) -> str | None:
    """The heading of the expected answers; None where none is, or several may be, of that meaning."""
    from ....data.columns import role_of

    if given.get("output") in names:
        return given["output"]
    for certain in (False, True):
        found = [name for name in names if role_of(name) == ("output", certain) and name != column]
        if found:
            return found[0] if len(found) == 1 else None
    return None


async def _start(request: Request) -> JSONResponse:
    values = await body(request)
    job = await blocking(_begin, site_of(request), values, language_of(request))
    return answer({"id": job.id})


def _begin(site: Site, values: Mapping[str, Any], language: str) -> Job:
    """Reads the questions and starts the job.

    Raises:
        ToolkitError: there is no such file, column or model; a setting that cannot be.
    """
    from ....models.sampling import validate_sampling
    from ....runs import jobs
    from ..asked import read_questions

    given = dict(values)
    upload = _small(site, text(given, "file"))
    choice = chosen(site, given)
    column = text(given, "column", "") or (upload.columns or {}).get("instruction")
    with _as_shown(upload):
        asked = read_questions(upload.file, language, column=column, sheet=upload.sheet)
    tokens, greedy = given.get("max_new_tokens", 512), given.get("greedy", True)
    validate_sampling(max_new_tokens=tokens)
    if greedy not in (True, False):
        raise UsageError("greedy は true か false です。", "greedy is true or false.")
    expected = _expecting(asked.headings, upload.columns or {}, asked.column)
    heading = _free_heading(asked)
    folder = jobs.new_folder(site.data, KIND)
    rows = _write_questions(folder / _QUESTIONS, asked, expected)
    out = folder / f"answers{asked.kind}"
    argv = ["answer", choice.name, str(upload.file), "--out", str(out), "--column", asked.column]
    argv += ["--answer-column", heading, "--max-new-tokens", str(tokens)]
    argv += ["--sheet", asked.sheet] if asked.sheet is not None else []
    argv += ["--greedy"] if greedy else []
    system = given.get("system")
    if system is not None and text(given, "system", most=200_000) != (choice.system or ""):
        argv += ["--system", str(system)]
    about = {
        "file": upload.id,
        "shown": upload.shown,
        "of": {"by": choice.by, "id": choice.id, "label": choice.label},
        "out": out.name,
        "column": asked.column,
        "sheet": asked.sheet,
        "answer_column": heading,
        "expected": expected,
        "total": rows,
        "greedy": greedy,
    }
    # 65: some questions were too long, and the others are answered.
    return jobs.start(folder, [jobs.Step(tuple(argv), (65,))], about, language)


def _free_heading(asked: Questions) -> str:
    """The heading of the answers: one that the file has not, or whose column is empty."""
    from ....data.columns import plain

    for number in range(1, 100):
        for name in _ANSWER if number == 1 else (f"{_ANSWER[-1]} {number}",):
            same = [there for there in asked.headings if plain(there) == plain(name)]
            if not any(asked.filled(there) for there in same):
                return name
    raise UsageError("回答の列の名前がどれも使われています。", "every name of a column for the answers is taken.")


def _write_questions(path: Path, asked: Questions, expected: str | None) -> int:
    """Writes what the table shows of each question; returns how many there are that ask something."""
    lines = []
    for place, item in enumerate(asked.questions):
        line: dict[str, Any] = {"number": item.number, "question": item.text}
        if expected is not None:
            cell = asked.values(place).get(expected)
            cells = cell if isinstance(cell, list) else [cell]
            texts = [str(one) for one in cells if isinstance(one, str | int | float) and str(one).strip()]
            line |= {"expected": texts} if texts else {}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_in_place(path, "".join(lines).encode("utf-8", "backslashreplace"))
    return sum(bool(item.text) for item in asked.questions)


async def _list(request: Request) -> JSONResponse:
    return answer(await blocking(job_routes.newest, site_of(request), KIND, _told))


def _told(job: Job) -> dict[str, Any]:
    told = {
        "id": job.id,
        "status": job.state.status,
        "reason": job.state.reason,
        "made": job.made,
        "about": dict(job.about),
    }
    return told | {"commands": job.commands, "partly": 65 in job.codes}


async def _one(request: Request) -> JSONResponse:
    return answer(await blocking(_progress, request))


def _progress(request: Request) -> dict[str, Any]:
    from ....runs import jobs

    job = job_routes.job_of(request, KIND)
    with _follow(request, job) as followed:
        return (
            _told(job)
            | _counted(job, followed)
            | {"log": jobs.last_said(job.folder)[-20:] if job.state.status in ("failed", "stopped") else []}
        )


def _counted(job: Job, followed: Followed) -> dict[str, Any]:
    """How far a job has come, and how near its answers are."""
    done, total = sum(value is not None for value in followed.answers.values()), int(job.about["total"])
    now = time.monotonic()
    if job.state.status != "running" or followed.began[1] < 0 or done < followed.began[1]:
        followed.began = (now, done)
    more, left = done - followed.began[1], None
    if job.state.status == "running" and more >= _ENOUGH and done < total:
        left = (now - followed.began[0]) / more * (total - done)
    return {
        "done": done,
        "total": total,
        "refused": sum(value is None for value in followed.answers.values()),
        "seconds_left": left,
        "score": _score(followed),
    }


@contextlib.contextmanager
def _follow(request: Request, job: Job) -> Iterator[Followed]:
    """The questions of a job with its answers so far, which nobody else changes meanwhile."""
    followed = _remembered(request, job)
    with followed.lock:
        _update(job, followed)
        yield followed


def _remembered(request: Request, job: Job) -> Followed:
    """What is remembered of a job; of those that were looked at longest ago nothing is."""
    site = site_of(request)
    with site.following:
        known = site.followed
        followed = known.pop(job.id, None)
        if followed is None:
            lines = (job.folder / _QUESTIONS).read_text(encoding="utf-8").splitlines()
            followed = Followed([json.loads(line) for line in lines])
        known[job.id] = followed
        for old in list(known)[:-_REMEMBERED]:
            del known[old]
        return followed


def _update(job: Job, followed: Followed) -> None:
    """Reads the answers that are new."""
    out = job.folder / str(job.about["out"])
    partial = out.with_name(f"{out.name}.partial.jsonl")
    source = out if job.state.status == "completed" else partial
    if source.is_file():
        facts = source.stat()
        seen = (source.name, facts.st_size, facts.st_mtime_ns)
        if seen != followed.seen:
            read = _of_result if source == out else _of_partial
            followed.answers, followed.seen = read(source, job, followed.questions), seen
            followed.compare()


def _of_partial(path: Path, job: Job, questions: list[dict[str, Any]]) -> dict[int, str | None]:
    """The answers of a job that is at work; the last line may be half written."""
    found: dict[int, str | None] = {}
    for line in path.read_bytes().split(b"\n")[:-1]:
        values = json.loads(line)
        if "question" in values:
            found[int(values["question"])] = None if values.get("refused") else str(values["answers"][0])
    return found


def _of_result(path: Path, job: Job, questions: list[dict[str, Any]]) -> dict[int, str | None]:
    """The answers of a file that is written."""
    from ....data.columns import plain
    from ....inference.answer_files import with_formulas
    from ..asked import read_questions

    about = job.about
    read = read_questions(path, "ja", column=about["column"], sheet=about["sheet"])
    same = [name for name in read.headings if plain(name) == plain(str(about["answer_column"]))]
    table = path.suffix in _TABLES
    found: dict[int, str | None] = {}
    for place, item in enumerate(questions[: len(read.questions)]):
        cell = str(read.values(place).get(same[0]) or "") if same else ""
        if item["question"] and (cell or 65 not in job.codes):
            found[place] = with_formulas(cell) if table else cell
        elif item["question"]:
            found[place] = None
    return found


def _score(followed: Followed) -> dict[str, Any] | None:
    """How near the answers are to the expected ones; None where there are none, or no answers yet."""
    measured = [scores for _, scores in followed.measured.values()]
    if not measured:
        return None
    means = {name: sum(scores[name] for scores in measured) / len(measured) for name in measured[0]}
    return {"judged": len(measured), "right": sum(scores["exact"] == 1.0 for scores in measured), "means": means}


async def _rows(request: Request) -> JSONResponse:
    """A page of the table: `?page=0&show=all|match|differ|without&find=TEXT`."""
    return answer(await blocking(_page, request))


def _page(request: Request) -> dict[str, Any]:
    asked = request.query_params
    show, find = asked.get("show", "all"), asked.get("find", "").strip().lower()
    page = int(asked["page"]) if asked.get("page", "").isdecimal() else 0
    if show not in _SHOWN:
        raise UsageError(f"show は {'・'.join(_SHOWN)} です。", f"show is one of {', '.join(_SHOWN)}.")
    with _follow(request, job_routes.job_of(request, KIND)) as followed:
        rows = _matching(followed, show, find)
    return {"total": len(rows), "rows": rows[page * _PAGE : (page + 1) * _PAGE]}


def _matching(followed: Followed, show: str, find: str) -> list[list[Any]]:
    """The rows of the table that a filter and a text leave."""
    rows = []
    for place, item in enumerate(followed.questions):
        told = followed.answers.get(place)
        mark = _mark(followed, place)
        found = not find or find in item["question"].lower() or find in (told or "").lower()
        if found and (show == "all" or mark == show or (show == "without" and mark in ("refused", "open", "empty"))):
            rows.append([item["number"], item["question"], item.get("expected", []), told, mark])
    return rows


def _mark(followed: Followed, place: int) -> str:
    """What is to be said of an answer: match, differ, done; or why there is none: open, empty, refused."""
    if followed.answers.get(place) is None:
        asked = place in followed.answers
        return "refused" if asked else "open" if followed.questions[place]["question"] else "empty"
    if place not in followed.measured:
        return "done"
    return "match" if followed.measured[place][1]["exact"] == 1.0 else "differ"


async def _download(request: Request) -> JSONResponse:
    """The address of the file with its answers; of a CSV, for a spreadsheet program, without formulas."""
    values = await body(request)
    job = await blocking(job_routes.job_of, request, KIND)
    out, mark = job.folder / str(job.about["out"]), ""
    if job.state.status != "completed":
        if job.state.status not in _ENDED:
            raise UsageError(
                "回答が終わるか、止めてから保存できます。", "it can be saved once all is answered, or it has stopped."
            )
        out, mark = await blocking(_so_far, request, job)
    if values.get("spreadsheet") and out.suffix in _TABLES:
        out = await blocking(_for_spreadsheets, out, str(job.about["column"]))
    shown = Path(str(job.about["shown"]))
    return answer({"address": ticket(request, out, f"{shown.stem}-{_ANSWER[0]}{mark}{out.suffix}")})


def _so_far(request: Request, job: Job) -> tuple[Path, str]:
    """The questions with the answers that there are, the cells of the others empty; and what its name says of that.

    Raises:
        UsageError: there is no answer yet, or the questions are others now. InputNotFoundError: they are gone.
    """
    from ....inference.answer_files import write_answers
    from ....inference.question_files import read_questions

    about = job.about
    with _follow(request, job) as followed:
        asked, answers = list(followed.questions), dict(followed.answers)
    count = sum(told is not None for told in answers.values())
    if not count:
        raise UsageError("まだ回答がありません。", "there is no answer yet.")
    upload = _small(site_of(request), str(about["file"]))
    with _as_shown(upload):
        questions = read_questions(upload.file, column=str(about["column"]), sheet=about["sheet"])
    if [item.text for item in questions.questions] != [item["question"] for item in asked]:
        raise UsageError(
            f"{upload.shown} の質問が、始めたときから変わっています。",
            f"the questions of {upload.shown} are not those that were asked.",
        )
    out = job.folder / f"so-far{questions.kind}"
    texts = [[answers.get(place) or ""] for place in range(len(asked))]
    write_answers(out, questions.kind, questions, [str(about["answer_column"])], texts)
    return out, f"-途中（{about['total']}件中{count}件）"


def _for_spreadsheets(out: Path, column: str) -> Path:
    from ....inference.answer_files import without_formulas
    from ....inference.question_files import read_questions

    copy = out.with_name(f"spreadsheet{out.suffix}")
    write_in_place(copy, without_formulas(read_questions(out, column=column)))
    return copy


ROUTES = [
    Route("/api/answers/choices", _choices),
    Route("/api/answers/columns", _columns),
    Route("/api/answers", _start, methods=["POST"]),
    Route("/api/answers", _list),
    Route("/api/answers/{id}", _one),
    Route("/api/answers/{id}/rows", _rows),
    *job_routes.routes(KIND, _told),
    Route("/api/answers/{id}/download", _download, methods=["POST"]),
]
