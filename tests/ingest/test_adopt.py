"""Token files of other systems become a dataset where they lie: every format, whole, damaged and misunderstood."""

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstream
from shardstream import FormatError, Manifest, ShardstreamError, StorageError, adopt
from shardstream.format import integrity
from shardstream.ingest import foreign_files
from shardstream.ingest.adopt import _free_name, find_files
from tests.conftest import S3Place
from tests.ingest import foreign
from tests.ingest.foreign import FORMATS, Documents, flat

SMALL, LARGE = 1000, 100_000  # vocabularies of 16 and of 32 bits
DOCUMENTS = [[1, 2, 3], [4], [999, 0, 7, 7], [5, 6]]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that files and indexes have several."""
    monkeypatch.setattr(integrity, "_READ_BYTES", 8)
    monkeypatch.setattr(foreign_files, "_NUM_ENTRIES_AT_A_TIME", 3)


def tokens_of(uri: Path) -> list[int]:
    tokens: list[int] = shardstream.open(uri, trust_locations=True)[:].tolist()
    return tokens


def written(folder: Path, parts: Sequence[Documents], vocab_size: int) -> Manifest:
    """What the writer makes of the same tokens, cut the same way; in memory, which is quick, under the folder's name."""
    uris = [f"memory:/{folder}/part-{index}" for index in range(len(parts))]
    for uri, documents in zip(uris, parts, strict=True):
        with shardstream.DatasetWriter(uri, vocab_size=vocab_size) as writer:
            writer.append(flat(documents))
    return shardstream.merge(uris, f"memory:/{folder}")


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("format_", FORMATS)
@settings(max_examples=15)
@given(data=st.data())
def test_an_adopted_file_is_the_dataset_that_a_writer_would_make(format_: str, data: st.DataObject) -> None:
    """Law: tokens, digest and documents are those of the same ids written; verify is clean, and finds any flipped bit."""
    write, name, dtypes = FORMATS[format_]
    vocab_size = data.draw(st.sampled_from([SMALL, LARGE]), label="vocab_size")
    dtype = dtypes[vocab_size == LARGE]
    document = st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=9)
    parts = data.draw(st.lists(st.lists(document, min_size=1, max_size=8), min_size=1, max_size=2), label="parts")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for index in range(len(parts)):
            (folder / str(index)).mkdir()
        files = [write(folder / str(index) / name, documents, dtype) for index, documents in enumerate(parts)]
        before = files_in(folder)

        manifest = adopt(files, folder / "adopted", vocab_size=vocab_size)

        assert files_in(folder) == {**before, "adopted/manifest.json": manifest.to_json()}
        assert tokens_of(folder / "adopted") == [token for documents in parts for token in flat(documents)]
        oracle = written(folder / "written", parts, vocab_size)
        assert manifest.digest == oracle.digest
        for row, wanted in zip(manifest.shards, oracle.shards, strict=True):
            assert (row.min_token, row.max_token) == (wanted.min_token, wanted.max_token)
        assert {file.format for file in find_files(files, folder, vocab_size=vocab_size, dtype=None).files} == {format_}
        if "Megatron" in format_ or "datatrove" in format_:
            assert manifest.num_documents == sum(map(len, parts))

        assert shardstream.open(folder / "adopted", trust_locations=True).verify().ok
        damaged = bytearray(files[0].read_bytes())
        bit = data.draw(st.integers(0, manifest.shards[0].num_bytes * 8 - 1), label="bit")
        damaged[manifest.shards[0].byte_offset + bit // 8] ^= 1 << bit % 8
        files[0].write_bytes(damaged)
        report = shardstream.open(folder / "adopted", trust_locations=True).verify()
        assert [problem.shard for problem in report.problems] == [manifest.shards[0].name]


@pytest.mark.parametrize("format_", FORMATS)
def test_a_file_that_was_cut_short_is_refused(format_: str, tmp_path: Path) -> None:
    """A file without its last byte is refused by name, whatever its format, and no manifest is left."""
    write, name, dtypes = FORMATS[format_]
    file = write(tmp_path / name, DOCUMENTS, dtypes[0])
    file.write_bytes(file.read_bytes()[:-1])

    with pytest.raises(FormatError, match=rf"{name}: \d+ bytes .* cut short"):
        adopt([file], tmp_path / "out", vocab_size=SMALL)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format_", FORMATS)
def test_an_id_beyond_the_vocabulary_is_refused_with_its_position(format_: str, tmp_path: Path) -> None:
    """An id that the vocabulary lacks is named with its file and its position, and nothing is published."""
    write, name, dtypes = FORMATS[format_]
    file = write(tmp_path / name, DOCUMENTS, dtypes[0])

    with pytest.raises(
        FormatError, match=rf"{name}: token 4 of the file is 999; wanted 0 to 998 \(vocab_size is 999\)"
    ):
        adopt([file], tmp_path / "out", vocab_size=999)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("dtype", "vocab_size"), [("<i2", SMALL), ("<i2", 2**16), ("<i4", LARGE), ("<i4", 2**32)], ids=str
)
def test_signed_ids_are_adopted_unless_one_is_below_0(dtype: str, vocab_size: int, tmp_path: Path) -> None:
    """Ids of a signed dtype are the same bits; one below 0 is refused as what it is, however large the vocabulary."""
    file = foreign.npy(tmp_path / "ids.npy", DOCUMENTS, dtype)
    adopt([file], tmp_path, vocab_size=vocab_size)
    foreign.npy(file, [[1, 2, 3, 4, 5, -5]], dtype)

    assert shardstream.open(tmp_path).manifest.num_tokens == 10
    with pytest.raises(FormatError, match="token 5 of the file is -5"):
        adopt([file], tmp_path, vocab_size=vocab_size, overwrite=True)


