"""What every variant reads: the model's folder and the documents, as ids and as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.corpus import FIRST_WORD, SPECIALS, Document
from benchmarks.shapes import Shape

SEED = 0
# Prompt and answer as they are, then EOS: rendering adds no token that the other variants do not have.
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }} {% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def save_model(folder: Path, shape: Shape, *, device: str = "cpu") -> Path:
    """Random bf16 weights (hub models are bf16) and a tokenizer of one word a token; made once."""
    if (folder / "tokenizer.json").is_file():
        return folder
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(SEED)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape.config(), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    _tokenizer(shape.vocabulary).save_pretrained(folder)
    return folder


def _tokenizer(vocabulary: int):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = SPECIALS | {f"w{token}": token for token in range(FIRST_WORD, vocabulary)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
    )


def save_documents(folder: Path, corpus: Sequence[Document]) -> Path:
    """documents.jsonl (ids) for variants that take ids; rows.jsonl (text) for those that tokenize themselves."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "documents.jsonl").open("w", encoding="utf-8") as ids,
        (folder / "rows.jsonl").open("w", encoding="utf-8") as rows,
    ):
        for item in corpus:
            prompt, answer = item.words()
            ids.write(json.dumps({"ids": item.ids, "prompt": item.prompt}) + "\n")
            rows.write(json.dumps({"instruction": prompt, "output": answer}) + "\n")
    return folder


def read_documents(folder: Path) -> list[Document]:
    """documents.jsonl back."""
    lines = (folder / "documents.jsonl").read_text(encoding="utf-8").splitlines()
    return [Document(**json.loads(line)) for line in lines]
