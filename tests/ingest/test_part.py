"""One part: documents to ids, in one process."""

import json
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import shardstream
from shardstream import FormatError
from shardstream.format.manifest import TokenizerIdentity
from shardstream.ingest import input_file, text_file
from shardstream.ingest import part as part_module
from shardstream.ingest.byte_tokenizer import ByteTokenizer
from shardstream.ingest.json_tokenizer import JsonTokenizer, train_byte_bpe
from shardstream.ingest.part import Advance, Settings, write_part
from shardstream.ingest.plan import plan_parts
from shardstream.ingest.tokenizer import END_OF_TEXT, Tokenizer

WORDS = ["the ", "Größe", " and", "日本", "\n\n", "naïve", "  x", "🙂", "don't ", END_OF_TEXT]
BPE = train_byte_bpe(["the tree and the Größe don't naïve 日本 " * 5], vocab_size=300)


def _with_bos() -> bytes:
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(BPE_JSON))
    tokenizer.add_special_tokens(["<|begin_of_text|>", END_OF_TEXT])
    return tokenizer.to_str().encode()


def _json_of(tokenizer: JsonTokenizer) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder, "t.json"))
        return json.loads(Path(folder, "t.json").read_bytes())


BPE_JSON = _json_of(BPE)
BPE_WITH_BOS = _with_bos()

Write = Callable[..., shardstream.TokenDataset]


def writer_in(folder: Path) -> Write:
    """What writes all that files hold as one part, and opens it."""

    def run(*paths: Path, tokenizer: Tokenizer = BPE, told: list[Advance] | None = None, **options: Any) -> Any:
        identity = TokenizerIdentity(name="t", sha256=tokenizer.sha256, eos_id=tokenizer.eos_id)
        settings: dict[str, Any] = {
            "tokenizer": identity,
            "vocab_size": tokenizer.vocab_size,
            "text_field": "text",
            "add_bos": False,
            "special_text": "encode",
            "on_error": "stop",
            "shuffle_seed": None,
            "side_files": True,
            "shard_tokens": 1000,
            "compression": None,
        }
        index = options.pop("index", 0)
        uri = options.pop("uri", folder / "part")
        ranges = [one for part in plan_parts(list(map(str, paths))).parts for one in part]
        write_part(
            ranges,
            str(uri),
            index=index,
            settings=Settings(**(settings | options)),
            tokenizer=tokenizer,
            advance=(told if told is not None else []).append,
        )
        return shardstream.open(uri)

    return run


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return writer_in(tmp_path)


def json_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def texts_in(dataset: shardstream.TokenDataset, tokenizer: JsonTokenizer = BPE) -> list[str]:
    eos_id = dataset.manifest.eos_id
    assert eos_id is not None
    ids = dataset[:] if len(dataset) else np.empty(0, dtype=np.uint16)
    stops = np.flatnonzero(ids == eos_id)
    starts = np.concatenate(([0], stops + 1))[: len(stops)]
    return [tokenizer.decode(ids[start:stop]) for start, stop in zip(starts, stops, strict=True)]


def some_texts(num_documents: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(WORDS, k=rng.randrange(1, 30))) for _ in range(num_documents)]


def test_text_that_spells_a_special_token_stays_text(write, tmp_path: Path) -> None:
    """``<|endoftext|>`` in a document is thirteen characters, never a separator."""
    texts = some_texts(50, seed=1)
    dataset = write(json_lines(tmp_path / "in.jsonl", texts))

    assert any(END_OF_TEXT in text for text in texts)
    assert texts_in(dataset) == texts
    assert dataset.manifest.num_documents == 50


def test_text_that_spells_a_special_token_can_be_refused(write, tmp_path: Path) -> None:
    """Then the document is a bad record, which stops the part or is left out."""
    path = json_lines(tmp_path / "in.jsonl", ["one", f"a {END_OF_TEXT} b", "two"])

    with pytest.raises(FormatError, match=r"in.jsonl, byte \d+: the text spells the special token '<|endoftext|>'"):
        write(path, special_text="refuse", uri=tmp_path / "stopped")
    told: list[Advance] = []
    dataset = write(path, special_text="refuse", on_error="skip", told=told)

    assert texts_in(dataset) == ["one", "two"]
    assert dataset.manifest.metadata == {"num_empty_documents": 0, "num_bad_records": 1}
    assert sum(one.num_bad_records for one in told) == 1
    assert [record.partition(": ")[2] for record in shown_of(told)] == [
        f"the text spells the special token {END_OF_TEXT!r}; special_text='encode' takes it as text"
    ]


