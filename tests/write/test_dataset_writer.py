"""The writer: what it takes, what it refuses, and what is there after anything that can happen."""

import hashlib
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

import shardstream
from shardstream import DatasetWriter, ResumeError, ShardEntry, StorageError
from shardstream.format.integrity import content_problem
from shardstream.write.dataset_writer import DEFAULT_SHARD_TOKENS, checked_metadata

KILLED_WRITER = Path(__file__).with_name("killed_writer.py")
EOS = 99

documents_strategy = st.lists(st.lists(st.integers(0, EOS - 1), max_size=12), max_size=12)


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_documents(uri: Any, documents: list[list[int]], **options: Any) -> shardstream.Manifest:
    with DatasetWriter(uri, vocab_size=100, eos_id=EOS, **options) as writer:
        for document in documents[writer.num_documents :]:
            writer.append_document(document)
    return writer.manifest


@settings(max_examples=40)
@given(
    pieces=st.lists(st.lists(st.integers(0, 99_999), max_size=30), max_size=10),
    shard_tokens=st.integers(1, 17),
    vocab_size=st.sampled_from([100_000, 65_536, 65_537]),
)
def test_what_is_appended_is_what_is_read(pieces, shard_tokens, vocab_size, tmp_path_factory) -> None:
    """Any pieces, cut into shards of any size, come back as their concatenation, with true statistics."""
    folder = tmp_path_factory.mktemp("dataset")
    pieces = [[token % vocab_size for token in piece] for piece in pieces]
    expected = [token for piece in pieces for token in piece]
    with DatasetWriter(folder, vocab_size=vocab_size, shard_tokens=shard_tokens, tokenizer={"eos_id": 7}) as writer:
        for piece in pieces:
            writer.append(piece)
            assert writer.num_tokens <= len(expected)
    dataset = shardstream.open(folder)

    assert dataset[:].tolist() == expected
    assert dataset.dtype == (np.uint16 if vocab_size <= 65_536 else np.uint32)
    assert dataset.verify().ok
    for index, shard in enumerate(dataset.manifest.shards):
        tokens = expected[index * shard_tokens : (index + 1) * shard_tokens]
        assert (min(tokens), max(tokens), tokens.count(7)) == (shard.min_token, shard.max_token, shard.num_eos)
    assert names_in(folder) == {"manifest.json", *(shard.name for shard in dataset.manifest.shards)}


def raw_bytes_of(folder: Path, shard: ShardEntry) -> bytes:
    """A shard as it was before it was compressed, by zstandard alone."""
    data = (folder / shard.name).read_bytes()
    return zstandard.ZstdDecompressor().decompressobj().decompress(data) if shard.stored else data


@settings(max_examples=25)
@given(
    pieces=st.lists(st.lists(st.integers(0, 99_999), max_size=30), max_size=10),
    shard_tokens=st.integers(1, 17),
    vocab_size=st.sampled_from([100_000, 65_536]),
)
def test_compression_changes_how_shards_are_stored_and_nothing_else(
    pieces, shard_tokens, vocab_size, tmp_path_factory
) -> None:
    """Compressed shards are the raw ones once they are decompressed; digest and rows are those without compression."""
    folder = tmp_path_factory.mktemp("datasets")
    pieces = [[token % vocab_size for token in piece] for piece in pieces]
    raw, compressed = (
        written(folder / str(compression), pieces, vocab_size, shard_tokens, compression)
        for compression in (None, "zstd")
    )

    assert compressed.digest == raw.digest
    assert [
        msgspec.structs.replace(shard, name=shard.name.removesuffix(".zst"), stored=None) for shard in compressed.shards
    ] == list(raw.shards)
    for shard in compressed.shards:
        assert raw_bytes_of(folder / "zstd", shard) == (folder / "None" / shard.name[: -len(".zst")]).read_bytes()
        assert shard.stored is not None
        with (folder / "zstd" / shard.name).open("rb") as file:
            assert content_problem(compressed, shard, file) is None
    assert names_in(folder / "zstd") == {"manifest.json", *(shard.name for shard in compressed.shards)}


def written(
    folder: Path, pieces: list[list[int]], vocab_size: int, shard_tokens: int, compression: Any
) -> shardstream.Manifest:
    options: dict[str, Any] = {"eos_id": 7, "compression": compression}
    with DatasetWriter(folder, vocab_size=vocab_size, shard_tokens=shard_tokens, **options) as writer:
        for piece in pieces:
            writer.append(piece)
    return writer.manifest


def test_shards_are_what_memmap_reads(tmp_path: Path) -> None:
    """A shard is raw little-endian ids and nothing else."""
    with DatasetWriter(tmp_path, vocab_size=2**17, shard_tokens=4) as writer:
        writer.append([1, 2, 70_000, 3, 4])

    np.testing.assert_array_equal([1, 2, 70_000, 3], np.memmap(tmp_path / "shard-000000.bin", "<u4", mode="r"))
    assert (tmp_path / "shard-000001.bin").read_bytes() == b"\x04\0\0\0"


def test_documents_end_with_eos_and_are_counted(tmp_path: Path) -> None:
    """append_document adds eos_id after each document, the empty one too, and counts it."""
    manifest = write_documents(tmp_path, [[1, 2], [], [3]], shard_tokens=4, tokenizer={"name": "t"}, metadata={"a": 1})

    assert shardstream.open(tmp_path)[:].tolist() == [1, 2, EOS, EOS, 3, EOS]
    assert manifest.num_documents == 3
    assert [shard.num_eos for shard in manifest.shards] == [2, 1]
    assert manifest.tokenizer == shardstream.TokenizerIdentity(name="t", eos_id=EOS)
    assert manifest.metadata == {"a": 1}
    assert manifest.creator.startswith("shardstream ")


def test_the_default_shard_is_a_power_of_two() -> None:
    """The default shard size is a power of two."""
    assert DEFAULT_SHARD_TOKENS & (DEFAULT_SHARD_TOKENS - 1) == 0


