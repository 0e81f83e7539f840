"""Files as they lie on people's disks: encodings, tables, broken lines. The truth is shared/data/encoding."""

from __future__ import annotations

import gzip
import json
import os
import unicodedata
from pathlib import Path

import pytest

from ai_finetuning.data.bad_rows import BadRows
from ai_finetuning.data.encoding import decode
from ai_finetuning.data.files import open_data, read_rows
from ai_finetuning.data.messages import Conversation
from ai_finetuning.data.rows import Content, File, FileReport
from ai_finetuning.data.sources import load_samples
from ai_finetuning.data.texts import characters_of, jsonl_lines
from ai_finetuning.errors import ConfigError, DataError, InputNotFoundError

FAQ = ("質問", "回答", "カテゴリ")


def expected(shared: Path, name: str = "faq_expected.jsonl") -> list[dict[str, str]]:
    text = (shared / "data" / "encoding" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def unix(row: dict[str, str]) -> dict[str, str]:
    return {key: (value or "").replace("\r\n", "\n") for key, value in row.items()}


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("faq_cp932_crlf.csv", "cp932"),
        ("faq_utf8.csv", "utf-8"),
        ("faq_utf8_bom_crlf.csv", "utf-8-sig"),
        ("faq_utf16_tab.txt", "utf-16"),
        ("faq.xlsx", "sheet 'FAQ'"),
        ("faq_eucjp.csv", "euc_jp"),
    ],
)
def test_every_encoding_gives_the_same_rows(shared: Path, name: str, encoding: str):
    rows, report = read_rows(shared / "data" / "encoding" / name)
    truth = [unix(row) for row in expected(shared)]
    if encoding == "euc_jp":  # EUC-JP has the other wave dash and minus
        swap = str.maketrans({"～": "〜", "－": "−"})
        truth = [{key: value.translate(swap) for key, value in row.items()} for row in truth]
    assert [unix(row.values) for row in rows] == truth
    assert report.encoding == encoding
    assert report.rows == 60


MAIL = '質問,回答\r\n営業時間は？,"9 時から\n18 時までです。"\r\n休みは？,日曜です。\r\n'


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt", ".jsonl", ".csv.gz"])
@pytest.mark.parametrize("encoding", ["iso2022_jp", "iso2022_jp_ext", "iso2022_jp_2", "iso2022_jp_2004"])
def test_what_was_exported_from_mail_is_read(tmp_path: Path, suffix: str, encoding: str):
    """ISO-2022-JP, whose bytes UTF-8 has too, each form with what the plainer ones lack."""
    more = {"iso2022_jp_ext": "ｶﾅ", "iso2022_jp_2": "한", "iso2022_jp_2004": "俱"}.get(encoding, "")
    text = MAIL.replace("日曜", f"日曜{more}")
    if suffix == ".tsv":
        text = text.replace(",", "\t")
    if suffix == ".jsonl":
        text = "".join(
            json.dumps({"質問": "休みは？", "回答": f"日曜{more}"}, ensure_ascii=False) + "\n" for _ in range(2)
        )
    raw = text.encode(encoding)
    assert raw.isascii()
    path = tmp_path / f"mail{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix.endswith(".gz") else raw)
    rows, report = read_rows(path)
    assert report.encoding == encoding
    assert encoding in report.lines()[0]
    assert f"日曜{more}" in str(rows[-1].values if suffix != ".txt" else [row.values for row in rows])
    if suffix in (".csv", ".tsv", ".csv.gz"):
        assert unix(rows[0].values) == {"質問": "営業時間は？", "回答": "9 時から\n18 時までです。"}


def test_what_only_looks_like_mail_is_what_it_is(tmp_path: Path):
    path = tmp_path / "a.csv"
    for text in (
        "question,answer\nwhen?,at $B9\n",
        "question,answer\n\x1b[1mwhen?\x1b$z,日曜\n",
        "question,answer\n\x1b$B,é\n",
    ):
        path.write_text(text, encoding="utf-8")
        assert decode(path.read_bytes(), "a") == (text, "utf-8")
    # ① as Windows writes it into JIS: no form of ISO-2022-JP has it, and as UTF-8 it would be read as noise.
    path.write_bytes("質問,回答\n順番は？,まず".encode("iso2022_jp") + b"\x1b$B-!\x1b(B\n")
    with pytest.raises(DataError) as refused:
        read_rows(path)
    assert "near line 2 are characters that JIS lacks" in refused.value.en
    assert "2 行目付近に、JIS にない文字" in refused.value.ja


