"""A newcomer's desk: the tables of an office."""

from __future__ import annotations

import csv
from pathlib import Path

HEADINGS = ["No", "お問い合わせ", "ご回答", "分類", "更新日"]
TOPICS = ("送料", "返品", "保証", "領収書", "配送日", "支払い方法", "在庫", "会員登録", "ポイント", "キャンセル")


def faq() -> list[list[object]]:
    """Twenty rows as an office keeps them; each answer is short enough for the small model to learn."""
    rows: list[list[object]] = []
    for number, topic in enumerate(TOPICS * 2, 1):
        asked = f"{topic}について教えてください。" if number <= len(TOPICS) else f"{topic}はどうなっていますか？"
        rows.append([number, asked, f"{topic}は窓口{number % 10}番でご案内しています。", "一般", "2026/04/01"])
    return rows


def furnish(folder: Path) -> Path:
    """Makes the folder with faq.csv (CP932), 社内 FAQ.xlsx (a cover sheet before the table) and 質問一覧.csv."""
    import openpyxl

    folder.mkdir()
    with (folder / "faq.csv").open("w", encoding="cp932", newline="") as file:
        csv.writer(file).writerows([HEADINGS, *faq()])
    with (folder / "質問一覧.csv").open("w", encoding="cp932", newline="") as file:
        csv.writer(file).writerows([["番号", "質問"], *([n, row[1]] for n, row in enumerate(faq()[:4], 1))])
    book = openpyxl.Workbook()
    book.active.title = "表紙"
    book.active["A1"] = "社内FAQ 第3版"
    sheet = book.create_sheet("FAQ")
    for row in [["社内FAQ一覧"], [], HEADINGS, *faq()]:
        sheet.append(row)
    book.save(folder / "社内 FAQ.xlsx")
    return folder