def test_a_shard_of_many_blocks(tmp_path: Path) -> None:
    """Shards larger than a block, in pieces that fit neither, are whole."""
    tokens = np.random.default_rng(0).integers(0, 60_000, 5_500_001)
    with DatasetWriter(tmp_path, vocab_size=60_000, shard_tokens=2**22 + 5) as writer:
        for start in range(0, len(tokens), 1_234_567):
            writer.append(tokens[start : start + 1_234_567])

    dataset = shardstream.open(tmp_path)
    np.testing.assert_array_equal(tokens, dataset[:])
    assert dataset.verify().ok


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([5, 100], r"token at position 4 is 100; wanted 0 to 99 \(vocab_size is 100\)"),
        (np.array([5, 2**16 + 3]), "token at position 4 is 65539"),
        ([-1], "token at position 3 is -1"),
        (np.array([0, -7], np.int8), "token at position 4 is -7"),
    ],
)
def test_an_id_outside_the_vocabulary_is_refused_and_nothing_of_the_call_is_written(tokens, message, tmp_path) -> None:
    """Promise 4: an id below 0 or not below vocab_size names its position, wraps nowhere, and harms nothing before it."""
    with DatasetWriter(tmp_path, vocab_size=100, shard_tokens=2, eos_id=EOS) as writer:
        writer.append([1, 2, 3])
        for append in (writer.append, writer.append_document):
            with pytest.raises(ValueError, match=message):
                append(tokens)
        assert writer.num_tokens == 3
        writer.append([4])

    assert shardstream.open(tmp_path)[:].tolist() == [1, 2, 3, 4]


def test_eos_inside_a_document_is_refused_unless_allowed(tmp_path: Path) -> None:
    """A document that holds eos_id is refused with its position, or taken when that was asked for."""
    with (
        DatasetWriter(tmp_path / "a", vocab_size=100, eos_id=EOS) as writer,
        pytest.raises(
            ValueError, match="token at position 1 is eos_id 99, inside document 0; .*allow_eos_in_documents"
        ),
    ):
        writer.append_document([1, EOS, 2])
    with DatasetWriter(tmp_path / "b", vocab_size=100, eos_id=EOS, allow_eos_in_documents=True) as writer:
        writer.append_document([1, EOS, 2])

    assert shardstream.open(tmp_path / "b")[:].tolist() == [1, EOS, 2, EOS]


