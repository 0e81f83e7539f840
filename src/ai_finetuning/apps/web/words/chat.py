"""Texts of the screen 会話."""

from __future__ import annotations

from . import talking

WORDS = {
    **talking.WORDS,
    "dot": (" ・ ", " · "),
    "title": ("会話", "Chat"),
    "lead": (
        "同じ質問に、元のモデルと学習後のモデルが並んで答えます。",
        "The original model and the trained one answer the same question side by side.",
    ),
    "lead_one": ("モデルに質問します。", "Ask the model."),
    "model": ("学習結果・モデル", "Run or model"),
    "choose": ("選んでください", "Choose one"),
    "of_runs": ("学習結果", "Runs"),
    "of_models": ("この PC のモデル", "Models on this PC"),
    "settings": ("システム指示と回答の設定", "System prompt and settings of answers"),
    "system": ("システム指示", "System prompt"),
    "system_stored": ("学習に使ったシステム指示です。", "This is the system prompt of the training."),
    "system_other": (
        "学習に使ったものと違います。",
        "This is not the system prompt of the training.",
    ),
    "system_none": (
        "このモデルの学習にはシステム指示がありません。空のままで学習と同じになります。",
        "This model was trained without one; empty is as in training.",
    ),
    "enter_sends": (
        "Enter で送信する（改行は Shift+Enter）",
        "Enter sends (Shift+Enter for a new line)",
    ),
    "conversation": ("会話", "Conversation"),
    "empty": (
        "下の欄に質問を入力して送信してください。最初の質問のときにモデルを読み込みます。",
        "Type a question below and send it. The first one loads the model.",
    ),
    "nothing": (
        "会話できるモデルがまだありません。",
        "There is no model to talk with yet.",
    ),
    "send_ctrl": ("送信（Ctrl+Enter）", "Send (Ctrl+Enter)"),
    "send_enter": ("送信（Enter）", "Send (Enter)"),
    "keys_ctrl": ("Enter は改行です。", "Enter makes a new line."),
    "keys_enter": ("変換の確定の Enter では送信しません。", "Enter that ends a conversion does not send."),
    "again": ("書き直す", "Rewrite"),
    "clear": ("会話を消す", "Clear"),
    "clear_sure": ("この会話を消しますか？", "Clear this conversation?"),
    "clear_text": (
        "画面の質問と回答を消します。保存した評価は残ります。",
        "Questions and answers go; saved ratings stay.",
    ),
    "side_base": ("元のモデル", "Original model"),
    "side_tuned": ("学習後", "After training"),
    "side_alone": ("回答", "Answer"),
    "you": ("あなた", "You"),
    "answered": ("回答が終わりました。", "The answer is complete."),
    "forgotten": ("長いため、古いやり取り {n} 組を除いて答えました", "Too long: answered without the oldest {n} turns"),
    "room": ("会話の長さ", "Length of the conversation"),
    "room_used": ("会話の長さ {used} / {all} トークン", "Length of the conversation: {used} of {all} tokens"),
    "room_open": ("会話の長さ {used} トークン", "Length of the conversation: {used} tokens"),
    "only_tuned": ("元のモデルは並べられません: {why}", "The original model is not beside it: {why}"),
    "good": ("よい", "Good"),
    "bad": ("よくない", "Not good"),
    "edit": ("回答を直す", "Correct the answer"),
    "keep": ("この回答を学習データに追加", "Add this answer to the training data"),
    "rate_label": ("この回答の評価", "Rating of this answer"),
    "edited": ("直した回答", "The corrected answer"),
    "edit_text": (
        "直した回答を「よい方」、元の回答を「よくない方」として保存し、良い回答と悪い回答の組として学習に使えます。",
        "The corrected answer is saved as the better one and the model's as the worse, for preference training.",
    ),
    "saved_rating": ("評価を保存しました", "Rating saved"),
    "saved_pair": ("直した回答を保存しました", "Correction saved"),
    "saved_row": ("学習データに追加しました", "Added to the training data"),
    "see_data": ("{file} を開く", "Open {file}"),
}