@pytest.mark.parametrize(
    ("dtype", "vocab_size", "message"),
    [
        (
            "<u4",
            SMALL,
            "ids of uint32, but a vocabulary of this size is stored as uint16; .* model's vocab_size if that is beyond 65,536$",
        ),
        (
            "<u2",
            LARGE,
            "ids of uint16, but a vocabulary of this size is stored as uint32; copy .* `shardstream write`$",
        ),
        ("<i8", LARGE, "ids of int64, but a vocabulary of this size is stored as uint32; copy .* `shardstream write`$"),
        (">u2", SMALL, "big-endian ids are not stored so; copy the ids with `shardstream write`"),
        ("u1", SMALL, "ids of uint8, but"),
    ],
    ids=str,
)
def test_ids_of_another_width_or_byte_order_are_refused(
    dtype: str, vocab_size: int, message: str, tmp_path: Path
) -> None:
    """What is not bit for bit the dataset's dtype cannot be adopted; the message says what can be done."""
    file = foreign.npy(tmp_path / "ids.npy", [[1, 2]], dtype)

    with pytest.raises(FormatError, match=f"ids.npy: NumPy .npy, {message}"):
        adopt([file], tmp_path, vocab_size=vocab_size)
    with pytest.raises(ValueError, match=f"dtype is '{dtype}': {message}"):
        adopt([file], tmp_path, vocab_size=vocab_size, dtype=dtype)


@pytest.mark.parametrize("dtype", ["<u4", "<i8"])
def test_wide_ids_that_are_taken_for_narrow_ones_are_noticed(dtype: str, tmp_path: Path) -> None:
    """Raw ids with a zero after each are refused, unless the caller says that they are ids like any other."""
    file = foreign.raw(tmp_path / "ids.bin", [range(1, 65)], dtype)

    with pytest.raises(FormatError, match="ids.bin: every second id is 0, as when ids of twice the width are read as"):
        adopt([file], tmp_path, vocab_size=SMALL)
    assert adopt([file], tmp_path, vocab_size=SMALL, dtype="uint16").num_tokens == 64 * int(dtype[2]) // 2


def test_a_few_ids_with_zeros_between_them_are_no_reason_to_doubt(tmp_path: Path) -> None:
    """A short file may hold a zero at every second place."""
    file = foreign.raw(tmp_path / "ids.bin", [[5, 0] * 31], "<u2")

    assert adopt([file], tmp_path, vocab_size=SMALL).num_tokens == 62