@pytest.mark.parametrize("eos_id", [0, 50, 99])
def test_eos_is_found_wherever_it_stands_in_the_vocabulary(eos_id: int, tmp_path: Path) -> None:
    """Whether eos_id is the first id, the last or one between, documents may have all others, and not that one."""
    others = [token for token in range(100) if token != eos_id]
    with DatasetWriter(tmp_path, vocab_size=100, eos_id=eos_id) as writer:
        writer.append_document(others)
        for tokens in ([3, eos_id, 4], [eos_id]):
            with pytest.raises(ValueError, match=f"is eos_id {eos_id}, inside document 1"):
                writer.append_document(tokens)
        writer.append_document(iter([others]))

    assert shardstream.open(tmp_path)[:].tolist() == [*others, eos_id] * 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"vocab_size": 0}, ValueError, "vocab_size is 0; wanted 1 to 4294967296"),
        ({"vocab_size": 2**32 + 1}, ValueError, "vocab_size is 4294967297"),
        ({"vocab_size": 1.5}, TypeError, "float"),
        ({"shard_tokens": 0}, ValueError, "shard_tokens is 0; wanted at least 1"),
        ({"compression": "gzip"}, ValueError, "compression is 'gzip'; wanted None or 'zstd'"),
        ({"compression": True}, ValueError, "compression is True; wanted None or 'zstd'"),
        ({"eos_id": 100}, ValueError, "eos_id is 100; wanted 0 to 99"),
        ({"eos_id": -1}, ValueError, "eos_id"),
        ({"eos_id": 1, "tokenizer": {"eos_id": 2}}, ValueError, r"eos_id is 1, but tokenizer\['eos_id'\] is 2"),
        ({"tokenizer": {"pad_id": 100}}, ValueError, "pad_id is 100"),
        ({"tokenizer": {"nom": "gpt2"}}, ValueError, "nom.*wanted any of name, sha256"),
        ({"tokenizer": {"sha256": "xyz"}}, ValueError, "sha256"),
        ({"metadata": {"a": object()}}, TypeError, "object"),
        ({"overwrite": True, "resume": True}, ValueError, "overwrite and resume contradict"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_touched(options, error, message, tmp_path) -> None:
    """A wrong argument raises at once and creates nothing."""
    with pytest.raises(error, match=message):
        DatasetWriter(tmp_path / "dataset", **{"vocab_size": 100, **options})
    assert not (tmp_path / "dataset").exists()


def test_append_document_needs_an_eos_id(tmp_path: Path) -> None:
    """Without eos_id, documents cannot be ended and are refused."""
    with DatasetWriter(tmp_path, vocab_size=100) as writer, pytest.raises(ValueError, match="needs an eos_id"):
        writer.append_document([1])


def test_an_exception_publishes_nothing_and_keeps_what_is_durable(tmp_path: Path) -> None:
    """An exception inside the ``with`` block leaves no dataset; resume=True goes on from the durable shards."""
    documents = [[token] * 5 for token in range(8)]
    with (
        pytest.raises(KeyboardInterrupt),
        DatasetWriter(tmp_path, vocab_size=100, shard_tokens=8, eos_id=EOS) as writer,
    ):
        for document in documents[:6]:
            writer.append_document(document)
        raise KeyboardInterrupt
    with pytest.raises(StorageError, match="no such file"):
        shardstream.open(tmp_path)
    with pytest.raises(ValueError, match="the writer is closed; nothing was published"):
        writer.append([1])
    with pytest.raises(ValueError, match="nothing is published yet"):
        writer.manifest  # noqa: B018 - the property raises
    with pytest.raises(StorageError, match="an unfinished dataset: resume=True continues it, overwrite=True starts"):
        DatasetWriter(tmp_path, vocab_size=100)

    resumed = DatasetWriter(tmp_path, vocab_size=100, shard_tokens=8, eos_id=EOS, resume=True)
    assert (resumed.num_tokens, resumed.num_documents) == (32, 5)
    for document in documents[resumed.num_documents :]:
        resumed.append_document(document)
    resumed.close()
    assert resumed.manifest.digest == write_documents(tmp_path.with_name("never"), documents, shard_tokens=8).digest


def test_an_exception_before_the_first_shard_leaves_an_empty_place(tmp_path: Path) -> None:
    """Where nothing became durable, nothing is left behind, and a new writer may begin."""
    with pytest.raises(ZeroDivisionError), DatasetWriter(tmp_path, vocab_size=100) as writer:
        writer.append([1, 2])
        raise ZeroDivisionError

    assert names_in(tmp_path) == set()
    assert write_documents(tmp_path, [[1]]).num_tokens == 2


@settings(max_examples=40)
@given(
    documents=documents_strategy,
    shard_tokens=st.integers(1, 9),
    compression=st.sampled_from([None, "zstd"]),
    data=st.data(),
)
def test_resumed_at_any_document_the_digest_is_the_same(
    documents, shard_tokens, compression, data, tmp_path_factory
) -> None:
    """Promise 14: stopped after any documents and resumed, the dataset is byte for byte that of a run never stopped."""
    folder = tmp_path_factory.mktemp("dataset")
    stop = data.draw(st.integers(0, len(documents)))
    options = {"shard_tokens": shard_tokens, "compression": compression}
    with (
        pytest.raises(ZeroDivisionError),
        DatasetWriter(folder / "a", vocab_size=100, eos_id=EOS, **options) as writer,
    ):
        for document in documents[:stop]:
            writer.append_document(document)
        raise ZeroDivisionError
    resumed = write_documents(folder / "a", documents, **options, resume=True)
    whole = write_documents(folder / "b", documents, **options)

    assert resumed == whole
    assert files_in(folder / "a") == files_in(folder / "b")


@settings(max_examples=25)
@given(tokens=st.lists(st.integers(0, 99), max_size=60), stop=st.integers(0, 60))
def test_a_resumed_stream_goes_on_at_num_tokens(tokens, stop, tmp_path_factory) -> None:
    """Without documents, sending from position num_tokens on ends in the same digest."""
    folder = tmp_path_factory.mktemp("dataset")
    with pytest.raises(ZeroDivisionError), DatasetWriter(folder / "a", vocab_size=100, shard_tokens=7) as writer:
        writer.append(tokens[:stop])
        raise ZeroDivisionError
    with DatasetWriter(folder / "a", vocab_size=100, shard_tokens=7, resume=True) as resumed:
        resumed.append(tokens[resumed.num_tokens :])
    with DatasetWriter(folder / "b", vocab_size=100, shard_tokens=7) as whole:
        whole.append(tokens)

    assert resumed.manifest == whole.manifest


def stopped_in_a_document(folder: Path) -> None:
    """A run that ended with 8 durable tokens: document 0, and 4 of the 9 tokens of document 1."""
    with pytest.raises(ZeroDivisionError), DatasetWriter(folder, vocab_size=100, eos_id=EOS, shard_tokens=8) as writer:
        writer.append_document([1, 2, 3])
        writer.append_document([11, 12, 13, 14, 15, 16])
        raise ZeroDivisionError


def test_a_resumed_run_drops_what_is_durable_of_the_document_sent_again(tmp_path: Path) -> None:
    """The document in which a run stopped is sent whole again, and its durable tokens are not doubled."""
    stopped_in_a_document(tmp_path)
    with DatasetWriter(tmp_path, vocab_size=100, eos_id=EOS, shard_tokens=8, resume=True) as writer:
        assert (writer.num_tokens, writer.num_documents) == (8, 1)
        writer.append_document([11, 12, 13, 14, 15, 16])
        assert (writer.num_tokens, writer.num_documents) == (11, 2)

    assert shardstream.open(tmp_path)[:].tolist() == [1, 2, 3, EOS, 11, 12, 13, 14, 15, 16, EOS]


@settings(max_examples=30)
@given(
    documents=st.lists(st.tuples(st.lists(st.integers(0, EOS), max_size=12), st.booleans()), max_size=6),
    shard_tokens=st.integers(1, 9),
    stop=st.integers(0, 60),
    data=st.data(),
)
def test_a_document_in_pieces_is_the_document(documents, shard_tokens, stop, data, tmp_path_factory) -> None:
    """However documents are cut, shards, side files, journal and manifest are the same bytes, resumed anywhere or not."""
    folder = tmp_path_factory.mktemp("datasets")
    settings_ = {"shard_tokens": shard_tokens, "side_files": True, "allow_eos_in_documents": True}

    def cut(document: list[int]) -> Iterator[list[int]]:
        places = sorted(data.draw(st.lists(st.integers(0, len(document)), max_size=4)))
        for start, end in itertools.pairwise([0, *places, len(document)]):
            yield document[start:end]

    def write(name: str, *, in_pieces: bool, stop: int = len(documents), **options: Any) -> DatasetWriter:
        with DatasetWriter(folder / name, vocab_size=100, eos_id=EOS, **settings_, **options) as writer:
            for number in range(writer.num_documents, stop):
                document, is_cut = documents[number]
                tokens = cut(document) if in_pieces and is_cut else document
                writer.append_document(tokens, source="s", key=str(number))
            if stop < len(documents):
                raise ZeroDivisionError
        return writer

    for name, in_pieces in (("whole", False), ("cut", True)):
        if stop < len(documents):
            with pytest.raises(ZeroDivisionError):
                write(name, in_pieces=in_pieces, stop=stop)
    assert files_in(folder / "whole") == files_in(folder / "cut")
    manifest = write("cut", in_pieces=True, resume=True).manifest
    assert manifest == write("never stopped", in_pieces=False).manifest
    assert files_in(folder / "cut") == files_in(folder / "never stopped")


@pytest.mark.parametrize("num_shards", range(1, 8))
def test_a_long_document_resumes_in_any_of_its_shards(num_shards: int, tmp_path: Path) -> None:
    """A run that stopped inside a document goes on in it, whether that is sent whole or in other pieces."""
    document = np.arange(55) % EOS
    for name, again in (("pieces", iter(np.array_split(document, 9))), ("whole", document)):
        options: dict[str, Any] = {"vocab_size": 100, "eos_id": EOS, "shard_tokens": 8}
        with pytest.raises(ZeroDivisionError), DatasetWriter(tmp_path / name, **options) as writer:
            writer.append_document(failing_after(document[: 8 * num_shards]))
        with DatasetWriter(tmp_path / name, **options, resume=True) as resumed:
            assert (resumed.num_tokens, resumed.num_documents) == (8 * min(num_shards, 6), 0)
            resumed.append_document(again)

        assert shardstream.open(tmp_path / name)[:].tolist() == [*document.tolist(), EOS]


def failing_after(tokens: Any) -> Iterator[Any]:
    """Pieces of three tokens, and then an error of whoever makes them."""
    for start in range(0, len(tokens), 3):
        yield tokens[start : start + 3]
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("piece", "error", "message"),
    [
        ([4, 100], ValueError, "token at position 5 is 100; wanted 0 to 99"),
        ([EOS], ValueError, "token at position 4 is eos_id 99, inside document 1; .*allow_eos_in_documents=True"),
        ([0.5], TypeError, r"token at position 4 is 0.5 \(float\)"),
        (7, ValueError, r"tokens at position 4: wanted one dimension, got shape \(\)"),
    ],
)
def test_a_refused_piece_fails_the_writer(piece, error, message, tmp_path: Path) -> None:
    """A piece is refused with its position; others may be written, so nothing is published, and resume goes on."""
    with pytest.raises(error, match=message), DatasetWriter(tmp_path, vocab_size=100, eos_id=EOS, shard_tokens=2) as w:
        w.append_document([1])
        w.append_document(iter([[2, 3], piece]))
    writer = DatasetWriter(tmp_path, vocab_size=100, eos_id=EOS, shard_tokens=2, resume=True)
    with pytest.raises(error, match=message):
        writer.append_document(iter([[2, 3], piece]))
    for again in (lambda: writer.append_document([2]), writer.close):
        with pytest.raises(StorageError, match="the writer failed before and publishes nothing; resume=True goes on"):
            again()

    assert not (tmp_path / "manifest.json").exists()
    assert write_documents(tmp_path, [[1], [2, 3]], shard_tokens=2, resume=True).num_tokens == 5


