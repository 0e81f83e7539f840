"""Texts of every screen on which one asks a model and sees it answer: settings of answers, and how one ends."""

from __future__ import annotations

WORDS = {
    "max_new_tokens": ("回答の最大トークン数", "Most tokens of an answer"),
    "temperature": ("ばらつき（temperature）", "Variation (temperature)"),
    "top_p": ("確率の上位（top_p）", "Share of the probability (top_p)"),
    "top_k": ("候補の数（top_k、0 は制限なし）", "Tokens to choose from (top_k; 0: all)"),
    "greedy": (
        "毎回同じ回答にする（もっとも確率の高い語だけ）",
        "The same answer every time (the likeliest token only)",
    ),
    "question": ("質問", "Question"),
    "stop": ("停止", "Stop"),
    "loading_model": ("モデルを読み込んでいます…", "Loading the model…"),
    "thinking": ("考えています…", "Thinking…"),
    "stopped": ("停止しました。ここまでの回答は残ります。", "Stopped; what was answered so far stays."),
    "mark_stopped": ("停止", "Stopped"),
    "end_length": ("最大トークン数で終わりました", "Ended at the most tokens"),
    "end_positions": ("モデルの上限で終わりました", "Ended at the model's last position"),
    "end_loop": ("同じ言葉の繰り返しになったので終わりました", "Ended, because it repeated itself"),
    "empty_answer": ("（空の回答）", "(empty answer)"),
}