def test_raw_ids_of_any_name_need_a_dtype(tmp_path: Path) -> None:
    """A file that nothing is known of is adopted when its dtype is given, never by a guess."""
    file = foreign.raw(tmp_path / "ids.tokens", DOCUMENTS, "<u2")

    with pytest.raises(ValueError, match="ids.tokens: no format that is known; .* give their dtype, such as uint16"):
        adopt([file], tmp_path, vocab_size=SMALL)
    adopt([file], tmp_path, vocab_size=SMALL, dtype="int16")
    assert tokens_of(tmp_path) == flat(DOCUMENTS)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"num_tokens": 9}, "20 bytes of ids, but its header says 9 of uint16, which take 18; it was cut short, or"),
        ({"num_tokens": -1}, "20 bytes of ids, but its header says -1 of uint16"),
        (
            {"version": 2},
            "llm.c's header of version 2 and magic 20240520; known are 1 of magic 20240520 and 7 of magic",
        ),
        ({"magic": 20240522}, "llm.c's evaluation examples, which are no stream of tokens"),
    ],
    ids=["count", "negative", "version", "evaluation"],
)
def test_a_header_of_llm_c_that_does_not_fit(header: dict[str, int], message: str, tmp_path: Path) -> None:
    """A count that is not the file's, an unknown version, and files of another purpose are refused."""
    file = foreign.llm_c(tmp_path / "a.bin", DOCUMENTS, "<u2", **header)

    with pytest.raises(FormatError, match=f"a.bin: {message}"):
        adopt([file], tmp_path, vocab_size=SMALL)


def test_a_header_of_llm_c_that_was_cut_short(tmp_path: Path) -> None:
    """A file that ends within the header is refused."""
    (tmp_path / "a.bin").write_bytes(np.array([20240520, 1], "<i4").tobytes())

    with pytest.raises(FormatError, match="a.bin: 0 bytes of ids, but its header says 0 of uint16"):
        adopt([tmp_path / "a.bin"], tmp_path, vocab_size=SMALL)


def edited(offset: int, data: bytes) -> Callable[[bytes], bytes]:
    return lambda index: index[:offset] + data + index[offset + len(data) :]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda _: b"TNTIDX\x00\x00" + bytes(40), "a.idx: no index of Megatron; if it has nothing to do with .*a.bin"),
        (lambda index: index[:20], "a.idx: no index of Megatron"),
        (edited(9, b"\x02"), "a.idx: version 2 and dtype code 8; known are version 1, codes 1 to 8"),
        (edited(17, b"\x09"), "a.idx: version 1 and dtype code 9"),
        (edited(17, b"\x07"), "a.idx: sequence 1 does not begin where the one before it ends"),
        (lambda index: index[:-1], "a.idx: 121 bytes, but 4 sequences and 5 entries of documents take 122"),
        (lambda index: index + bytes(4), "a.idx: has a mode for each sequence; multimodal data are not tokens alone"),
        (edited(34 + 16 + 8, b"\x08"), "a.idx: sequence 1 does not begin where the one before it ends"),
        (edited(34 + 16 + 24, b"\xff"), "a.idx: sequence 3 does not begin where the one before it ends"),
        (edited(34, np.int32(-3).tobytes()), "a.idx: sequence 0 does not begin"),
        (edited(34 + 12, b"\x01"), "a.bin: 20 bytes of ids, but .*a.idx says 9 of uint16, which take 18"),
        (edited(34 + 48 + 32, b"\x03"), "a.idx: its documents are not those of its 4 sequences"),
        (edited(34 + 48 + 8, b"\x09"), "a.idx: the bounds of its documents do not follow one another"),
        (edited(34 + 48 + 24, b"\x00"), "a.idx: the bounds of its documents do not follow one another"),
    ],
    ids=[
        "magic",
        "header-cut",
        "version",
        "no-code",
        "wider-code",
        "cut",
        "modes",
        "gap",
        "gap-in-a-later-block",
        "below-0",
        "shorter",
        "last-document",
        "falling-document",
        "falling-document-in-a-later-block",
    ],
)
def test_an_index_of_megatron_that_does_not_fit(edit: Any, message: str, tmp_path: Path) -> None:
    """An index that is none, is damaged, or has gaps between its sequences is refused by name."""
    file = foreign.megatron(tmp_path / "a.bin", DOCUMENTS, "<u2")
    index = file.with_suffix(".idx")
    index.write_bytes(edit(index.read_bytes()))

    with pytest.raises(FormatError, match=message):
        adopt([file], tmp_path, vocab_size=SMALL)


def test_megatrons_documents_may_have_several_sequences_or_none(tmp_path: Path) -> None:
    """Documents are those of the index: some sequences each."""
    file = foreign.megatron(tmp_path / "a.bin", DOCUMENTS, "<u2", bounds=[0, 3, 3, 4])

    assert adopt([file], tmp_path, vocab_size=SMALL).num_documents == 3