def test_a_refused_document_leaves_the_writer_as_it_was(tmp_path: Path) -> None:
    """A document that comes whole is refused before any of it is written, and its row in the side file too."""
    with DatasetWriter(tmp_path, vocab_size=100, eos_id=EOS, side_files=True) as writer:
        for tokens, key in (([1, 100], "a"), ([1, EOS], "b"), ([1], "\ud800")):
            with pytest.raises(ValueError, match="token at position|UTF-8 cannot say it"):
                writer.append_document(tokens, key=key)
        with pytest.raises(TypeError, match="b'bytes' is a document's source or key; wanted a string"):
            writer.append_document([1], source=b"bytes")  # type: ignore[arg-type]
        writer.append_document([2], source="Grüße", key="語")

    [row] = parquet.read_table(tmp_path / "shard-000000.documents.parquet").to_pylist()
    assert row == {"start": 0, "source": "Grüße", "key": "語"}


def test_a_side_file_lists_the_documents_that_start_in_its_shard(tmp_path: Path) -> None:
    """Each shard has a side file, an empty one where no document starts; a document is listed once, where it starts."""
    documents = [[1, 2], [], list(range(14)), [3]]
    with DatasetWriter(tmp_path, vocab_size=100, eos_id=EOS, shard_tokens=5, side_files=True) as writer:
        for number, document in enumerate(documents):
            writer.append_document(document, source="ab"[number % 2], key=f"line {number}")
    rows = [parquet.read_table(tmp_path / shard.documents_name).to_pylist() for shard in writer.manifest.shards]

    assert rows == [
        [
            {"start": 0, "source": "a", "key": "line 0"},
            {"start": 3, "source": "b", "key": "line 1"},
            {"start": 4, "source": "a", "key": "line 2"},
        ],
        [],
        [],
        [{"start": 4, "source": "b", "key": "line 3"}],
        [],
    ]
    assert [shard.documents.num_documents for shard in writer.manifest.shards if shard.documents] == [3, 0, 0, 1, 0]
    for shard in writer.manifest.shards:
        assert shard.documents is not None
        data = (tmp_path / shard.documents_name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.documents.num_bytes, shard.documents.sha256)


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_side_files_change_nothing_else(compression: Any, tmp_path: Path) -> None:
    """With side files a dataset has the same shards and the same digest as without; an overwrite takes them away."""
    documents = [[1, 2], [3] * 9]
    sided = write_documents(tmp_path / "a", documents, shard_tokens=5, compression=compression, side_files=True)
    plain = write_documents(tmp_path / "b", documents, shard_tokens=5, compression=compression)

    assert sided.digest == plain.digest
    assert [msgspec.structs.replace(shard, documents=None) for shard in sided.shards] == list(plain.shards)
    assert {shard.documents_name for shard in sided.shards} == names_in(tmp_path / "a") - names_in(tmp_path / "b")
    write_documents(tmp_path / "a", documents, shard_tokens=5, compression=compression, overwrite=True)
    assert files_in(tmp_path / "a") == files_in(tmp_path / "b")


