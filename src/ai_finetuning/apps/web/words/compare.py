"""Texts of the screen 比較."""

from __future__ import annotations

from . import talking

WORDS = {
    **talking.WORDS,
    "title": ("比較", "Compare"),
    "lead": (
        "学習を 2 つ以上選ぶと、違う設定と損失を並べて比べ、同じ質問をできます。",
        "Choose two runs or more: their settings that differ and their losses side by side, and one question to all.",
    ),
    "runs": ("学習", "Runs"),
    "no_runs": ("まだ学習がありません。", "There are no runs yet."),
    "new_run": ("新しく学習", "Train a model"),
    "choose": ("比べる", "Compare"),
    "choose_run": ("{name} を比べる", "Compare {name}"),
    "name": ("名前", "Name"),
    "state": ("状態", "State"),
    "model": ("モデル", "Model"),
    "loss": ("評価損失", "Evaluation loss"),
    "started": ("開始", "Started"),
    "actions": ("操作", "Actions"),
    "result": ("結果", "Result"),
    "only_more": ("もう 1 つ選ぶと比べられます。", "Choose one more to compare."),
    "too_many": ("一度に比べられるのは {count} つまでです。", "At most {count} can be compared at once."),
    # Side by side.
    "differing": ("違う設定だけ", "Settings that differ"),
    "same_settings": ("設定はすべて同じです。", "All settings are the same."),
    "setting": ("設定", "Setting"),
    "verdict": ("判定", "Verdict"),
    "k_better": ("改善しました", "Better"),
    "k_unchanged": ("変わりません", "Unchanged"),
    "k_worse": ("悪化しました", "Worse"),
    "k_overfitted": ("過学習しています", "Overfitted"),
    "k_unknown": ("判定できません", "No verdict"),
    "eval_curve": ("評価損失", "Evaluation loss"),
    "train_curve": ("学習の損失", "Training loss"),
    "step_axis": ("ステップ", "Step"),
    "no_curve": ("損失の記録がありません。", "No losses are recorded."),
    "same_question": ("同じ質問をする", "The same question"),
    "ask_send": ("質問する（Ctrl+Enter）", "Ask (Ctrl+Enter)"),
    "ask_settings": ("システム指示と回答の設定", "System prompts and settings of answers"),
    "system_of": ("{name} のシステム指示", "System prompt of {name}"),
    "in_one": (
        "選んだ学習に同じ質問をします。元のモデルが同じなので、1 組の重みを共有して同時に答えます。",
        "The chosen runs get the same question. They have one base model, share its weights, and answer at the same time.",
    ),
    "in_turns": (
        "元のモデルが違う学習があるため、モデルを 1 つずつ読み込み、順番に答えます。元のモデルが同じ学習は同時に答えます。",
        "These runs have different base models, which are loaded one after the other, and answer in turn; runs over one base "
        "answer at the same time.",
    ),
    "in_line": ("順番を待っています", "Waiting for its turn"),
    "asking": ("{names} が答えています…", "{names}: answering…"),
    "comma": ("、", ", "),
    "answered": ("回答が終わりました。", "The answers are complete."),
    "saved_answers": ("学習のときの回答", "Answers of the trainings"),
    "no_question": (
        "学習のときに同じ質問へ答えた記録はありません。",
        "No question was asked in more than one of these trainings.",
    ),
    "chat_with": ("{name} と会話", "Chat with {name}"),
    # Names and the trash.
    "rename": ("名前を変える", "Rename"),
    "rename_run": ("{name} の名前を変える", "Rename {name}"),
    "new_name": ("新しい名前", "New name"),
    "renamed": ("名前を {name} に変えました。", "It is now called {name}."),
    "trash": ("ごみ箱へ", "To the trash"),
    "trash_run": ("{name} をごみ箱へ移す", "Move {name} to the trash"),
    "trash_body": (
        "モデルと記録をごみ箱へ移します。消えるわけではなく、下の一覧から戻せます。確認のため、名前「{name}」を入力してください。",
        "Moves its model and records to the trash. Nothing is deleted: it can be restored from the list below. To confirm, "
        "type its name, {name}.",
    ),
    "trashed": ("{name} をごみ箱へ移しました。", "{name} is in the trash."),
    "in_trash": ("ごみ箱（{count}）", "Trash ({count})"),
    "moved": ("移した日時", "Moved"),
    "restore": ("元に戻す", "Restore"),
    "restore_run": ("{name} を元に戻す", "Restore {name}"),
    "restored": ("{name} を元に戻しました。", "{name} is restored."),
    "at_work": ("学習中は移せません", "not while it is at work"),
}
