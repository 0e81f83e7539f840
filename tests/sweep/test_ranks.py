"""512 data ranks that read one store: none is idle, and every document is read once an epoch."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ai_finetuning import DataConfig
from ai_finetuning.data.loader import Loader
from ai_finetuning.data.store.folder import prepare_folder
from ai_finetuning.data.store.mapped import StoredExamples, open_store
from ai_finetuning.data.store.preparing import Preparation, sources_of
from ai_finetuning.labels import IGNORED
from tests.support.models import SENTENCES, build_tokenizer

RANKS, ROWS_OF_A_RANK, DOCUMENTS, LENGTH = 512, 2, 9_000, 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(DOCUMENTS):
            text = f"{number}。" + SENTENCES[number % len(SENTENCES)][: 4 + number % 9]
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    config = DataConfig(max_length=LENGTH, on_long="split")
    asked = Preparation((str(path),), config, build_tokenizer(), sources_of([str(path)]))
    examples, _ = prepare_folder(asked, path.parent / "store")
    assert len(examples) >= DOCUMENTS
    return path.parent / "store"


def loader_of(examples: StoredExamples, rank: int, ranks: int, *, packing: bool, by_length: bool = False) -> Loader:
    return Loader(
        examples,
        rows_per_step=RANKS * ROWS_OF_A_RANK,
        seed=3,
        packing=packing,
        max_length=LENGTH,
        group_by_length=by_length,
        pad_token_id=0,
        share=(rank, ranks),
    )


def documents_in(loader: Loader, epoch: int, step: int) -> list[tuple[list[bytes], bool]]:
    """Of each micro-batch of a rank (its documents as their tokens, whether it learns)."""
    read = []
    for batch in loader.micro_batches(epoch, step, 1):
        documents = [
            row[start : start + length].astype(np.int32).tobytes()
            for row, lengths in zip(np.asarray(batch.input_ids), batch.lengths, strict=True)
            for start, length in zip(np.cumsum([0, *lengths[:-1]]).tolist(), lengths, strict=True)
        ]
        read.append((documents, bool((np.asarray(batch.labels) != IGNORED).any())))
    return read


@pytest.mark.slow
@pytest.mark.parametrize(("packing", "by_length"), [(True, False), (False, False), (False, True)])
def test_512_ranks_read_every_document_once_an_epoch_and_none_is_idle(folder: Path, packing: bool, by_length: bool):
    whole, _ = open_store(folder)
    expected = Counter(item.input_ids.tobytes() for item in whole)
    orders = []
    for epoch in range(2):
        read: Counter[bytes] = Counter()
        order = []
        # Every rank opens the store by itself, as a process of its own does.
        ranks = [
            loader_of(open_store(folder)[0], rank, RANKS, packing=packing, by_length=by_length) for rank in range(RANKS)
        ]
        steps = {loader.steps(epoch) for loader in ranks}
        assert len(steps) == 1
        for step in range(steps.pop()):
            batches = [documents_in(loader, epoch, step) for loader in ranks]
            # All ranks have as many micro-batches, so that none waits for another ...
            assert len({len(own) for own in batches}) == 1
            learning = sum(learns for own in batches for _, learns in own)
            rows = min(RANKS * ROWS_OF_A_RANK, ranks[0].num_rows - step * RANKS * ROWS_OF_A_RANK)
            # ... and in all steps but the short last one each of them learns.
            assert learning == rows
            assert rows == RANKS * ROWS_OF_A_RANK or step == ranks[0].steps(epoch) - 1
            for own in batches:
                for documents, learns in own:
                    if learns:
                        read.update(documents)
                        order += documents
        assert read == expected
        orders.append(order)
    assert orders[0] != orders[1]


@pytest.mark.slow
def test_the_rows_of_a_step_are_the_same_for_8_and_for_512_ranks(folder: Path):
    examples, _ = open_store(folder)
    steps = []
    for ranks in (8, 64, RANKS):
        loaders = [loader_of(examples, rank, ranks, packing=True) for rank in range(ranks)]
        read = [document for loader in loaders for documents, _ in documents_in(loader, 1, 0) for document in documents]
        steps.append(sorted(read))
    assert steps[0] == steps[1] == steps[2]