def test_a_run_with_side_files_resumes_with_them_alone(tmp_path: Path) -> None:
    """Resuming without the side files that a run was begun with is refused, unfinished or complete."""
    options: dict[str, Any] = {"shard_tokens": 4, "resume": True}
    with (
        pytest.raises(ZeroDivisionError),
        DatasetWriter(tmp_path, vocab_size=100, eos_id=EOS, shard_tokens=4, side_files=True) as writer,
    ):
        writer.append_document([1, 2, 3, 4])
        raise ZeroDivisionError

    with pytest.raises(ResumeError, match="side_files was True when this dataset was begun and is False now"):
        write_documents(tmp_path, [[1, 2, 3, 4]], **options)
    write_documents(tmp_path, [[1, 2, 3, 4]], **options, side_files=True)
    with pytest.raises(ResumeError, match="the dataset is complete, with side_files True, not False"):
        write_documents(tmp_path, [[1, 2, 3, 4]], **options)


def test_a_durable_shard_whose_side_file_vanished_is_written_again(tmp_path: Path) -> None:
    """A recorded shard counts as durable only with its side file."""
    documents = [[number] for number in range(6)]
    options: dict[str, Any] = {"vocab_size": 100, "eos_id": EOS, "shard_tokens": 4, "side_files": True}
    with pytest.raises(ZeroDivisionError), DatasetWriter(tmp_path, **options) as writer:
        for document in documents:
            writer.append_document(document)
        raise ZeroDivisionError
    (tmp_path / "shard-000001.documents.parquet").unlink()

    with DatasetWriter(tmp_path, **options, resume=True) as resumed:
        assert (resumed.num_tokens, resumed.num_documents) == (4, 2)
        for document in documents[2:]:
            resumed.append_document(document)
    assert shardstream.open(tmp_path).verify().ok


def test_append_begins_no_document(tmp_path: Path) -> None:
    """Tokens of no document are refused where documents are listed."""
    writer = DatasetWriter(tmp_path, vocab_size=100, eos_id=EOS, side_files=True)

    with pytest.raises(ValueError, match=r"append\(\) begins none; send all tokens by append_document\(\)"):
        writer.append([1])


def test_a_shorter_document_is_refused_even_where_eos_is_allowed_inside(tmp_path: Path) -> None:
    """A document that ends where the durable part of the old one has an eos inside is another one."""
    options: dict[str, Any] = {"vocab_size": 100, "eos_id": EOS, "shard_tokens": 4, "allow_eos_in_documents": True}
    with pytest.raises(ZeroDivisionError), DatasetWriter(tmp_path, **options) as writer:
        writer.append_document([1, 2, 3, EOS, 4])
        raise ZeroDivisionError

    writer = DatasetWriter(tmp_path, **options, resume=True)
    with pytest.raises(ResumeError, match="document 0 is not the one whose first 4 tokens are durable"):
        writer.append_document([1, 2, 3])


@pytest.mark.parametrize("pieces", [[[11, 12, 13], [7, 15]], [[11], []], []])
def test_other_pieces_than_those_of_the_document_that_was_cut_are_refused(pieces, tmp_path: Path) -> None:
    """A changed or shortened document in pieces cannot continue the durable half of the old one."""
    stopped_in_a_document(tmp_path)
    writer = DatasetWriter(tmp_path, vocab_size=100, eos_id=EOS, shard_tokens=8, resume=True)

    with pytest.raises(ResumeError, match="document 1 is not the one whose first 4 tokens are durable"):
        writer.append_document(iter(pieces))


@pytest.mark.parametrize("document", [[11, 12, 13, 7, 15, 16], [11], []])
def test_another_document_than_the_one_that_was_cut_is_refused(document: list[int], tmp_path: Path) -> None:
    """A changed or shortened document cannot continue the durable half of the old one."""
    stopped_in_a_document(tmp_path)
    writer = DatasetWriter(tmp_path, vocab_size=100, eos_id=EOS, shard_tokens=8, resume=True)

    with pytest.raises(ResumeError, match="document 1 is not the one whose first 4 tokens are durable"):
        writer.append_document(document)
    with pytest.raises(ResumeError, match=r"4 tokens of document 1 are durable; send that document again"):
        writer.append([1])
    with pytest.raises(ResumeError, match="document 1 is durable in part only; send it again before close"):
        writer.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 101}, "vocab_size was 100 when this dataset was begun and is 101 now"),
        ({"shard_tokens": 9}, "shard_tokens was 8"),
        ({"eos_id": 98}, "tokenizer was .*eos_id=99.* and is .*eos_id=98"),
        ({"tokenizer": {"name": "gpt2"}}, "tokenizer was"),
        ({"compression": "zstd"}, "compression was None when this dataset was begun and is 'zstd' now"),
        ({"side_files": True}, "side_files was False when this dataset was begun and is True now"),
    ],
)
def test_a_run_with_other_settings_cannot_resume(options, message, tmp_path: Path) -> None:
    """Resuming with other settings, unfinished or complete, names the one that differs."""
    stopped_in_a_document(tmp_path)
    settings_ = {"vocab_size": 100, "eos_id": EOS, "shard_tokens": 8, "resume": True}
    with pytest.raises(ResumeError, match=message):
        DatasetWriter(tmp_path, **{**settings_, **options})
    write_documents(tmp_path, [[1, 2, 3], [11, 12, 13, 14, 15, 16]], shard_tokens=8, resume=True)
    with pytest.raises(ResumeError, match="the dataset is complete, with"):
        DatasetWriter(tmp_path, **{**settings_, **options})


