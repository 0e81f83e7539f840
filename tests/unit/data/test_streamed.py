"""Rows that are read while they are trained: their order, where a run goes on, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from tests.support.models import build_tokenizer

from ai_finetuning.config.data import DataConfig
from ai_finetuning.data.bad_rows import BadRows
from ai_finetuning.data.encoding import UNREADABLE, find_first_encoding
from ai_finetuning.data.files import open_data
from ai_finetuning.data.pieces import Account, PieceMaker
from ai_finetuning.data.prepare import load_examples, prepare
from ai_finetuning.data.streamed import Piece, RowStream
from ai_finetuning.data.streamed_loader import UNKNOWN, StreamedLoader
from ai_finetuning.errors import DataError, ModelError

# A column that nobody learns: four rows of it fill a piece of a million characters.
FILLS = "x" * 2**18
LENGTH = 64


def row(number: int, fill: str = FILLS) -> dict[str, Any]:
    return {"instruction": f"{number}の次は？", "output": f"{number + 1}です。", "note": fill}


def write(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tiny_tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """26 rows in two files, in seven pieces."""
    folder = tmp_path_factory.mktemp("streamed")
    return [write(folder / "a.jsonl", map(row, range(15))), write(folder / "b.jsonl", map(row, range(15, 26)))]


def config(**changes: Any) -> DataConfig:
    return DataConfig(max_length=LENGTH, streaming=True, **changes)


def loader_of(paths: list[Path], tokenizer: Any, rows_per_step: int = 4, **changes: Any) -> StreamedLoader:
    stream = RowStream([str(path) for path in paths], tokenizer, config(**changes))
    return StreamedLoader(stream, rows_per_step=rows_per_step, pad_token_id=tokenizer.pad_token_id)


def tokens(batches: Iterable[Any]) -> list[list[int]]:
    """The rows of some batches, without padding, and without those that teach nothing."""
    return [
        ids[mask.bool()].tolist()
        for batch in batches
        for ids, mask, labels in zip(batch.input_ids, batch.attention_mask, batch.labels, strict=True)
        if (labels != -100).any()
    ]


def passed(loader: StreamedLoader, epoch: int = 0) -> list[list[int]]:
    """All rows of a pass, in order."""
    rows: list[list[int]] = []
    index = 0
    while index < loader.steps(epoch):
        rows += tokens(loader.micro_batches(epoch, index, 2))
        index += 1
    return rows


def test_rows_are_those_of_prepared_data_in_the_order_of_the_files(files: list[Path], tiny_tokenizer: Any):
    loader = loader_of(files, tiny_tokenizer)
    assert loader.steps(0) == UNKNOWN
    examples, _, _ = load_examples(files, tiny_tokenizer, DataConfig(max_length=LENGTH, cache=False))
    expected = [item.input_ids.tolist() for item in examples]
    assert passed(loader) == expected
    assert loader.steps(0) == loader.steps(1) == 7  # of 26 rows the last step has two
    assert passed(loader, 1) == expected


def test_a_micro_batch_of_another_size_has_the_same_rows(files: list[Path], tiny_tokenizer: Any):
    loader = loader_of(files, tiny_tokenizer)
    for index in (0, 1):
        whole, halves = (tokens(loader.micro_batches(0, index, size)) for size in (4, 1))
        assert whole == halves
    assert tokens(loader.micro_batches(0, 0, 4)) == tokens(loader_of(files, tiny_tokenizer).micro_batches(0, 0, 4))


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_every_row_is_on_one_rank_and_all_ranks_have_as_many_batches(
    files: list[Path], tiny_tokenizer: Any, ranks: int
):
    shared = loader_of(files, tiny_tokenizer)
    loaders = [shared.of_rank((rank, ranks)) for rank in range(ranks)]
    rows: list[list[int]] = []
    for index in range(7):
        parts = [loader.micro_batches(0, index, 1) for loader in loaders]
        assert len({len(part) for part in parts}) == 1
        rows += [one for part in parts for one in tokens(part)]
    assert sorted(rows) == sorted(passed(loader_of(files, tiny_tokenizer)))


@pytest.mark.parametrize("steps", [1, 3, 4, 6, 7, 9])
def test_a_run_goes_on_at_its_row_without_encoding_the_rows_before(files: list[Path], tiny_tokenizer: Any, steps: int):
    whole = loader_of(files, tiny_tokenizer)
    epoch = index = 0
    for _ in range(steps):
        whole.micro_batches(epoch, index, 2)
        index += 1
        if index == whole.steps(epoch):
            epoch, index = epoch + 1, 0
    position = json.loads(json.dumps(whole.position(epoch, index)))
    resumed = loader_of(files, tiny_tokenizer)
    resumed.go_to(epoch, index, position)
    assert position["pieces"] > 0 or epoch == 1 or steps < 2
    for _ in range(8):
        assert tokens(resumed.micro_batches(epoch, index, 2)) == tokens(whole.micro_batches(epoch, index, 2))
        index += 1
        assert resumed.position(*((epoch, index) if index < whole.steps(epoch) else (epoch + 1, 0))) == whole.position(
            *((epoch, index) if index < whole.steps(epoch) else (epoch + 1, 0))
        )
        if index == whole.steps(epoch):
            epoch, index = epoch + 1, 0
    assert whole.behind(9) == (1, 2)


def test_pieces_before_the_place_are_not_encoded(
    files: list[Path], tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
):
    stream = RowStream([str(path) for path in files], tiny_tokenizer, config())
    whole = list(stream.pieces())
    made, usual = list[int](), PieceMaker.make
    monkeypatch.setattr(PieceMaker, "make", lambda self, *given: (made.append(1), usual(self, *given))[1])
    later = list(stream.pieces(3))
    assert len(made) == 4
    assert len(whole) == 7
    assert [piece.account.rows for piece in whole[3:]] == [piece.account.rows for piece in later]
    assert sum(piece.account.rows for piece in later) < 26


def test_few_pieces_are_in_memory_at_a_time(tiny_tokenizer: Any, tmp_path: Path):
    alive: weakref.WeakSet[Piece] = weakref.WeakSet()

    class Watched(RowStream):
        def pieces(self, first: int = 0, before: Account | None = None, *, again: bool = False) -> Iterator[Piece]:
            for piece in super().pieces(first, before, again=again):
                alive.add(piece)
                yield piece
                del piece

    path = write(tmp_path / "many.jsonl", map(row, range(60)))
    stream = Watched([str(path)], tiny_tokenizer, config())
    loader = StreamedLoader(stream, rows_per_step=4, pad_token_id=0)
    most = 0
    for index in range(15):
        loader.micro_batches(0, index, 4)
        most = max(most, len(alive))
    assert loader.steps(0) == 15
    assert most <= 4  # of fifteen: in use, made, being made, just used up


def test_other_files_at_the_place_are_refused(files: list[Path], tiny_tokenizer: Any, tmp_path: Path):
    loader = loader_of(files, tiny_tokenizer)
    loader.micro_batches(0, 0, 2)
    loader.micro_batches(0, 1, 2)
    position = loader.position(0, 2)
    assert (position["next"], position["pieces"]) == (f"{files[0]}:9", 2)
    moved = [write(tmp_path / "a.jsonl", map(row, range(15)))]  # another folder is no other file
    resumed = loader_of(moved, tiny_tokenizer)
    resumed.go_to(0, 2, position)
    assert resumed.micro_batches(0, 2, 2)
    fewer = loader_of([write(tmp_path / "fewer.jsonl", map(row, range(15)))], tiny_tokenizer)
    fewer.go_to(0, 2, position)
    for _ in range(2):  # also where somebody asks again
        with pytest.raises(DataError, match=r"a\.jsonl:9, is not where it was"):
            fewer.micro_batches(0, 2, 2)


@pytest.mark.parametrize(
    "wrong",
    [{}, {"pieces": -1}, {"pieces": "2"}, {"rows": 2**60}, {"next": 3}, {"steps": 0}, {"account": {"rows": "x"}}],
)
def test_a_position_of_a_stranger_is_refused(files: list[Path], tiny_tokenizer: Any, wrong: dict[str, Any]):
    loader = loader_of(files, tiny_tokenizer)
    loader.micro_batches(0, 0, 2)
    position = loader.position(0, 1) | wrong if wrong else None
    with pytest.raises((KeyError, TypeError, ValueError)):
        loader.go_to(0, 1, position)


def test_the_digest_tells_files_settings_and_tokenizer(files: list[Path], tiny_tokenizer: Any, tmp_path: Path):
    def digest(paths: list[Path], **changes: Any) -> str:
        return RowStream([str(path) for path in paths], tiny_tokenizer, config(**changes)).digest()

    moved = [write(tmp_path / "c.jsonl", map(row, range(15))), files[1]]
    other = [write(tmp_path / "d.jsonl", (row(number % 14) for number in range(15))), files[1]]
    assert digest(files) == digest(moved) == digest(files, skip_bad_rows=True)
    assert len({digest(files), digest(other), digest(files[:1]), digest(files, on_long="drop")}) == 4


BROKEN = '{"instruction": "壊れた行", "output": \n'


def broken(path: Path, number: int, rows: int = 20) -> Path:
    """A file whose line of that number is no JSON."""
    lines = [json.dumps(row(item), ensure_ascii=False) + "\n" for item in range(rows)]
    lines[number - 1] = BROKEN
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_a_bad_row_is_named_by_the_step_that_needs_its_piece(tiny_tokenizer: Any, tmp_path: Path):
    path = broken(tmp_path / "faq.jsonl", 11)
    loader = loader_of([path], tiny_tokenizer)
    for index in (0, 1):  # eight rows of two pieces; the third holds the bad one
        loader.micro_batches(0, index, 2)
    assert loader.position(0, 2)["pieces"] == 2
    for _ in range(2):
        with pytest.raises(DataError, match=r"faq\.jsonl:11 .*: not valid JSON"):
            loader.micro_batches(0, 2, 2)
    mended = loader_of([path], tiny_tokenizer, skip_bad_rows=True)
    mended.go_to(0, 2, loader.position(0, 2))
    assert len(tokens(mended.micro_batches(0, 2, 2))) == 4


def test_a_run_that_leaves_out_the_bad_rows_at_the_end_goes_on_with_the_next_pass(tiny_tokenizer: Any, tmp_path: Path):
    good, bad = write(tmp_path / "a.jsonl", map(row, range(4))), tmp_path / "b.jsonl"
    bad.write_text(BROKEN * 3, encoding="utf-8")
    loader = loader_of([good, bad], tiny_tokenizer)
    loader.micro_batches(0, 0, 2)
    with pytest.raises(DataError, match="allow_changed=true"):
        loader.micro_batches(0, 1, 2)
    going_on = loader_of([good, bad], tiny_tokenizer, skip_bad_rows=True)
    going_on.go_to(0, 1, loader.position(0, 1))
    assert going_on.steps(0) == 1
    assert tokens(going_on.micro_batches(1, 0, 2)) == tokens(loader_of([good], tiny_tokenizer).micro_batches(0, 0, 2))


def test_a_file_of_another_split_is_named_and_not_read(
    tiny_tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    write(tmp_path / "train.jsonl", map(row, range(4)))
    (tmp_path / "test.jsonl").write_bytes(b"\xff" * 100)
    assert len(passed(loader_of([tmp_path], tiny_tokenizer))) == 4
    assert caplog.text.count("test.jsonl") == 1


def test_what_is_noted_of_a_file_is_said_with_its_name(
    tiny_tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    paths = [tmp_path / name for name in ("one.csv", "two.csv")]
    for path in paths:
        path.write_text("質問;回答\n首都は？;東京です。\n" * 2, encoding="utf-8")
    passed(loader_of(paths, tiny_tokenizer, rows_per_step=1))
    for path in paths:
        assert caplog.text.count(f"{path}: the delimiter is ;") == 1
        assert caplog.text.count(f"{path}: rows that repeat the heading") == 1


def test_skipped_rows_are_counted_once_also_by_a_run_that_goes_on(tiny_tokenizer: Any, tmp_path: Path):
    path = broken(tmp_path / "faq.jsonl", 6)
    loader = loader_of([path], tiny_tokenizer, skip_bad_rows=True)
    assert len(passed(loader)) == 19
    report = loader.steps_made.report()
    assert report is not None
    assert (report.rows, report.left_out) == (19, 1)
    passed(loader, 1)
    assert loader.steps_made.report() == report
    first = loader_of([path], tiny_tokenizer, skip_bad_rows=True)
    for index in range(3):
        first.micro_batches(0, index, 2)
    position = first.position(0, 3)
    assert "壊れた行" not in json.dumps(position, ensure_ascii=False)
    resumed = loader_of([path], tiny_tokenizer, skip_bad_rows=True)
    resumed.go_to(0, 3, position)
    while resumed.steps(0) == UNKNOWN:
        resumed.micro_batches(0, resumed.steps_made.step[1], 2)
    assert resumed.steps_made.report() == report


def test_files_without_a_row_are_refused_before_the_first_step(tiny_tokenizer: Any, tmp_path: Path):
    path = tmp_path / "empty.jsonl"
    path.write_text(BROKEN, encoding="utf-8")
    with pytest.raises(DataError, match=r"empty\.jsonl:1 .*: not valid JSON"):
        prepare(path, None, tiny_tokenizer, config(), seed=0)
    with pytest.raises(DataError, match="no usable row"):
        prepare(path, None, tiny_tokenizer, config(skip_bad_rows=True), seed=0)
    path.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="no usable row"):
        prepare(path, None, tiny_tokenizer, config(), seed=0)
    write(path, [row(number, "") for number in range(3)])
    with pytest.raises(DataError, match="no row fits max_length 8"):
        prepare(path, None, tiny_tokenizer, DataConfig(max_length=8, streaming=True, on_long="drop"), seed=0)


def test_a_row_that_the_model_cannot_take_is_refused_where_it_comes(files: list[Path], tiny_tokenizer: Any):
    def check(*, max_token_id: int, max_length: int) -> None:
        raise ModelError(f"{max_token_id} {max_length}", f"{max_token_id} {max_length}")

    stream = RowStream([str(files[0])], tiny_tokenizer, config())
    loader = StreamedLoader(stream, rows_per_step=4, pad_token_id=0, check=check)
    with pytest.raises(ModelError):
        loader.micro_batches(0, 0, 2)


def test_a_row_that_is_refused_while_the_next_step_is_looked_for_is_not_left_out(
    files: list[Path], tiny_tokenizer: Any
):
    asked = iter(range(100))

    def check(*, max_token_id: int, max_length: int) -> None:
        if next(asked) == 1:
            raise ModelError("長すぎる行", "too long a row")

    stream = RowStream([str(path) for path in files], tiny_tokenizer, config())
    first = next(iter(stream.pieces()))
    loader = StreamedLoader(stream, rows_per_step=len(first.examples), pad_token_id=0, check=check)
    loader.micro_batches(0, 0, 2)
    for _ in range(2):
        with pytest.raises(ModelError, match="too long a row"):
            loader.micro_batches(0, 1, 2)


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet", "txt", "jsonl.zst"])
def test_every_kind_that_is_read_piece_by_piece(kind: str, tiny_tokenizer: Any, tmp_path: Path):
    rows = [row(number, "x" * 2**17) for number in range(20)]
    path = tmp_path / f"data.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        lines = [
            "instruction,output,note\n",
            *(f"{item['instruction']},{item['output']},{item['note']}\n" for item in rows),
        ]
        if kind == "txt":
            lines = [f"{item['output']} {'はい。' * 60}\n\n" for item in rows]
        if kind == "jsonl.zst":
            lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in rows]
        text = "".join(lines).encode()
        if kind == "jsonl.zst":
            with pyarrow.output_stream(str(path), compression="zstd") as stream:
                stream.write(text)
        else:
            path.write_bytes(gzip.compress(text) if kind.endswith("gz") else text)
    settings = {"on_long": "split"} if kind == "txt" else {}
    examples, _, _ = load_examples([path], tiny_tokenizer, DataConfig(max_length=LENGTH, cache=False, **settings))
    loader = loader_of([path], tiny_tokenizer, rows_per_step=7, **settings)
    rows_seen = passed(loader)
    assert rows_seen == [item.input_ids.tolist() for item in examples]
    if kind != "txt":
        assert len(list(RowStream([str(path)], tiny_tokenizer, config(**settings)).pieces())) > 1
    steps = loader.steps(0)
    resumed = loader_of([path], tiny_tokenizer, rows_per_step=7, **settings)
    resumed.go_to(0, steps - 1, loader.position(0, steps - 1))
    assert tokens(resumed.micro_batches(0, steps - 1, 7)) == rows_seen[(steps - 1) * 7 :]


def test_the_encoding_is_told_by_the_beginning_and_a_wrong_byte_behind_it_stays_visible(tmp_path: Path):
    path = tmp_path / "long.jsonl"
    line = (json.dumps({"text": "こんにちは。" * 2000}, ensure_ascii=False) + "\n").encode()
    path.write_bytes(line * (2**25 // len(line) + 2) + b'{"text": "\xff\xfe\xfa"}\n')
    read = 0

    class Counted(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            nonlocal read
            content = super().read(size)
            read += len(content)
            return content

    assert find_first_encoding(lambda: Counted(path.read_bytes()), "long.jsonl") == ("utf-8", "surrogateescape")
    assert read == 2**25
    _, batches = open_data(path, BadRows(), beginning=True)
    last = [text for batch in batches for _, text in batch.lines][-1]
    assert UNREADABLE.search(last.decode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("encoding", ["cp932", "euc_jp", "utf-8-sig", "utf-16", "iso2022_jp"])
def test_the_beginning_tells_every_encoding(encoding: str):
    text = ("彼は昨日、東京の図書館で本を読みました。\n" * (2**25 // 20)).encode(encoding)
    assert find_first_encoding(lambda: io.BytesIO(text), "x")[0] == encoding