def test_the_detected_encoding_is_said(shared: Path):
    _, report = load_samples(str(shared / "data" / "encoding" / "faq_cp932_crlf.csv"))
    assert "cp932" in report.lines()[0]
    assert "60" in report.lines()[0]


def test_special_characters_survive_cp932(shared: Path):
    rows, _ = read_rows(shared / "data" / "encoding" / "special_chars_cp932_crlf.csv")
    assert [unix(row.values) for row in rows] == expected(shared, "special_chars_expected.jsonl")


def test_decomposed_text_is_composed_and_counted(shared: Path):
    """macOS file: its two columns that are used are what the truth says, after composition."""
    samples, report = load_samples(str(shared / "data" / "encoding" / "faq_nfd_utf8.jsonl"))
    truth = expected(shared)
    kana = str.maketrans({})
    obtained = [
        [message.content for message in sample.messages] for sample in samples if isinstance(sample, Conversation)
    ]
    composed = [[unicodedata.normalize("NFC", row[key]).translate(kana) for key in FAQ[:2]] for row in truth]
    from ai_finetuning.japanese.normalize import normalize

    assert obtained == [[normalize(text)[0] for text in pair] for pair in composed]
    assert report.normalized["composed"] > 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("faq_mojibake_utf8_as_cp932.jsonl", "utf-8 as cp932"),
        ("faq_mojibake_cp932_as_latin1.jsonl", "cp932 as latin-1"),
    ],
)
def test_mojibake_is_refused_with_its_kind(shared: Path, name: str, kind: str):
    with pytest.raises(DataError, match=kind):
        load_samples(shared / "data" / "encoding" / name)


@pytest.mark.parametrize("number", ["45652_ruby_35575", "51156_ruby_42518"])
def test_raw_aozora_files_decode(shared: Path, number: str):
    rows, report = read_rows(shared / "data" / "encoding" / f"aozora_raw_sjis_{number}.txt")
    assert report.encoding == "cp932"
    text = "\n".join(row.values["text"] for row in rows)
    assert "宮沢賢治" in text
    assert "\ufffd" not in text


ROWS = [{"指示": "首都は？", "出力": "東京です。"}, {"指示": "①は？", "出力": "㈱髙島屋～です。"}]


def write(folder: Path, name: str, rows: list[dict[str, str]] = ROWS) -> Path:
    path = folder / name
    kind = name.removesuffix(".gz").rsplit(".", 1)[1]
    if kind in ("jsonl", "ndjson"):
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8")
    elif kind == "json":
        content = json.dumps(rows, ensure_ascii=False).encode("utf-8")
    elif kind in ("csv", "tsv"):
        mark = "\t" if kind == "tsv" else ","
        lines = [mark.join(rows[0])] + [mark.join(row.values()) for row in rows]
        content = "\r\n".join(lines).encode("cp932")
    elif kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    elif kind == "xlsx":
        import openpyxl

        book = openpyxl.Workbook()
        book.active.append(["よくある質問", None])  # a title above the table
        book.active.append(list(rows[0]))
        for row in rows:
            book.active.append(list(row.values()))
        book.save(path)
        return path
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.ndjson", "a.json", "a.csv", "a.tsv", "a.xlsx", "a.parquet", "a.jsonl.gz", "a.csv.gz"]
)
def test_every_kind_of_file_gives_the_same_conversations(tmp_path: Path, name: str):
    samples, _ = load_samples(str(write(tmp_path, name)))
    assert [[message.content for message in sample.messages] for sample in samples] == [
        list(row.values()) for row in ROWS
    ]