def test_a_compressed_run_resumes_compressed_alone(tmp_path: Path) -> None:
    """A run that was begun with compression is not continued or taken as complete without it."""
    documents = [[1, 2, 3], [4, 5, 6]]
    with (
        pytest.raises(ZeroDivisionError),
        DatasetWriter(tmp_path, vocab_size=100, eos_id=EOS, shard_tokens=4, compression="zstd") as writer,
    ):
        writer.append_document(documents[0])
        raise ZeroDivisionError

    with pytest.raises(ResumeError, match="compression was 'zstd' when this dataset was begun and is None now"):
        write_documents(tmp_path, documents, shard_tokens=4, resume=True)
    write_documents(tmp_path, documents, shard_tokens=4, compression="zstd", resume=True)
    with pytest.raises(ResumeError, match="the dataset is complete, with compression 'zstd', not None"):
        write_documents(tmp_path, documents, shard_tokens=4, resume=True)


def test_a_journal_that_does_not_know_compression_is_that_of_a_raw_run(tmp_path: Path) -> None:
    """A run that was begun before there was compression goes on without it, and not with it."""
    stopped_in_a_document(tmp_path)
    head = tmp_path / "journal/head.json"
    fields = json.loads(head.read_bytes())
    assert fields.pop("compression") is None
    head.write_text(json.dumps(fields), "utf-8")
    documents = [[1, 2, 3], [11, 12, 13, 14, 15, 16]]

    with pytest.raises(ResumeError, match="compression was None"):
        write_documents(tmp_path, documents, shard_tokens=8, compression="zstd", resume=True)
    assert write_documents(tmp_path, documents, shard_tokens=8, resume=True).num_tokens == 11


def test_an_overwrite_may_change_the_compression(tmp_path: Path) -> None:
    """Raw shards give way to compressed ones and the other way round, and none of the old ones is left."""
    for compression in (None, "zstd", None):
        manifest = write_documents(tmp_path, [[1, 2, 3]] * 4, shard_tokens=4, compression=compression, overwrite=True)

        suffix = ".bin.zst" if compression else ".bin"
        assert [shard.name for shard in manifest.shards] == [f"shard-{index:06d}{suffix}" for index in range(4)]
        assert names_in(tmp_path) == {"manifest.json", *(shard.name for shard in manifest.shards)}


def test_resuming_a_complete_dataset_changes_nothing(tmp_path: Path) -> None:
    """The same command may be run again after it ended: nothing is sent, nothing changes; more is refused."""
    documents = [[1, 2, 3], [4]]
    first = write_documents(tmp_path, documents, shard_tokens=4, resume=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    assert write_documents(tmp_path, documents, shard_tokens=4, resume=True) == first
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    writer = DatasetWriter(tmp_path, vocab_size=100, eos_id=EOS, shard_tokens=4, resume=True)
    with pytest.raises(ResumeError, match="the dataset is complete with 6 tokens and 2 documents; nothing can follow"):
        writer.append([1])
    writer.close()


@pytest.mark.parametrize(("compression", "name"), [(None, "shard-000002.bin"), ("zstd", "shard-000002.bin.zst")])
def test_a_durable_shard_that_vanished_is_written_again(compression: Any, name: str, tmp_path: Path) -> None:
    """A recorded shard whose file is gone or short counts as not durable, with all after it."""
    options: dict[str, Any] = {"vocab_size": 100, "shard_tokens": 2, "compression": compression}
    with pytest.raises(ZeroDivisionError), DatasetWriter(tmp_path, **options) as writer:
        writer.append(range(10))
        raise ZeroDivisionError
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])

    with DatasetWriter(tmp_path, **options, resume=True) as resumed:
        assert resumed.num_tokens == 4
        assert sorted(path.name for path in (tmp_path / "journal").glob("0*")) == ["000000.json", "000001.json"]
        resumed.append(range(4, 10))
    raw = b"".join(raw_bytes_of(tmp_path, shard) for shard in resumed.manifest.shards)
    assert np.frombuffer(raw, "<u2").tolist() == list(range(10))


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    """A journal that cannot be read is refused with its name; overwrite=True starts again."""
    stopped_in_a_document(tmp_path)
    (tmp_path / "journal/000000.json").write_bytes(b"{")

    with pytest.raises(shardstream.FormatError, match="journal/000000.json: .*the journal is damaged"):
        DatasetWriter(tmp_path, vocab_size=100, eos_id=EOS, shard_tokens=8, resume=True)
    assert write_documents(tmp_path, [[1]], overwrite=True).num_tokens == 2


@pytest.mark.parametrize("options", [{"overwrite": True}, {"resume": True}, {}])
def test_a_place_with_other_files_is_refused_untouched(options: dict[str, Any], tmp_path: Path) -> None:
    """A folder that holds files of someone else is refused, whatever was asked, and nothing in it changes."""
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(StorageError, match=r"not empty, it holds 1 other files, such as notes.txt: choose an empty"):
        DatasetWriter(tmp_path, vocab_size=100, **options)
    assert names_in(tmp_path) == {"notes.txt"}


def test_a_dataset_is_replaced_only_when_told_and_other_files_stay(tmp_path: Path) -> None:
    """Without overwrite a dataset is safe; with it, only what its manifest lists goes."""
    write_documents(tmp_path, [[1, 2, 3]] * 4, shard_tokens=2)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match="not empty, it holds a dataset: overwrite=True replaces it"):
        DatasetWriter(tmp_path, vocab_size=100)

    write_documents(tmp_path, [[5]], overwrite=True)

    assert shardstream.open(tmp_path)[:].tolist() == [5, EOS]
    assert names_in(tmp_path) == {"manifest.json", "notes.txt", "shard-000000.bin"}


@pytest.mark.parametrize("name", ["shard-000005.bin", "shard-000005.bin.zst", "shard-000005.documents.parquet"])
def test_a_foreign_file_under_a_shards_name_is_never_replaced(name: str, tmp_path: Path) -> None:
    """Where a file that no manifest lists has a name that a shard will take, overwrite refuses."""
    write_documents(tmp_path, [[1]])
    (tmp_path / name).write_bytes(b"mine")

    with pytest.raises(StorageError, match=f"{name} has a name that a shard will take"):
        DatasetWriter(tmp_path, vocab_size=100, overwrite=True)
    assert (tmp_path / name).read_bytes() == b"mine"


