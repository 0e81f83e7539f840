"""Texts that every screen may use: what stands around it, states of runs, numbers, times and refusals."""

from __future__ import annotations

WORDS = {
    # Around every screen.
    "skip": ("本文へ", "Skip to content"),
    "nav": ("メニュー", "Menu"),
    "nav_home": ("ホーム", "Home"),
    "nav_data": ("データ", "Data"),
    "nav_models": ("モデル", "Models"),
    "nav_settings": ("学習", "Training"),
    "nav_chat": ("会話", "Chat"),
    "nav_answers": ("一括回答", "Batch answers"),
    "nav_compare": ("比較", "Compare"),
    "nav_export": ("書き出し", "Export"),
    "this_pc": ("この PC", "This PC"),
    "gpu_free": ("GPU 空き {size}", "GPU {size} free"),
    "memory_free": ("メモリー空き {size}", "Memory {size} free"),
    "running_now": ("実行中 {count}", "Running {count}"),
    "waiting_now": ("順番待ち {count}", "Waiting {count}"),
    "job_now": ("{what} {count}", "{what} {count}"),
    "other_language": ("English で表示", "日本語で表示"),
    "same_command": ("同じことをするコマンド", "The same as a command"),
    "copy": ("コピー", "Copy"),
    "copied": ("コピーしました", "Copied"),
    "not_copied": (
        "ブラウザーがコピーを許可していません。表示されている文字を選んでコピーしてください。",
        "The browser does not let this page copy; select the text and copy it.",
    ),
    # The demo's guide, on the screens that it leads through.
    "demo_title": ("デモ {step} / 5", "Demo {step} of 5"),
    "demo_home": ("「デモを試す」を押してください。", "Choose “Try the demo”."),
    "demo_data": (
        "質問と回答の表です。問題のある行が数えられています。「このデータで学習」を押してください。",
        "A table of questions and answers, with its problems counted. Choose “Train on this data”.",
    ),
    "demo_settings": (
        "同梱の小さなモデルを学習します。「速い」を選び、時間を確かめて「開始」を押してください。",
        "A small model that ships will be trained. Choose “quick”, look at the time, and start.",
    ),
    "demo_runs": (
        "学習が進んでいます。画面を閉じても続きます。終わったら「結果を見る」を押してください。",
        "It trains, and goes on when this page is closed. When it is done, look at the result.",
    ),
    "demo_results": (
        "これが判定です。学習前と学習後の回答も比べてください。デモはここまでです。",
        "This is the verdict. Compare the answers before and after; here the demo ends.",
    ),
    "demo_end": ("案内を閉じる", "Close the guide"),
    # What anything may say.
    "older_jobs": (
        "これより古いものが、ほかに {count} 件あります（{folder}）。",
        "There are {count} older ones as well, in {folder}.",
    ),
    "loading": ("読み込んでいます…", "Loading…"),
    "choose_one": ("選んでください", "Choose one"),
    "not_here": (
        "このアドレスの学習結果かモデルは、ここにありません（名前が変わったか、ごみ箱にあります）。選び直してください。",
        "The run or model of this address is not here (renamed, or in the trash). Choose another one.",
    ),
    "failed_to_load": ("読み込めませんでした", "It could not be loaded"),
    "no_token": (
        "このページを開く許可がありません。aift web が表示したアドレスを、もう一度開いてください。",
        "This page may not be opened. Open the address that aift web printed once more.",
    ),
    "no_server": (
        "サーバーから応答がありません。aift web が動いているか確かめてください（学習は続いています）。つながるまで待ちます…",
        "The server does not answer. See whether aift web is at work (trainings go on). Waiting for it…",
    ),
    "refused": ("断られました（{status}）", "Refused ({status})"),
    "close": ("閉じる", "Close"),
    "cancel": ("やめる", "Cancel"),
    "open": ("開く", "Open"),
    "save": ("保存", "Save"),
    "none": ("なし", "None"),
    # States of runs: of runs/state.py, whose words these are.
    "state_completed": ("完了", "Done"),
    "state_running": ("学習中", "Running"),
    "state_waiting": ("順番待ち", "Waiting"),
    "state_failed": ("失敗", "Failed"),
    "state_stopped": ("中断", "Stopped"),
    # Of a run whose model is in use.
    "in_use": ("採用中", "In use"),
    "in_use_name": ("{name}（採用中）", "{name} (in use)"),
    # Numbers and times.
    "about_seconds": ("約 {n} 秒", "about {n} s"),
    "about_minutes": ("約 {n} 分", "about {n} min"),
    "about_hours": ("約 {n} 時間", "about {n} h"),
    "about_days": ("約 {n} 日", "about {n} days"),
    "step_of": ("ステップ {step} / {total}", "Step {step} of {total}"),
    "step": ("ステップ {step}", "Step {step}"),
    "ago": ("{time}前", "{time} ago"),
    "now": ("たった今", "just now"),
    # Tables.
    "page_of": ("{page} / {pages} ページ", "Page {page} of {pages}"),
    "first": ("最初", "First"),
    "previous": ("前へ", "Previous"),
    "next": ("次へ", "Next"),
    "last": ("最後", "Last"),
    "rows_of": ("{from}–{to} 行 / {total} 行", "Rows {from}–{to} of {total}"),
    # Curves.
    "as_numbers": ("数値で見る", "As numbers"),
}
