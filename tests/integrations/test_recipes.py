"""Other people's loops write datasets, as the README tells them to."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import shardstream
from tests.test_docs import README, run

NEEDS_TOKENIZER = "needs a Hugging Face tokenizer"


def test_rows_of_datasets_and_a_tokenizer_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's loop writes each row as a document, ids and end as the tokenizer has them."""
    words = ["<eos>", "Hello", "world", "I", "am", "a", "model", "."]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # A folder of this name comes before the Hub.
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)

    num_run = run(README, NEEDS_TOKENIZER)

    dataset = shardstream.open("from-datasets")
    assert num_run == 1
    assert dataset[:].tolist() == [1, 2, 0, 3, 4, 5, 6, 7, 0]
    assert (dataset.manifest.num_documents, dataset.vocab_size, dataset.manifest.eos_id) == (2, 8, 0)


def test_a_generator_of_lists(tmp_path: Path) -> None:
    """A generator of lists of ids writes with a plain loop, one list at a time."""
    lists = ([number] * number for number in range(1, 5))

    with shardstream.DatasetWriter(tmp_path, vocab_size=10, eos_id=0, shard_tokens=3) as writer:
        for ids in lists:
            writer.append_document(ids)

    assert shardstream.open(tmp_path)[:].tolist() == [1, 0, 2, 2, 0, 3, 3, 3, 0, 4, 4, 4, 4, 0]
