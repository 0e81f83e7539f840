"""Texts of the screen 実行中."""

from __future__ import annotations

WORDS = {
    "title": ("学習の様子", "Run"),
    # Phases, as runs/phase.py says them.
    "phase_waiting": ("順番待ち", "Waiting"),
    "phase_preparing": ("準備中", "Preparing"),
    "phase_data": ("データ準備中", "Preparing data"),
    "phase_model": ("モデルを読み込み中", "Loading the model"),
    "phase_training": ("学習中", "Training"),
    "phase_evaluation": ("評価中", "Evaluating"),
    "phase_saving": ("保存と判定", "Saving and judging"),
    "percent": ("{percent} %", "{percent} %"),
    "left": ("残り {time}", "{time} left"),
    "began": ("開始: {time}", "Started {time}"),
    "quiet": ("最後のステップから {time}", "{time} since the last step"),
    "progress": ("進み具合", "Progress"),
    "waits_for": ("以下が終わるのを待っています", "Waiting for"),
    "an_api": ("API（書き出しの画面で止められます）", "an API (stop it on the screen Export)"),
    "waits_for_nobody": ("まもなく始まります。", "It begins in a moment."),
    "elsewhere": (
        "別の PC で始めた学習です。動いているかどうかは、その PC でしか分かりません。",
        "It began on another PC; only there is seen whether it is at work.",
    ),
    # In the language of the page: the state's own reason is in the server's.
    "gone": (
        "学習のプロセスがなくなっています（強制終了されたか、PC が止まりました）。",
        "its process is gone (killed, or the PC stopped).",
    ),
    "stopped_text": ("途中で止まっています。続きから再開できます。", "It stopped half-way and can go on from there."),
    "failed_text": ("失敗しました: {reason}", "It failed: {reason}"),
    "can_go_on": (
        "原因を取り除けば、続きから再開できます。",
        "Once the cause is gone, it can go on from where it last saved.",
    ),
    "going_on_failed": (
        "続きからの学習は始まる前に失敗しました: {reason}",
        "Going on from here failed before it began: {reason}",
    ),
    "completed_text": ("学習が終わりました。", "The training is done."),
    "judged_text": (
        "学習が終わり、保存しました。いま学習前と比べて判定しています。結果を見ながら待てます。",
        "The training is done and saved. It is being compared with its base; look at the result meanwhile.",
    ),
    "stop_save": ("ここまでで止めて保存", "Stop and save"),
    "stop_best": ("最良で終了", "End with the best"),
    "stop_now": ("すぐに止める", "Stop at once"),
    "stop_now_sure": (
        "すぐに止めると、最後の保存より後の学習は失われます。",
        "What it learned since it last saved is lost.",
    ),
    "resume": ("続きから", "Resume"),
    "duplicate": ("複製", "Duplicate"),
    "result": ("結果を見る", "See the result"),
    "chat": ("話してみる", "Chat with it"),
    "curve": ("損失の曲線", "Loss"),
    "train_loss": ("学習の損失", "Training loss"),
    "eval_loss": ("評価損失", "Evaluation loss"),
    "x_step": ("ステップ", "Step"),
    "best": ("最良 ステップ {step}", "Best: step {step}"),
    "best_line": ("最良 ステップ {step}（評価損失 {loss}）", "Best: step {step} (evaluation loss {loss})"),
    "no_points": ("最初のステップを待っています。", "Waiting for the first step."),
    "no_points_ended": ("1 ステップも記録されていません。", "No step is recorded."),
    "samples": ("お試しの質問", "Sample questions"),
    "samples_none": (
        "お試しの質問はありません（評価データと、くわしい設定の training.evaluation.generate が必要です）。",
        "No sample questions (they need evaluation data, and training.evaluation.generate among the more settings).",
    ),
    "samples_wait": (
        "評価データがあれば、評価のたびに、お試しの質問への回答がここに加わります。",
        "With evaluation data, answers to sample questions come here with each evaluation.",
    ),
    "samples_at": ("どの時点の回答", "Answers at"),
    "question": ("質問", "Question"),
    "expected": ("期待する回答", "Expected"),
    "before": ("学習前", "Before"),
    "at_step": ("ステップ {step}", "Step {step}"),
    "no_answer": ("（時間切れ）", "(out of time)"),
    "empty_answer": ("（空）", "(empty)"),
    "log": ("記録（ログ）", "Log"),
    "log_none": (
        "ターミナルから始めた学習の記録は、そのターミナルに表示されます。",
        "A run that a terminal started says it there.",
    ),
    "settings": ("この学習の設定", "Settings of this run"),
    "live": ("ステップ {step}、損失 {loss}、残り {time}", "Step {step}, loss {loss}, {time} left"),
}