def test_of_many_bad_records_the_first_are_told(write, tmp_path: Path) -> None:
    """All are counted; twenty are named."""
    (path := tmp_path / "in.jsonl").write_text("no JSON\n" * 50)
    told: list[Advance] = []
    write(path, on_error="skip", told=told)

    assert sum(one.num_bad_records for one in told) == 50
    assert [record.startswith(f"{path}, byte {8 * number}") for number, record in enumerate(shown_of(told))] == [
        True
    ] * 20


def shown_of(told: list[Advance]) -> list[str]:
    return [record for one in told for record in one.left_out]


def test_progress_is_told_now_and_then(write, tmp_path: Path, monkeypatch) -> None:
    """At once, then twice a second at most, and at the end, however many documents are dropped; all adds up."""
    monkeypatch.setattr(part_module, "_PROGRESS_S", 10**9)
    path = json_lines(tmp_path / "in.jsonl", [*[""] * 1000, "one"])
    told: list[Advance] = []
    write(path, told=told)

    assert len(told) == 2
    assert sum(told, Advance()) == Advance(num_documents=1, num_tokens=4, num_bytes=path.stat().st_size)


def test_empty_documents_are_dropped_and_counted(write, tmp_path: Path) -> None:
    """So is white space of which a tokenizer makes nothing; other white space is a document."""
    dataset = write(json_lines(tmp_path / "in.jsonl", ["", "one", "", " \n"]))

    assert texts_in(dataset) == ["one", " \n"]
    assert dataset.manifest.metadata["num_empty_documents"] == 2


def test_bos_begins_every_document(write, tmp_path: Path) -> None:
    """The id stands before the ids of the text, once."""
    bpe = JsonTokenizer(BPE_WITH_BOS, source="bos")
    dataset = write(json_lines(tmp_path / "in.jsonl", ["the", "tree"]), tokenizer=bpe, add_bos=True)

    assert bpe.bos_id is not None
    starts = [0, int(np.flatnonzero(dataset[:] == dataset.manifest.eos_id)[0]) + 1]
    assert dataset[:][starts].tolist() == [bpe.bos_id] * 2
    assert dataset.manifest.num_documents == 2


LONG = -1


@given(
    sizes=st.lists(st.integers(0, 900) | st.just(LONG), max_size=60),
    seed=st.integers(0, 2**70),
    part=st.integers(0, 9),
)
def test_a_shuffle_keeps_every_document(sizes: list[int], seed: int, part: int) -> None:
    """It is a permutation, the same one for the same seed and part; a long document keeps its place."""
    documents: list[Any] = [
        part_module._LongDocument(iter(()), "a", str(number))
        if size == LONG
        else part_module._Document("x" * size, "a", str(number), size)
        for number, size in enumerate(sizes)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part_module, "SHUFFLE_CHARACTERS", 5000)
        first, second = (list(part_module._shuffled(documents, seed=seed, part=part)) for _ in range(2))

    assert first == second
    assert sorted(first, key=documents.index) == documents
    assert [index for index, one in enumerate(first) if isinstance(one, part_module._LongDocument)] == [
        index for index, size in enumerate(sizes) if size == LONG
    ]


def test_a_part_is_shuffled_the_same_way_again(write, tmp_path: Path) -> None:
    """Two runs of one part write the same dataset, which holds every document."""
    path = json_lines(tmp_path / "in.jsonl", texts := some_texts(60, seed=3))
    first, second = (texts_in(write(path, uri=tmp_path / name, shuffle_seed=2**70)) for name in ("a", "b"))

    assert first == second != texts
    assert sorted(first) == sorted(texts)