def test_a_manifest_that_cannot_be_read_protects_everything(tmp_path: Path) -> None:
    """If the manifest is not ours, overwrite cannot tell what is, and deletes nothing."""
    (tmp_path / "manifest.json").write_text("{}")

    with pytest.raises(StorageError, match="cannot tell which files are ours, so none is deleted"):
        DatasetWriter(tmp_path, vocab_size=100, overwrite=True)
    assert names_in(tmp_path) == {"manifest.json"}


def test_two_writers_on_one_target(tmp_path: Path) -> None:
    """While one writer is at work another is refused, and the first ends undisturbed."""
    first = DatasetWriter(tmp_path, vocab_size=100, shard_tokens=2)
    first.append([1, 2, 3])
    choices: list[dict[str, Any]] = [{}, {"resume": True}, {"overwrite": True}]
    for options in choices:
        with pytest.raises(StorageError, match="another process is writing here|an unfinished dataset"):
            DatasetWriter(tmp_path, vocab_size=100, shard_tokens=2, **options)
    first.close()

    assert shardstream.open(tmp_path)[:].tolist() == [1, 2, 3]


def test_a_closed_writer_takes_nothing_more(tmp_path: Path) -> None:
    """After close, appending is refused and closing again does nothing."""
    with DatasetWriter(tmp_path, vocab_size=100) as writer:
        writer.append([1])
    writer.close()

    with pytest.raises(ValueError, match="the writer is closed; the dataset is complete"):
        writer.append([1])


def test_a_memory_url_takes_compressed_shards(tmp_path: Path) -> None:
    """Behind an fsspec URL compressed shards are the same objects as on a disk."""
    documents = [[token] * 5 for token in range(8)]
    uri = f"memory://{tmp_path}/compressed"

    manifest = write_documents(uri, documents, shard_tokens=8, compression="zstd")

    assert manifest == write_documents(tmp_path / "local", documents, shard_tokens=8, compression="zstd")
    for shard in manifest.shards:
        with fsspec.open(f"{uri}/{shard.name}") as file:
            assert file.read() == (tmp_path / "local" / shard.name).read_bytes()


def test_a_memory_url_is_written_like_a_disk(tmp_path: Path) -> None:
    """Behind an fsspec URL the same documents give the same manifest, resumed or not."""
    documents = [[token] * 5 for token in range(8)]
    uri = f"memory://{tmp_path}/dataset"
    with pytest.raises(ZeroDivisionError), DatasetWriter(uri, vocab_size=100, shard_tokens=8, eos_id=EOS) as writer:
        for document in documents[:6]:
            writer.append_document(document)
        raise ZeroDivisionError

    manifest = write_documents(uri, documents, shard_tokens=8, resume=True)

    assert manifest == write_documents(tmp_path / "local", documents, shard_tokens=8)
    dataset = shardstream.open(uri)
    assert dataset.manifest == manifest
    assert dataset.verify().ok
    with pytest.raises(StorageError, match="holds a dataset"):
        DatasetWriter(uri, vocab_size=100)
    assert write_documents(uri, [[1]], overwrite=True).num_tokens == 2


@pytest.fixture
def tiny_disk(tmp_path: Path):
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_raises_and_loses_nothing(tiny_disk: Path) -> None:
    """A disk that fills up is a StorageError with the cause; what was durable resumes once there is room."""
    tokens = np.arange(600_000) % 60_000
    with (
        pytest.raises(StorageError, match="No space left on device"),
        DatasetWriter(tiny_disk, vocab_size=60_000, shard_tokens=2**16) as writer,
    ):
        for start in range(0, len(tokens), 10_000):
            writer.append(tokens[start : start + 10_000])
    with pytest.raises(StorageError, match="no such file"):
        shardstream.open(tiny_disk)
    assert not [name for name in names_in(tiny_disk) if name.endswith(".partial")]
    subprocess.run(["mount", "-o", "remount,size=4m", str(tiny_disk)], check=True)

    with DatasetWriter(tiny_disk, vocab_size=60_000, shard_tokens=2**16, resume=True) as resumed:
        assert resumed.num_tokens >= 2**16
        resumed.append(tokens[resumed.num_tokens :])
    np.testing.assert_array_equal(tokens, shardstream.open(tiny_disk)[:])


def test_a_file_size_limit_raises_and_publishes_nothing(tmp_path: Path) -> None:
    """A write that the kernel cuts short (RLIMIT_FSIZE) is a StorageError, also when the caller goes on after it."""
    script = f"""
import resource, signal
import numpy as np, shardstream
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
writer = shardstream.DatasetWriter({str(tmp_path)!r}, vocab_size=60_000, shard_tokens=2**16)
writer.append(np.zeros(2**15, np.uint16))
messages = []
for attempt in range(1000):  # shards are written in the background: some calls may pass before the error shows
    try:
        writer.append(np.zeros(2**16, np.uint16)) if not messages else writer.close()
    except shardstream.StorageError as error:
        messages.append(str(error))
    if len(messages) == 2:
        break
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert "File too large" in messages[0], messages
assert "the writer failed before and publishes nothing" in messages[-1], messages
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(StorageError, match="no such file"):
        shardstream.open(tmp_path)


def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    """A folder that cannot be written is a StorageError that names it, before any token is taken."""
    script = f"""
import os, filelock, shardstream
if os.getuid() == 0:
    os.setuid(65534)
try:
    shardstream.DatasetWriter({str(tmp_path / "locked/dataset")!r}, vocab_size=100)
except shardstream.StorageError as error:
    assert "locked/dataset/journal: cannot create: Permission denied" in str(error), error
else:
    raise AssertionError
