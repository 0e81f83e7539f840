"""What every variant reads: the model's folder and the documents, as ids and as text."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.corpus import FIRST_WORD, SPECIALS, Document
from benchmarks.shapes import Shape

SEED = 0
# Prompt and answer as they are, then EOS: rendering adds no token that the other variants do not have.
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }} {% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def save_model(folder: Path, shape: Shape, *, device: str = "cpu", precision: str = "bf16") -> Path:
    """Random weights, in bf16 as hub models have them or the same numbers in fp32, and a tokenizer of one word a token;
    made once.
    """
    if (folder / "tokenizer.json").is_file():
        return folder
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(SEED)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape.config(), dtype=torch.bfloat16)
    (model.float() if precision == "fp32" else model).save_pretrained(folder)
    word_tokenizer(shape.vocabulary).save_pretrained(folder)
    return folder


# Bytes of a file of weights at most, and so of what is in the device's memory at a time.
_SHARD_BYTES = 2**30


def save_random_shards(folder: Path, shape: Shape, *, device: str) -> Path:
    """As save_model(), for sizes that should not be in memory as a whole: normal weights of deviation 0.02 (norms 1) are
    made on the device tensor by tensor and written in files of about 1 GiB.
    """
    if (folder / "tokenizer.json").is_file():
        return folder
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, GenerationConfig

    config = shape.config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    weights = {name: tuple(item.shape) for name, item in model.state_dict().items()}
    if shape.tied:
        del weights["lm_head.weight"]
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    where: dict[str, str] = {}
    held: dict[str, torch.Tensor] = {}
    files = 1
    for index, (name, size) in enumerate(weights.items(), 1):
        new = torch.empty(size, dtype=torch.bfloat16, device=device)
        held[name] = (new.fill_(1.0) if len(size) == 1 else new.normal_(0.0, 0.02)).cpu()
        where[name] = f"model-{files:05}.safetensors"
        if index == len(weights) or sum(item.nbytes for item in held.values()) >= _SHARD_BYTES:
            save_file(held, folder / where[name], metadata={"format": "pt"})
            held, files = {}, files + 1
    total = 2 * sum(math.prod(size) for size in weights.values())
    index_of = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_of), encoding="utf-8")
    config.architectures = [type(model).__name__]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    word_tokenizer(shape.vocabulary).save_pretrained(folder)  # last: where it lies, everything does
    return folder


def word_tokenizer(vocabulary: int) -> Any:
    """The tokenizer of the ids of corpus.py: one word a token, `w17` of 17, special tokens by their names."""
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
