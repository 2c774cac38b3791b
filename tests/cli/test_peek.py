"""``shardstream peek``: windows as ids and as text."""

import json
from pathlib import Path

import pytest

import shardstream

TOKENS = range(100, 200)


@pytest.mark.parametrize(
    ("arguments", "first", "last"),
    [
        (["--position", "0"], 100, 163),
        (["--position", "90"], 190, 199),
        (["--position", "-3"], 197, 199),
        (["--position", "-3", "--length", "2"], 197, 198),
        (["--length", "100"], 100, 199),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_a_window_is_shown_as_ids(run, write_dataset, arguments: list[str], first: int, last: int) -> None:
    """A position counts from the start, or below 0 from the end; without a length the window ends with the data."""
    dataset = write_dataset(TOKENS)

    head, ids = run("peek", dataset.uri, *arguments).stdout.splitlines()

    assert head == f"tokens {first - 100} to {last - 100} of 100"
    assert ids == " ".join(map(str, range(first, last + 1)))


def test_a_random_window_comes_again_with_its_seed(run, write_dataset) -> None:
    """Without a position the window is a random one, the same for the same seed."""
    dataset = write_dataset(range(1000))
    windows = {run("peek", dataset.uri, "--length", 3, "--seed", seed, "--json").stdout for seed in (1, 1, 1, 2)}
    unseeded = json.loads(run("peek", dataset.uri, "--json").stdout)

    assert len(windows) == 2
    assert unseeded["tokens"] == list(range(unseeded["position"], unseeded["position"] + 64))
    assert (unseeded["text"], unseeded["document"], unseeded["notes"]) == (None, None, [])


def test_the_first_tokens_document_is_shown(run, tmp_path: Path) -> None:
    """With side files the source and key of the first token's document are shown; without, nothing is said of it."""
    with shardstream.DatasetWriter(
        tmp_path / "dataset", vocab_size=100, eos_id=9, shard_tokens=4, side_files=True
    ) as writer:
        writer.append_document([1] * 6, source="books/a\x1b.jsonl", key="byte 17")
        writer.append_document([2], source="notes.txt")
        writer.append_document([3])
    lines = [run("peek", "dataset", "--position", position).stdout.splitlines()[1] for position in (5, 7, -1)]
    report = json.loads(run("peek", "dataset", "--position", "6", "--json").stdout)

    assert lines == [
        "from books/a\\x1b.jsonl, byte 17, 5 tokens into the document",
        "from notes.txt, 0 tokens into the document",
        "from a source without a name, 1 token into the document",
    ]
    assert report["document"] == {"start": 0, "source": "books/a\x1b.jsonl", "key": "byte 17"}


def test_tokens_are_shown_without_their_side_file(run, tmp_path: Path) -> None:
    """Where side files are lost or damaged the tokens are shown, and a note says why their document is not."""
    with shardstream.DatasetWriter(tmp_path / "dataset", vocab_size=100, eos_id=9, side_files=True) as writer:
        writer.append_document([1], source="a")
    (tmp_path / "dataset" / "shard-000000.documents.parquet").unlink()

    done = run("peek", "dataset", "--position", 0)

    assert done.stdout == "tokens 0 to 1 of 2\n1 9\n"
    assert done.stderr.startswith("Note: where it comes from is not known: ")
    assert "shard-000000.documents.parquet: cannot read: there is no such file" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--position", "100"], "[100, 101)"),
        (["--position", "-101"], "[-1, 63)"),
        (["--position", "99", "--length", "2"], "[99, 101)"),
        (["--length", "101"], "[0, 101)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_a_window_beyond_the_dataset_is_wrong_use(run, write_dataset, arguments: list[str], named: str) -> None:
    """A range that does not lie within the dataset is named, with the positions that there are."""
    dataset = write_dataset(TOKENS)

    assert run("peek", dataset.uri, *arguments, status=2).stderr.startswith(
        f"Error: tokens {named} do not lie within the dataset, whose positions are [0, 100)\n"
    )


def test_text_is_shown_with_a_tokenizer(run, tmp_path: Path) -> None:
    """With a tokenizer.json the window is decoded; what could steer the terminal is spelt out; all fits: no notes."""
    tokenizers = pytest.importorskip("shardstream.ingest.json_tokenizer")
    tokenizer = tokenizers.train_byte_bpe(["hello there, hello world"], vocab_size=270)
    tokenizer.save(tmp_path / "tokenizer.json")
    [ids] = tokenizer.encode_batch(["hello\tw語rld\n\x1b[31m"])
    with shardstream.DatasetWriter(
        tmp_path / "dataset", vocab_size=tokenizer.vocab_size, eos_id=0, tokenizer={"sha256": tokenizer.sha256}
    ) as writer:
        writer.append_document(ids)

    done = run("peek", "dataset", "--tokenizer", "tokenizer.json")
    latin = run("peek", "dataset", "--tokenizer", "tokenizer.json", PYTHONIOENCODING="latin-1")

    assert done.stdout.endswith("\n\nas text\nhello\tw語rld\n\\x1b[31m<|endoftext|>\n")
    assert done.stderr == ""
    assert "\nhello\tw\\u8a9erld\n" in latin.stdout


def test_a_tokenizer_that_does_not_suit_is_noted(run, write_dataset, tmp_path: Path) -> None:
    """Another tokenizer, one with more ids than the dataset, and tokens that it lacks are all pointed out."""
    tokenizers = pytest.importorskip("shardstream.ingest.json_tokenizer")
    tokenizer = tokenizers.train_byte_bpe(["ab"], vocab_size=257)
    tokenizer.save(tmp_path / "tokenizer.json")
    small = write_dataset([65, 66], vocab_size=100, uri=tmp_path / "small", tokenizer={"sha256": "00" * 32})
    large = write_dataset([65, 999, 66], uri=tmp_path / "large")
    both = ("--position", "0", "--tokenizer", "tokenizer.json")

    noted = run("peek", small.uri, *both)
    report = json.loads(run("peek", large.uri, *both, "--json").stdout)

    assert (
        f"Note: this is not the tokenizer that the dataset records: its sha256 is {tokenizer.sha256}, " in noted.stderr
    )
    assert "Note: the tokenizer has 257 ids, and the dataset's vocab_size is 100: " in noted.stderr
    assert report["notes"] == [
        "1 of these tokens are beyond the tokenizer's 257 ids, and left out of the text",
    ]
    assert report["text"] == tokenizer.decode([65, 66])


def test_a_tokenizer_may_be_named(run, write_dataset) -> None:
    """What names a tokenizer elsewhere names it here: bytes need no file."""
    uri = write_dataset(list("café".encode()), vocab_size=257).uri

    assert run("peek", uri, "--tokenizer", "bytes").stdout.endswith("\n\nas text\ncafé\n")


def test_a_file_that_is_no_tokenizer_is_wrong_use(run, write_dataset, tmp_path: Path) -> None:
    """A tokenizer that is missing, or none, is named."""
    (tmp_path / "x.json").write_text("{}")
    uri = write_dataset([1]).uri

    assert "x.json: not a tokenizer.json: " in run("peek", uri, "--tokenizer", "x.json", status=2).stderr
    assert "y.json: No such file or directory\n" in run("peek", uri, "--tokenizer", "y.json", status=2).stderr