"""
    (tmp_path / "locked").mkdir(mode=0o555)
    for folder in [tmp_path, *tmp_path.parents[:-2]]:  # so that another user gets as far as the locked folder
        folder.chmod(0o755)
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("start", "compression"),
    [("fresh", "raw"), ("fresh", "zstd"), ("fresh", "sided"), ("overwrite", "raw"), ("overwrite", "zstd")],
)
def test_killed_at_every_step(start: str, compression: str, tmp_path: Path) -> None:
    """Promise 14: killed before each single step on the disk: no dataset or the whole one; run again: the same digest."""
    result = subprocess.run(
        [sys.executable, KILLED_WRITER, tmp_path / "dataset", "steps", start, compression],
        check=True,
        capture_output=True,
        text=True,
    )

    assert int(result.stdout) > 40


@pytest.mark.parametrize("start", ["fresh", "overwrite"])
def test_killed_at_a_hundred_random_instants(start: str, tmp_path: Path) -> None:
    """Promise 14: killed at 100 random instants, and again while resuming: the same digest as never killed."""
    result = subprocess.run(
        [sys.executable, KILLED_WRITER, tmp_path / "dataset", "instants", start, "raw", "100"],
        check=True,
        capture_output=True,
        text=True,
    )

    assert int(result.stdout) == 100


def test_a_writer_that_is_never_closed_does_not_hang_the_interpreter(tmp_path: Path) -> None:
    """A program that forgets to close its writer ends, and publishes nothing."""
    script = f"""
import shardstream
writer = shardstream.DatasetWriter({str(tmp_path)!r}, vocab_size=100, shard_tokens=4)
writer.append([1, 2, 3, 4, 5])
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize(
    "send", ["for _ in range(32): writer.append(tokens)", "writer.append_document(tokens for _ in range(32))"]
)
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_peak_memory_is_a_few_blocks(compression: str | None, send: str, tmp_path: Path) -> None:
    """Writing 64 MiB in shards of 32 MiB, or as one document in pieces, takes less than two shards of memory."""
    script = f"""
import functools, resource
import numpy as np, shardstream
tokens = np.zeros(2**20, np.uint16)
Writer = functools.partial(shardstream.DatasetWriter, vocab_size=100, eos_id=99, compression={compression!r})
with Writer({str(tmp_path / "warm")!r}, shard_tokens=2**10) as writer:
    writer.append(tokens[:2**12])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with Writer({str(tmp_path / "large")!r}, shard_tokens=2**24) as writer:
    {send}
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
assert grown < 2 * 2**25, grown
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_an_exception_after_close_leaves_the_dataset(tmp_path: Path) -> None:
    """What was published by an explicit close stays published."""
    with pytest.raises(ZeroDivisionError), DatasetWriter(tmp_path, vocab_size=100) as writer:
        writer.append([1])
        writer.close()
        raise ZeroDivisionError

    assert shardstream.open(tmp_path)[:].tolist() == [1]


def test_an_overwrite_that_broke_off_can_only_be_started_again(tmp_path: Path) -> None:
    """Where an overwrite was killed before it began anew, resume refuses and overwrite starts again."""
    write_documents(tmp_path, [[1]])
    (tmp_path / "journal").mkdir()
    (tmp_path / "manifest.json").rename(tmp_path / "journal/replaced.json")

    with pytest.raises(StorageError, match="an overwrite broke off here; overwrite=True starts again"):
        write_documents(tmp_path, [[2]], resume=True)
    write_documents(tmp_path, [[2]], overwrite=True)
    assert names_in(tmp_path) == {"manifest.json", "shard-000000.bin"}


def test_more_shards_than_a_manifest_lists_are_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shard that no manifest could list any more is refused when it begins, not at the end."""
    monkeypatch.setattr("shardstream.write.shard_sequence._MAX_NUM_SHARDS", 3)

    with (
        pytest.raises(StorageError, match="3 shards, and a manifest lists no more; use larger shard_tokens"),
        DatasetWriter(tmp_path, vocab_size=100, shard_tokens=1) as writer,
    ):
        writer.append([1, 2, 3, 4])


@pytest.mark.parametrize(
    ("metadata", "error", "problem"),
    [
        (
            {1: "a", "b": 2},
            TypeError,
            "Only dicts with str keys .*; wanted what JSON can say: dictionaries with strings",
        ),
        ({1: 1}, TypeError, "Only dicts with str keys"),
        ({"a": {1: 1}}, TypeError, "Only dicts with str keys"),
        ({"a": float("nan")}, ValueError, "float values .*; wanted .* finite numbers"),
        ({"a": {1, 2}}, TypeError, "set is not JSON serializable; wanted"),
        ({"a": "\ud800"}, ValueError, "surrogates not allowed; wanted"),
        ({"a": "x" * 2**24}, ValueError, "more than 16777216 bytes beside the shards; keep metadata small"),
    ],
    ids=["mixed keys", "number as key", "inner key", "nan", "set", "surrogate", "large"],
)
def test_metadata_that_json_cannot_say_is_refused_at_once(
    metadata: Any, error: type[Exception], problem: str, tmp_path: Path
) -> None:
    """Metadata that could not be written after the last token is refused before the first, with what is wanted."""
    with pytest.raises(error, match=f"^metadata: .*{problem}"):
        DatasetWriter(tmp_path, vocab_size=100, metadata=metadata)
    assert names_in(tmp_path) == set()


PYTHON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3),
    lambda values: (
        st.lists(values, max_size=3)
        | st.tuples(values)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.none(), values, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=100)
@given(st.dictionaries(st.text(max_size=3) | st.integers(), PYTHON_VALUES, max_size=3))
def test_metadata_that_is_accepted_can_be_written(metadata: dict[Any, Any]) -> None:
    """Law: what is not refused at once comes back out of the manifest as JSON says it."""
    try:
        kept = checked_metadata(metadata)
    except (TypeError, ValueError) as error:
        assert str(error).startswith("metadata: ")  # noqa: PT017 - that it is refused at all is no failure
        return
    manifest = shardstream.Manifest(vocab_size=1, shard_tokens=1, shards=(), metadata=kept)

    assert shardstream.Manifest.parse(manifest.to_json()).metadata == json.loads(json.dumps(metadata))