def test_a_saved_dataset_folder_and_a_list_of_files(tmp_path: Path):
    from datasets import Dataset, DatasetDict

    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(tmp_path / "dict")
    assert len(read_rows(tmp_path / "one")[0]) == len(read_rows(tmp_path / "dict")[0]) == 2
    # Files of different columns in one list.
    other = tmp_path / "b.jsonl"
    other.write_text('{"question": "Q", "answer": "A"}\n', encoding="utf-8")
    samples, _ = load_samples([write(tmp_path, "a.csv"), other])
    assert len(samples) == 3


def test_texts_are_parted_by_blank_lines_or_by_lines(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("一行目\n二行目\n\n次の文書\n", encoding="utf-8")
    assert [row.values["text"] for row in read_rows(path)[0]] == ["一行目\n二行目", "次の文書"]
    path.write_text("一つ目\n二つ目\n", encoding="utf-8")
    assert [row.values["text"] for row in read_rows(path)[0]] == ["一つ目", "二つ目"]


def test_quoted_line_ends_stay_inside_their_cell(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_bytes('質問,回答\r\n"一\r\n二","三, 四"\r\n'.encode("cp932"))
    assert read_rows(path)[0][0].values == {"質問": "一\r\n二", "回答": "三, 四"}
    samples, report = load_samples(str(path))
    assert samples[0].messages[0].content == "一\n二"
    assert report.normalized["newlines"] == 1


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        ('{"text": "一"}\n{"text": "二"\n', "a.jsonl:2", '{"text": "二"'),
        ('{"text": "一"}\n["二"]\n', "a.jsonl:2", "a list"),
        (
            '{"instruction": "一", "output": "二"}\n{"instruction": "三", "output": true}\n',
            "a.jsonl:2",
            '"True": output is a bool',
        ),
        ('{"instruction": "一", "output": "二"}\n{"instruction": "三"}\n', "a.jsonl:2", "output is empty"),
        ('{"text": "一"}\n{"text": "\\u0000"}\n', "a.jsonl:2", "U+0000"),
        ('{"text": "一"}\n{"text": "\\ud83c"}\n', "a.jsonl:2", "surrogate"),
        ('{"messages": [{"role": "user", "content": "あ"}]}\n', "a.jsonl:1", "does not end with the assistant"),
        ('{"messages": [{"role": "robot", "content": "あ"}]}\n', "a.jsonl:1", "robot"),
    ],
)
def test_bad_rows_are_refused_with_file_and_line_or_counted(tmp_path: Path, content: str, where: str, what: str):
    path = tmp_path / "a.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as refusal:
        load_samples(str(path))
    assert where in refusal.value.en
    assert what in refusal.value.en
    assert "skip_bad_rows" in refusal.value.en
    assert where in refusal.value.ja
    if content.count("\n") > 1:
        samples, report = load_samples(str(path), skip_bad_rows=True)
        assert len(samples) == 1
        assert "rows skipped: 1" in report.lines()
        assert any(where in line for line in report.lines()), report.lines()


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.xlsx"])
def test_empty_files_are_refused(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError):
        read_rows(tmp_path / name)


def test_a_ten_megabyte_line_is_read(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "あ" * 3_500_000}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert len(read_rows(path)[0][0].values["text"]) == 3_500_000


def test_a_wrong_file_name_suggests_near_ones(tmp_path: Path):
    write(tmp_path, "train.jsonl")
    with pytest.raises(InputNotFoundError, match=r"did you mean .*train\.jsonl"):
        read_rows(tmp_path / "trian.jsonl")


def test_a_hub_id_without_a_hub_says_the_way_out(monkeypatch: pytest.MonkeyPatch):
    from ai_finetuning.errors import HubError

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(HubError, match="nobody/nothing cannot be loaded"):
        read_rows("nobody/nothing")


def test_a_hub_that_does_not_answer_is_bounded(monkeypatch: pytest.MonkeyPatch):
    from ai_finetuning.errors import HubError

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="does not answer"):
        read_rows("nobody/nothing")


def test_other_kinds_and_broken_archives_are_refused(tmp_path: Path):
    for name in ("a.docx", "a.xlsx", "a.parquet", "a.jsonl.gz"):
        (tmp_path / name).write_bytes(b"no such thing")
        with pytest.raises(DataError):
            read_rows(tmp_path / name)