def test_megatrons_floats_are_no_ids(tmp_path: Path) -> None:
    """An index may say float32, which no id is."""
    file = foreign.megatron(tmp_path / "a.bin", DOCUMENTS, "<f4")

    with pytest.raises(FormatError, match="a.bin: Megatron .bin and .idx, values of float32 are no ids"):
        adopt([file], tmp_path, vocab_size=LARGE)


@pytest.mark.parametrize(
    ("suffix", "edit", "message"),
    [
        (".index", lambda data: data[:-1], "a.ds.index: 31 bytes that are not the ends of the documents of 10 tokens"),
        (".index", lambda data: data[:-8], "a.ds.index: 24 bytes that are not the ends of the documents of 10 tokens"),
        (".index", lambda _: b"", "a.ds.index: 0 bytes that are not the ends"),
        (".index", edited(0, b"\x05"), "a.ds.index: the bounds of its documents do not follow one another"),
        (".metadata", lambda _: b"gpt2|2\n11\n11 T", "a.ds: 20 bytes of ids, but its metadata file says 11 of uint16"),
        (".metadata", lambda _: b"gpt2|8\n10\n10 T", r"a.ds.metadata: wanted TOKENIZER\|BYTES in the first line"),
        (".metadata", lambda _: b"gpt2|2", "a.ds.metadata: wanted .*; got 'gpt2|2'"),
    ],
    ids=["odd", "cut", "empty", "falling", "count", "width", "short"],
)
def test_companions_of_datatrove_that_do_not_fit(suffix: str, edit: Any, message: str, tmp_path: Path) -> None:
    """An index or metadata that are not those of the file are refused by name."""
    file = foreign.datatrove(tmp_path / "a.ds", DOCUMENTS, "<u2")
    companion = tmp_path / f"a.ds{suffix}"
    companion.write_bytes(edit(companion.read_bytes()))

    with pytest.raises(FormatError, match=message):
        adopt([file], tmp_path, vocab_size=SMALL)


def test_a_file_of_datatrove_alone_is_raw_ids(tmp_path: Path) -> None:
    """Without index and metadata nothing is known of documents and tokenizer, and the dtype is that of the vocabulary."""
    file = foreign.datatrove(tmp_path / "a.ds", DOCUMENTS, "<u2")
    (tmp_path / "a.ds.index").unlink()
    (tmp_path / "a.ds.metadata").unlink()

    manifest = adopt([file], tmp_path, vocab_size=SMALL)

    assert (manifest.num_documents, manifest.tokenizer) == (0, None)
    assert tokens_of(tmp_path) == flat(DOCUMENTS)


@pytest.mark.parametrize(
    ("names", "given", "wanted"),
    [
        (["org/a|b", "org/a|b"], None, "org/a|b"),
        (["a", "b"], None, None),
        (["Unknown Tokenizer|2"], None, None),
        (["a"], {"name": "mine"}, "mine"),
    ],
    ids=["same", "different", "unknown", "given"],
)
def test_the_tokenizers_name_comes_from_the_metadata(
    names: list[str], given: dict[str, str] | None, wanted: str | None, tmp_path: Path
) -> None:
    """The name that datatrove recorded is kept where all files agree, and the caller gives no other."""
    files = [
        foreign.datatrove(tmp_path / f"{index}.ds", DOCUMENTS, "<u2", tokenizer=name)
        for index, name in enumerate(names)
    ]

    manifest = adopt(files, tmp_path, vocab_size=SMALL, tokenizer=given)

    assert (manifest.tokenizer.name if manifest.tokenizer else None) == wanted
    assert manifest.num_documents == 4 * len(names)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2), np.uint16), r"ids.npy: shape \(2, 2\) and dtype uint16; wanted one dimension of integers"),
        (np.zeros(2, np.float32), r"ids.npy: shape \(2,\) and dtype float32; wanted one dimension of integers"),
        (np.zeros(2, "S0"), "ids.npy: shape .*; wanted one dimension of integers"),
        (np.zeros(0, np.uint16), "ids.npy: NumPy .npy without a token; leave it out"),
    ],
    ids=["shape", "dtype", "no-size", "empty"],
)
def test_arrays_that_are_no_ids(array: Any, message: str, tmp_path: Path) -> None:
    """A .npy file of another shape or kind is refused."""
    np.save(tmp_path / "ids.npy", array)

    with pytest.raises(FormatError, match=message):
        adopt([tmp_path / "ids.npy"], tmp_path, vocab_size=SMALL)