def test_a_shuffle_depends_on_seed_and_part(write, tmp_path: Path) -> None:
    """Documents leave their places; another seed, or part, puts them elsewhere."""
    path = json_lines(tmp_path / "in.jsonl", texts := [f"document {number}" for number in range(100)])
    orders = [
        texts_in(write(path, uri=tmp_path / f"{seed}-{index}", shuffle_seed=seed, index=index))
        for seed, index in [(0, 0), (0, 1), (1, 0), (1, 1)]
    ]

    assert all(sorted(order) == sorted(texts) for order in orders)
    for one in [texts, *orders]:
        for other in [texts, *orders]:
            assert one is other or sum(a == b for a, b in zip(one, other, strict=True)) < 15


def test_documents_are_shuffled_within_a_bounded_buffer(write, tmp_path: Path, monkeypatch) -> None:
    """When the buffer is full its documents are written, in their new order, before any later one.

    A document fills it by its characters, and by 256 more, since short ones take memory beside their text.
    """
    monkeypatch.setattr(part_module, "SHUFFLE_CHARACTERS", 10 * (3 + 256))
    path = json_lines(tmp_path / "in.jsonl", [f"{number:03}" for number in range(100)])
    order = texts_in(write(path, shuffle_seed=5))

    assert order != sorted(order)
    assert [sorted(order[start : start + 10]) for start in range(0, 100, 10)] == [
        [f"{number:03}" for number in range(start, start + 10)] for start in range(0, 100, 10)
    ]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text files of more than 300 bytes come in pieces of some 100 characters."""
    monkeypatch.setattr(text_file, "_MAX_WHOLE_CHARACTERS", 300)
    monkeypatch.setattr(text_file, "_PIECE_CHARACTERS", 100)
    monkeypatch.setattr(input_file, "_BLOCK_BYTES", 70)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("shuffle_seed", [None, 3])
def test_a_document_longer_than_memory_has_the_ids_of_the_whole(write, tmp_path: Path, shuffle_seed: Any) -> None:
    """It comes in pieces, cut where that changes no id, and is one document, between its neighbours."""
    long = " ".join(["the tree", "Größe and", "don't", "\nnaïve", "日本 x"] * 300)
    for name, text in (("a", "before"), ("b", long), ("c", "after")):
        (tmp_path / f"{name}.txt").write_text(text)
    told: list[Advance] = []
    paths = [tmp_path / f"{name}.txt" for name in "abc"]
    dataset = write(*paths, shuffle_seed=shuffle_seed, told=told)

    assert texts_in(dataset) == ["before", long, "after"]
    (whole,) = BPE.encode_batch([long])
    start = len(BPE.encode_batch(["before"])[0]) + 1
    assert dataset[start : start + len(whole)].tolist() == whole.tolist()
    assert sum(one.num_documents for one in told) == dataset.manifest.num_documents == 3
    assert sum(one.num_tokens for one in told) == len(dataset)
    assert sum(one.num_bytes for one in told) == sum(path.stat().st_size for path in paths)
    assert dataset.document_at(start + 100).source.endswith("b.txt")


@pytest.mark.usefixtures("small_pieces")
def test_bos_begins_a_long_document_too(write, tmp_path: Path) -> None:
    """Once, before its first piece."""
    bpe = JsonTokenizer(BPE_WITH_BOS, source="bos")
    (tmp_path / "a.txt").write_text("the tree " * 500)
    ids = write(tmp_path / "a.txt", tokenizer=bpe, add_bos=True)[:].tolist()

    assert ids == [bpe.bos_id, *bpe.encode_batch(["the tree " * 500])[0].tolist(), bpe.eos_id]


@pytest.mark.usefixtures("small_pieces")
def test_a_long_document_without_a_place_to_cut_is_refused_when_it_outgrows_memory(
    write, tmp_path: Path, monkeypatch
) -> None:
    """Up to a bound it is held until it ends; beyond, the message says what to do."""
    (tmp_path / "a.txt").write_text("x" * 5000)
    assert texts_in(write(tmp_path / "a.txt")) == ["x" * 5000]
    monkeypatch.setattr(part_module, "_MAX_HELD_CHARACTERS", 1000)

    with pytest.raises(FormatError, match="a.txt: .* characters without a place .* split the document"):
        write(tmp_path / "a.txt", uri=tmp_path / "other")


@pytest.mark.usefixtures("small_pieces")
def test_a_long_document_that_spells_a_special_token_always_stops(write, tmp_path: Path) -> None:
    """When it is found, ids of the document may be durable: it cannot be left out any more."""
    (tmp_path / "a.txt").write_text("the tree " * 200 + END_OF_TEXT)

    with pytest.raises(FormatError, match="a.txt: the text spells the special token"):
        write(tmp_path / "a.txt", special_text="refuse", on_error="skip")


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), BPE], ids=["bytes", "bpe"])
@pytest.mark.parametrize("num_before", range(93, 107))
def test_a_special_token_across_two_pieces_is_found(write, tmp_path: Path, num_before: int, tokenizer) -> None:
    """Wherever the pieces of a long document meet, also where the characters before are encoded already."""
    (tmp_path / "a.txt").write_text("x " * (num_before // 2) + "x" * (num_before % 2) + END_OF_TEXT + " the tree" * 100)

    with pytest.raises(FormatError, match="a.txt: the text spells the special token"):
        write(tmp_path / "a.txt", special_text="refuse", tokenizer=tokenizer)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("stop_at", [0, 1, 2, 7])
def test_a_part_that_was_begun_goes_on(write, tmp_path: Path, monkeypatch, stop_at: int) -> None:
    """Whatever was durable when it stopped, also inside a long document, the part ends as if it never had."""
    monkeypatch.setattr(part_module, "_PROGRESS_S", 0)
    paths = [json_lines(tmp_path / "a.jsonl", some_texts(300, seed=2)), tmp_path / "b.txt", tmp_path / "c.jsonl"]
    paths[1].write_text("the tree and Größe " * 2000)
    json_lines(paths[2], some_texts(100, seed=4))
    expected = write(*paths, uri=tmp_path / "expected").manifest
    told: list[Advance] = []

    class Stopped(Exception):  # noqa: N818
        pass

    class Told(list[Advance]):
        def append(self, one: Advance) -> None:
            super().append(one)
            if sum(before.num_tokens for before in self) > 2500 * (stop_at + 1):
                raise Stopped

    with pytest.raises(Stopped):
        write(*paths, told=Told())
    again = write(*paths, told=told).manifest

    assert (again.digest, again.shards) == (expected.digest, expected.shards)
    assert sum(one.num_bytes for one in told) == sum(path.stat().st_size for path in paths)
    assert again.num_documents == expected.num_documents == 401


def test_inputs_that_shrank_are_refused(write, tmp_path: Path, monkeypatch) -> None:
    """More documents durable than the inputs hold: they are not those of the job."""
    monkeypatch.setattr(part_module, "_BATCH_CHARACTERS", 500)
    path = json_lines(tmp_path / "in.jsonl", [*some_texts(400, seed=2), "bad"])
    path.write_text(path.read_text() + "no JSON\n")
    with pytest.raises(FormatError):
        write(path)
    json_lines(path, ["the"])

    with pytest.raises(FormatError, match="documents are durable, and the inputs hold fewer"):
        write(path)


def test_ids_beyond_the_vocabulary_stop_the_part(write, tmp_path: Path) -> None:
    """A tokenizer that gives an id beyond what it claims is found out, and the document named."""
    path = json_lines(tmp_path / "in.jsonl", ["a"])

    with pytest.raises(FormatError, match=r"in.jsonl, byte 0: token at position 0 is \d+; wanted 0 to 4"):
        write(path, vocab_size=5)


class LettersTokenizer(ByteTokenizer):
    """One that cannot take every text, as libraries may."""

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        if not all(text.isalpha() for text in texts):
            raise ValueError("no letters")
        return super().encode_batch(texts)


def test_a_text_that_a_tokenizer_cannot_take_is_named(write, tmp_path: Path) -> None:
    """The document stops the part, and not its neighbours; skipping does not help, and the message says what does."""
    path = json_lines(tmp_path / "in.jsonl", ["before", "2 000", "after"])

    with pytest.raises(
        FormatError,
        match=r"in.jsonl, byte 19: cannot be tokenized: no letters; on_error='skip' cannot leave it out: "
        "mend or remove it, and start again with overwrite=True$",
    ):
        write(path, tokenizer=LettersTokenizer(), on_error="skip")