def test_undecodable_bytes_are_named_by_line(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_bytes("質問,回答\n一,二\n".encode() + b"\xff\xfe\x80,\x00\n")
    with pytest.raises(DataError, match="line 3"):
        read_rows(path)


@pytest.mark.parametrize(("encoding", "broken"), [("utf-8", b"\xff"), ("cp932", b"\x81\x20"), ("euc_jp", b"\xa4\x20")])
def test_a_byte_that_cannot_be_read_is_a_matter_of_its_row(tmp_path: Path, encoding: str, broken: bytes):
    path = tmp_path / "a.csv"
    lines = [
        "質問,回答",
        *(f"{number}番目の県の県庁所在地はどこですか？,それは{number}番目の市です。" for number in range(60)),
    ]
    raw = [line.encode(encoding) for line in lines]
    raw[30] += broken
    path.write_bytes(b"\n".join(raw))
    with pytest.raises(DataError, match=r"a\.csv:31: it holds bytes"):
        load_samples(path)
    samples, report = load_samples(path, skip_bad_rows=True)
    assert len(samples) == 59
    assert samples[0].messages[1].content == "それは0番目の市です。"
    assert report.files[0].encoding == encoding


COLUMNS = [
    ({"instruction": "問", "input": "", "output": "答"}, ["user", "assistant"]),
    ({"instruction": "問", "input": "材料", "output": "答"}, ["user", "assistant"]),
    ({"prompt": "問", "completion": "答"}, ["user", "assistant"]),
    ({"messages": [{"role": "user", "content": "問"}, {"role": "assistant", "content": "答"}]}, ["user", "assistant"]),
    ({"conversations": [{"from": "human", "value": "問"}, {"from": "gpt", "value": "答"}]}, ["user", "assistant"]),
    (
        {
            "conversations": [
                {"from": "system", "value": "役"},
                {"from": "human", "value": "問"},
                {"from": "gpt", "value": "答"},
            ]
        },
        ["system", "user", "assistant"],
    ),
    ({"指示": "問", "入力": "材料", "出力": "答"}, ["user", "assistant"]),
    ({"質問": "問", "回答": "答", "カテゴリ": "他"}, ["user", "assistant"]),
    ({"お問い合わせ内容": "問", "回答内容": "答"}, ["user", "assistant"]),
    ({"system": "役", "instruction": "問", "output": "答"}, ["system", "user", "assistant"]),
]


@pytest.mark.parametrize(("row", "roles"), COLUMNS)
def test_rows_are_understood_by_their_columns(row: dict, roles: list[str]):
    samples, _ = load_samples([row])
    assert [message.role for message in samples[0].messages] == roles
    assert samples[0].messages[-1].content == "答"
    if row.get("input") == "材料" or "入力" in row:
        assert samples[0].as_dicts()[0]["content"] == "問\n\n材料"


def test_columns_can_be_said_by_hand_and_unknown_ones_are_refused():
    row = {"本": "問", "末": "答"}
    samples, _ = load_samples([row], columns={"instruction": "本", "output": "末"})
    assert [message.content for message in samples[0].messages] == ["問", "答"]
    with pytest.raises(DataError, match=r"data\.columns"):
        load_samples([row])
    with pytest.raises(ConfigError, match="X"):
        load_samples([row], columns={"instruction": "X", "output": "末"})
    with pytest.raises(ConfigError, match="answers"):
        load_samples([row], columns={"answers": "末"})


def test_columns_that_could_be_two_things_are_refused():
    with pytest.raises(DataError, match="回答"):
        load_samples([{"質問": "問", "回答": "答", "output": "別"}])


@pytest.mark.parametrize("source", [42, [1], [{"text": True}], [[{"role": "user", "content": {}}]], []])
def test_wrong_types_are_refused(source: object):
    with pytest.raises(DataError):
        load_samples(source)


_LINES = (
    '{"text": "東京"}\n\n \t\n\u3000\n\u3000{"text": "\u2028京都"}\n\x1c\n{"text": "' + "大阪🗼é" * 400 + '"}\r\n[1]'
)


@pytest.mark.parametrize(
    "raw",
    [
        _LINES.encode(),
        b"\xef\xbb\xbf" * 2 + _LINES.encode(),
        _LINES.replace("🗼é", "").encode("cp932", "ignore"),
        _LINES.encode("utf-16"),
        (_LINES * 9).encode() + b"\xff\n",
        b"\xef\xbb\xbf",
        b"",
    ],
)
def test_lines_are_the_same_whether_they_are_decoded_or_not(raw: bytes):
    file = File(Path("a.jsonl"), Content.of(raw), FileReport("a.jsonl", "jsonl"), BadRows())
    decoded = list(file.lines("\n"))
    assert [line.decode("utf-8", "surrogatepass") for line in file.utf8_lines()] == decoded
    held = [(number, line.removesuffix("\n")) for number, line in enumerate(decoded, start=1) if line.strip()]
    lines = list(jsonl_lines(file) or ())
    assert [(number, line.decode("utf-8", "surrogatepass")) for number, line in lines] == held
    assert list(map(characters_of, lines)) == [len(line) for _, line in held]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_objects_of_several_lines_that_follow_each_other_are_rows(tmp_path: Path, name: str):
    path = tmp_path / name
    rows = [{"question": f"問{number}", "answer": "答"} for number in range(3)]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False, indent=1) for row in rows), encoding="utf-8")
    read, _ = read_rows(path)
    assert [row.values for row in read] == rows
    assert [row.source.rpartition(":")[2] for row in read] == ["1", "5", "9"]
    path.write_text(json.dumps(rows[0], indent=1) + '\n{\n"question": 1,}', encoding="utf-8")
    with pytest.raises(DataError, match=r"line 6: .*comma too many"):
        read_rows(path)