def test_a_npy_header_that_is_none(tmp_path: Path) -> None:
    """A damaged header, and one after which ids are not aligned, are refused."""
    whole = foreign.npy(tmp_path / "ids.npy", DOCUMENTS, "<u2").read_bytes()
    (tmp_path / "damaged.npy").write_bytes(whole[:40])
    header = whole[10:127] + b" \n"  # one byte more than NumPy's
    (tmp_path / "odd.npy").write_bytes(whole[:8] + len(header).to_bytes(2, "little") + header + whole[128:])

    with pytest.raises(FormatError, match="damaged.npy: not a .npy file: EOF"):
        adopt([tmp_path / "damaged.npy"], tmp_path, vocab_size=SMALL)
    with pytest.raises(FormatError, match="odd.npy: its ids begin at byte 129, no multiple of 2"):
        adopt([tmp_path / "odd.npy"], tmp_path, vocab_size=SMALL)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("missing.bin", FileNotFoundError, "missing.bin: no such file"),
        ("empty.bin", FormatError, "empty.bin: empty; leave it out"),
        ("folder.bin", StorageError, "folder.bin: not a regular file"),
        ("a.bin.gz", ValueError, "a.bin.gz: compressed, .* `shardstream write`"),
        ("a.idx", ValueError, "a.idx: belongs to a .bin file, beside which it is found; name that file alone"),
        ("a.ds.index", ValueError, "a.ds.index: belongs to a .ds file"),
        ("a.ds.metadata", ValueError, "a.ds.metadata: belongs to a .ds file"),
    ],
)
def test_what_is_no_file_of_ids(name: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    """Missing, empty and compressed files, folders, and files that belong to another are refused by name."""
    for full in ("a.bin.gz", "a.idx", "a.ds.index", "a.ds.metadata"):
        (tmp_path / full).write_bytes(b"full")
    (tmp_path / "empty.bin").touch()
    (tmp_path / "folder.bin").mkdir()

    with pytest.raises(error, match=message):
        adopt([tmp_path / name], tmp_path, vocab_size=SMALL, dtype="uint16")


def test_arguments_that_are_wrong(tmp_path: Path) -> None:
    """No file, one path where a list is wanted, a dtype that is none, and metadata that is no JSON are refused."""
    file = foreign.raw(tmp_path / "a.bin", DOCUMENTS, "<u2")

    with pytest.raises(ValueError, match="no files: give at least one to adopt"):
        adopt([], tmp_path, vocab_size=SMALL)
    with pytest.raises(TypeError, match=r"files is one path, '.*a.bin'; wanted a list of them"):
        adopt(str(file), tmp_path, vocab_size=SMALL)
    with pytest.raises(ValueError, match="dtype is 'float32'; wanted NumPy's name of an integer dtype"):
        adopt([file], tmp_path, vocab_size=SMALL, dtype="float32")
    with pytest.raises(ValueError, match="vocab_size is 0; wanted 1 to"):
        adopt([file], tmp_path, vocab_size=0)
    with pytest.raises(ValueError, match="eos_id is 1000; wanted 0 to 999"):
        adopt([file], tmp_path, vocab_size=SMALL, eos_id=1000)
    with pytest.raises(TypeError, match="metadata: .* not JSON serializable; wanted what JSON can say"):
        adopt([file], tmp_path, vocab_size=SMALL, metadata={"path": tmp_path})
    assert not (tmp_path / "manifest.json").exists()


def test_a_file_given_twice(tmp_path: Path) -> None:
    """One file can be in a dataset once, under whichever of its names."""
    file = foreign.raw(tmp_path / "a.bin", DOCUMENTS, "<u2")
    (tmp_path / "b.bin").symlink_to(file)

    with pytest.raises(ValueError, match=r"b.bin is given twice; each file can be in the dataset once"):
        adopt([file, tmp_path / "b.bin"], tmp_path, vocab_size=SMALL)


def test_eos_ids_are_counted_and_make_documents_where_no_index_does(tmp_path: Path) -> None:
    """num_eos is in every row; documents are those of an index, else eos ids, and 0 where of one file neither is known."""
    plain = foreign.raw(tmp_path / "a.bin", [[1, 7, 2, 7, 7]], "<u2")
    indexed = foreign.datatrove(tmp_path / "b.ds", [[1, 7], [2]], "<u2")

    manifest = adopt([plain, indexed], tmp_path / "eos", vocab_size=SMALL, eos_id=7, metadata={"run": 1})
    without = adopt([plain, indexed], tmp_path / "none", vocab_size=SMALL)

    assert [row.num_eos for row in manifest.shards] == [3, 1]
    assert (manifest.num_documents, manifest.eos_id, manifest.metadata) == (3 + 2, 7, {"run": 1})
    assert (without.num_documents, without.shards[0].num_eos) == (0, None)


def test_without_checksums_no_id_is_read(tmp_path: Path) -> None:
    """checksum=False looks at sizes alone: quick, readable, and blind."""
    file = foreign.llm_c(tmp_path / "a.bin", DOCUMENTS, "<u2")
    passed: list[int] = []

    manifest = adopt([file], tmp_path, vocab_size=5, eos_id=0, checksum=False, progress=passed.append)

    row = manifest.shards[0]
    assert (row.num_tokens, row.byte_offset, row.sha256, row.max_token, row.num_eos) == (10, 1024, None, None, None)
    assert (passed, manifest.num_documents, tokens_of(tmp_path)) == ([], 0, flat(DOCUMENTS))
    assert "holds id 999, not below vocab_size 5" in shardstream.open(tmp_path).verify().problems[0].problem


def test_files_below_the_dataset_need_no_trust_and_others_do(tmp_path: Path) -> None:
    """A plain file below the folder is a shard by its name; one elsewhere, or behind a link, has a location."""
    folder = tmp_path / "dataset"
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "else where").mkdir()
    inside = foreign.raw(folder / "deep" / "a.bin", [[1]], "<u2")
    odd = foreign.raw(folder / "b c.bin", [[2]], "<u2")
    (folder / "link.bin").symlink_to(foreign.raw(tmp_path / "target.bin", [[3]], "<u2"))
    outside = foreign.raw(tmp_path / "else where" / ".d.bin", [[4]], "<u2")
    twin = foreign.raw(tmp_path / "else where" / "_d.bin", [[5]], "<u2")

    adopt([inside], folder, vocab_size=SMALL)
    assert shardstream.open(folder)[:].tolist() == [1]
    files: list[str | Path] = [inside, odd, folder / "link.bin", outside, f"file://{twin}"]
    manifest = adopt(files, folder, vocab_size=SMALL, overwrite=True)

    assert tokens_of(folder) == [1, 2, 3, 4, 5]
    parent = tmp_path.name
    assert [(row.name, row.location) for row in manifest.shards] == [
        ("deep/a.bin", None),
        ("adopted/b_c.bin", "b c.bin"),
        ("adopted/link.bin", "link.bin"),
        (f"adopted/{parent}/else_where/_d.bin", str(outside)),
        (f"adopted/{parent}/else_where/_d.bin-2", str(twin)),
    ]
    with pytest.raises(FormatError, match="trust_locations=True"):
        shardstream.open(folder)
    assert shardstream.open(folder, trust_locations=True).verify().ok