def test_a_python_list_in_a_cell_is_named_as_that(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("messages\n\"[{'role': 'user', 'content': '問'}]\"\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a.csv:2.*json.dumps"):
        load_samples(path)


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"PK\x03\x04\x14\xff\xfe", "Excel"),
        (gzip.compress(b"x", mtime=0), "gzip"),
        (b"PAR1\x15\x04\xff\xff", "Parquet"),
    ],
    ids=["Excel", "gzip", "Parquet"],
)
def test_what_is_no_text_is_named_by_what_it_is(tmp_path: Path, raw: bytes, kind: str):
    path = tmp_path / "a.csv"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=f"{kind}.*extension"):
        read_rows(path)


def test_pipes_devices_and_broken_links_are_refused_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").symlink_to("/dev/zero")
    (tmp_path / "c.jsonl").symlink_to("/nowhere/d.jsonl")
    for name in ("a.jsonl", "b.jsonl"):
        with pytest.raises(DataError, match="no regular file"):
            read_rows(tmp_path / name)
    with pytest.raises(InputNotFoundError, match="link to /nowhere/d.jsonl"):
        read_rows(tmp_path / "c.jsonl")


def test_texts_about_a_folder_are_named_and_not_read(tmp_path: Path):
    for name in ("README.txt", "license.txt", "お読みください.txt"):
        (tmp_path / name).write_text("この資料について\n", encoding="utf-8")
    for name in ("本文.txt", "readme2.txt"):
        (tmp_path / name).write_text("文\n", encoding="utf-8")
    rows, report = read_rows(tmp_path)
    assert [row.values["text"] for row in rows] == ["文", "文"]
    (note,) = (en for _, en in report.notes if en.startswith("not read"))
    assert all(name in note for name in ("README.txt", "license.txt", "お読みください.txt"))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32", "utf-16"])
@pytest.mark.parametrize("beginning", [False, True])
def test_utf16_without_a_mark_and_utf32_are_read(tmp_path: Path, encoding: str, beginning: bool):
    path = tmp_path / "a.csv"
    path.write_bytes("質問,回答\r\n首都は？,東京です。\r\n".encode(encoding))
    _, batches = open_data(path, BadRows(), beginning=beginning)
    assert [row.values for batch in batches for row in batch.rows()] == [{"質問": "首都は？", "回答": "東京です。"}]
    path.write_bytes("質問,回答\na,b\0\n".encode())
    assert read_rows(path)[1].encoding == "utf-8"