def test_a_folder_may_have_several_names(tmp_path: Path) -> None:
    """A file below the dataset's folder needs no trust, by whichever name of the folder it or the folder is given."""
    (tmp_path / "dataset" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("dataset")
    (tmp_path / "deep link").symlink_to("dataset/deep")
    file = foreign.raw(tmp_path / "dataset" / "deep" / "a.bin", DOCUMENTS, "<u2")

    for spelt, uri in (("link/deep", "dataset"), ("deep link", "dataset"), ("dataset/deep", "link")):
        manifest = adopt([tmp_path / spelt / file.name], tmp_path / uri, vocab_size=SMALL, overwrite=True)
        assert [(row.name, row.location) for row in manifest.shards] == [("deep/a.bin", None)]


def test_many_files_whose_paths_end_alike_get_names_of_their_own() -> None:
    """Names are numbered on, and none is tried that was given before."""

    class Taken(Counter[str]):
        num_asked = 0

        def __contains__(self, name: object) -> bool:
            self.num_asked += 1
            return super().__contains__(name)

    taken = Taken({"adopted/a/b/c.bin-3": 1})
    names = []
    for number in range(50):
        names.append(_free_name(f"/{number}/a/b/c.bin", taken))
        taken[names[-1]] += 1

    assert names == ["adopted/a/b/c.bin", *(f"adopted/a/b/c.bin-{number}" for number in (2, *range(4, 52)))]
    assert taken.num_asked < 3 * len(names)


@pytest.mark.skipif(os.sep != "/" or not hasattr(os, "fsencode"), reason="names that are no UTF-8 are a thing of Linux")
def test_a_path_that_is_no_utf_8(tmp_path: Path) -> None:
    """Such a path cannot stand in a manifest, and is refused before anything is read."""
    name = os.fsdecode(b"\xff.bin")
    try:
        file = foreign.raw(tmp_path / name, DOCUMENTS, "<u2")
    except OSError:
        pytest.skip("this filesystem takes no such name")

    with pytest.raises(ValueError, match="the path is no UTF-8, and cannot stand in a manifest; rename it"):
        adopt([file], tmp_path / "out", vocab_size=SMALL)


def test_a_dataset_that_is_there_is_replaced_only_when_told(tmp_path: Path) -> None:
    """A manifest at the target is refused before any file is read; overwrite=True replaces it and nothing else."""
    file = foreign.raw(tmp_path / "a.bin", DOCUMENTS, "<u2")
    adopt([foreign.raw(tmp_path / "b.bin", [[1]], "<u2")], tmp_path / "out", vocab_size=SMALL)
    before = files_in(tmp_path)
    passed: list[int] = []

    with pytest.raises(StorageError, match=r"out: it holds a dataset already; overwrite=True replaces its manifest"):
        adopt([file], tmp_path / "out", vocab_size=SMALL, progress=passed.append)
    assert (passed, files_in(tmp_path)) == ([], before)
    manifest = adopt([file], tmp_path / "out", vocab_size=SMALL, overwrite=True, progress=passed.append)
    assert files_in(tmp_path) == {**before, "out/manifest.json": manifest.to_json()}
    assert sum(passed) == manifest.num_bytes


def test_a_writers_dataset_is_replaced_only_with_its_shards(tmp_path: Path) -> None:
    """Shards and side files that no manifest would list any more, and no writer could replace, are named before any read."""
    file = foreign.raw(tmp_path / "a.bin", DOCUMENTS, "<u2")
    with shardstream.DatasetWriter(tmp_path / "plain", vocab_size=SMALL) as writer:
        writer.append([1, 2])
    with shardstream.DatasetWriter(tmp_path / "sources", vocab_size=SMALL, eos_id=0, side_files=True) as writer:
        writer.append_document([1, 2])
    before = files_in(tmp_path)
    passed: list[int] = []
    options: dict[str, Any] = {"vocab_size": SMALL, "overwrite": True, "progress": passed.append}

    with pytest.raises(StorageError, match="whose shard-000000.bin would be listed no more; choose another place, or"):
        adopt([file], tmp_path / "plain", **options)
    with pytest.raises(StorageError, match="whose shard-000000.documents.parquet would be listed no more"):
        adopt([tmp_path / "sources/shard-000000.bin"], tmp_path / "sources", **options)
    assert (passed, files_in(tmp_path)) == ([], before)
    adopt([tmp_path / "plain/shard-000000.bin", file], tmp_path / "plain", **options)
    assert tokens_of(tmp_path / "plain") == [1, 2, *flat(DOCUMENTS)]
    with shardstream.DatasetWriter(tmp_path / "plain", vocab_size=SMALL, overwrite=True) as writer:
        writer.append([3])
    assert tokens_of(tmp_path / "plain") == [3]


def test_the_manifest_is_no_file_of_its_own_dataset(tmp_path: Path) -> None:
    """The file that adopting replaces cannot be listed in it."""
    adopt([foreign.raw(tmp_path / "a.bin", DOCUMENTS, "<u2")], tmp_path, vocab_size=SMALL)

    with pytest.raises(ValueError, match="manifest.json is the manifest of the dataset itself; leave it out"):
        adopt([tmp_path / "manifest.json"], tmp_path, vocab_size=SMALL, dtype="uint16", overwrite=True)


def test_a_place_where_another_dataset_is_being_written(tmp_path: Path) -> None:
    """A writer's journal at the target is refused, whatever is wished."""
    file = foreign.raw(tmp_path / "a.bin", DOCUMENTS, "<u2")
    writer = shardstream.DatasetWriter(tmp_path / "out", vocab_size=SMALL, shard_tokens=1)
    writer.append([1, 2])

    with pytest.raises(StorageError, match="out: it holds a dataset that is being written or copied"):
        adopt([file], tmp_path / "out", vocab_size=SMALL, overwrite=True)
    writer.close()


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    """A file that is cut under the reader's eyes is refused, and nothing is published."""
    file = foreign.raw(tmp_path / "a.bin", [[1] * 10**6], "<u2")

    with pytest.raises(FormatError, match=r"a.bin: changed while it was read: truncated"):
        adopt([file], tmp_path / "out", vocab_size=SMALL, progress=lambda _: os.truncate(file, 10))
    assert not (tmp_path / "out").exists()


def test_one_bad_file_ends_the_reading_of_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After the first refusal no other file is read to its end."""
    monkeypatch.setattr(integrity, "_READ_BYTES", 2**16)
    huge = tmp_path / "huge.bin"
    huge.touch()
    os.truncate(huge, 2**40)  # sparse: it would take ten minutes
    bad = foreign.raw(tmp_path / "bad.bin", [[1, 2000]], "<u2")

    with pytest.raises(ShardstreamError, match=r"bad.bin: token 1 of the file is 2000"):
        adopt([huge, bad], tmp_path, vocab_size=SMALL, num_threads=2)


@pytest.mark.parametrize("format_", FORMATS)
def test_objects_below_the_datasets_url_are_adopted_in_place(format_: str, tmp_path: Path) -> None:
    """Behind a URL, files below the manifest's own URL are adopted, index and all; the cache reads them verified."""
    write, name, dtypes = FORMATS[format_]
    write(tmp_path / name, DOCUMENTS, dtypes[0])
    memory = fsspec.filesystem("memory")
    for path in tmp_path.iterdir():
        memory.pipe(f"/adopt/files/{path.name}", path.read_bytes())
    try:
        manifest = adopt([f"memory://adopt/files/{name}"], "memory://adopt", vocab_size=SMALL)
        dataset = shardstream.open("memory://adopt")

        assert (manifest.shards[0].name, manifest.shards[0].location) == (f"files/{name}", None)
        assert dataset[:].tolist() == flat(DOCUMENTS)
        assert dataset.verify().ok
    finally:
        memory.store.clear()


def test_objects_of_s3_are_adopted_in_place(s3: S3Place, tmp_path: Path) -> None:
    """The same in a bucket: files and manifest lie there, and nothing else is written."""
    for path in (foreign.megatron(tmp_path / "a.bin", DOCUMENTS, "<u2"), tmp_path / "a.idx"):
        s3.client.put_object(Bucket=s3.bucket, Key=f"{s3.prefix}/{path.name}", Body=path.read_bytes())

    manifest = adopt([f"{s3.url}/a.bin"], s3.url, vocab_size=SMALL, storage_options=s3.storage_options)
    dataset = shardstream.open(s3.url, storage_options=s3.storage_options)

    assert dataset[:].tolist() == flat(DOCUMENTS)
    assert dataset.manifest.digest == manifest.digest == written(tmp_path / "written", [DOCUMENTS], SMALL).digest
    listed = s3.client.list_objects_v2(Bucket=s3.bucket)["Contents"]
    assert [entry["Key"] for entry in listed] == [f"{s3.prefix}/{name}" for name in ("a.bin", "a.idx", "manifest.json")]


def test_an_adopted_dataset_is_one_like_any_other(tmp_path: Path) -> None:
    """Files below their manifest are copied with their headers, merged, and drawn from, as a writer's shards are."""
    folder = tmp_path / "parts" / "a"
    folder.mkdir(parents=True)
    file = foreign.llm_c(folder / "a.bin", DOCUMENTS, "<u2")
    manifest = adopt([file], folder, vocab_size=SMALL)

    shardstream.copy(folder, tmp_path / "copy")
    shardstream.merge([folder], tmp_path / "parts")

    assert (tmp_path / "copy" / "a.bin").read_bytes() == file.read_bytes()
    for place in (folder, tmp_path / "copy", tmp_path / "parts"):
        dataset = shardstream.open(place)
        assert (dataset.manifest.digest, dataset[:].tolist()) == (manifest.digest, flat(DOCUMENTS))
        assert dataset.verify().ok
        with shardstream.BatchStream(dataset, batch_size=1, context_length=9, order="sequential", epochs=1) as stream:
            assert [inputs.tolist() for inputs, _ in stream] == [[flat(DOCUMENTS)[:9]]]


@pytest.mark.parametrize(("file", "uri"), [("/x/a.bin", "memory://adopt"), ("memory://x/a.bin", "local")])
def test_a_manifest_refers_to_no_file_of_another_store(file: str, uri: str, tmp_path: Path) -> None:
    """A dataset in an object store cannot list local files, nor a local one remote files: no reader could follow."""
    with pytest.raises(ValueError, match=rf"{file} does not lie below .*; .* choose a place above the files"):
        adopt([file], uri if "://" in uri else tmp_path, vocab_size=SMALL)
