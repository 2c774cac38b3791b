"""Datasets of format version 1, kept as bytes: what is here stays readable for ever, and is still what the writer writes.

Nothing below ``v1/`` is ever changed. ``python tests/golden/test_golden.py FOLDER`` writes the same datasets to another
folder, and refuses one that holds any of them.

* ``uint16`` and ``uint32`` were written by shardstream 0.1.0.
* ``adopted`` was written by hand. It holds what version 1 admits and that writer never makes: any JSON layout, unknown
  fields, short shards in front of longer ones, a foreign header, a location, rows with nothing optional in them.
* ``zstd`` was written by the first writer that compressed, but for its second shard, which is what ``zstd -19`` makes of
  a file: a frame that says how long its content is.
* ``sided`` was written by the first writer that made side files. Its third one was rewritten as another program might:
  other encodings, no compression, a row group per row, one more column, nulls allowed.
"""

from __future__ import annotations

import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

import shardstream
from shardstream.format.integrity import content_problem
from shardstream.format.zstd_shard import decompressed_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

V1 = Path(__file__).parent / "v1"
CREATOR = b'"creator":"shardstream 0.1.0"'


class Golden(NamedTuple):
    """What a golden dataset holds."""

    name: str
    dtype: str
    shards: dict[str, list[int]]
    digest: str
    num_documents: int
    trust_locations: bool = False

    @property
    def tokens(self) -> list[int]:
        """The token stream."""
        return [token for shard in self.shards.values() for token in shard]

    def open(self) -> shardstream.TokenDataset:
        """Open it where it lies."""
        return shardstream.open(V1 / self.name, trust_locations=self.trust_locations)


UINT16 = Golden(
    name="uint16",
    dtype="<u2",
    shards={
        "shard-000000.bin": [15496, 11, 995, 0, 50256, 464, 2068, 7586],
        "shard-000001.bin": [21831, 50256, 1, 255, 256, 257, 32767, 32768],
        "shard-000002.bin": [50255, 50256, 50256],
    },
    digest="f0007cf8fdf9385018c485af2e1781609812b0bfb046b117e340940ef566d268",
    num_documents=4,
)
UINT32 = Golden(
    name="uint32",
    dtype="<u4",
    shards={
        "shard-000000.bin": [128000, 9906, 11, 1917, 0, 128001],
        "shard-000001.bin": [65535, 65536, 65537, 70000, 100000, 128255],
        "shard-000002.bin": [0, 1],
    },
    digest="147379bbfca405a07e19e3876b8c2fce9522532644d6b8383a2904cbefa3e66e",
    num_documents=1,
)
ADOPTED = Golden(
    name="adopted",
    dtype="<u2",
    shards={
        "first.bin": [7],
        "foreign/tokens.bin": [65535, 0, 513],
        "last.bin": [3, 4],
    },
    digest="bce62636e3bc340844d23368d06e290c234d0a97fda697a5ab25b012de7f1598",
    num_documents=0,
    trust_locations=True,
)
ZSTD = Golden(
    name="zstd",
    dtype="<u2",
    shards={  # the stream of UINT16 over and over, so that there is something to compress
        "shard-000000.bin.zst": (UINT16.tokens * 40)[:256],
        "shard-000001.bin.zst": (UINT16.tokens * 40)[256:512],
        "shard-000002.bin.zst": (UINT16.tokens * 40)[512:],
    },
    digest="478a955aa5b6523e613fb80ffbe77db4955f75c7d027a00f79242506fc18b819",
    num_documents=0,
)
SIDED = Golden(name="sided", dtype="<u2", shards=UINT16.shards, digest=UINT16.digest, num_documents=4)
SIDED_DOCUMENTS = [
    shardstream.SourceDocument(start=0, source="greetings.txt", key=""),
    shardstream.SourceDocument(start=5, source="Füchse.jsonl", key="byte 0"),
    shardstream.SourceDocument(start=10, source="numbers/a.parquet", key="7"),
    shardstream.SourceDocument(start=18, source="Füchse.jsonl", key="byte 17"),
]
ALL = [pytest.param(golden, id=golden.name) for golden in (UINT16, UINT32, ADOPTED, ZSTD, SIDED)]


def write_uint16(folder: Path) -> None:
    with shardstream.DatasetWriter(
        folder,
        vocab_size=50257,
        shard_tokens=8,
        tokenizer={
            "name": "gpt2",
            "sha256": "dc016b92440b8e96e2a9dfe2551d13f697ec4373739ae5d5da962aa637ffbd86",
            "eos_id": 50256,
        },
        metadata={"source": "example"},
    ) as writer:
        writer.append_document([15496, 11, 995, 0])
        writer.append_document([464, 2068, 7586, 21831])
        writer.append_document([1, 255, 256, 257, 32767, 32768, 50255])
        writer.append_document([])


def write_uint32(folder: Path) -> None:
    with shardstream.DatasetWriter(
        folder,
        vocab_size=128256,
        shard_tokens=6,
        tokenizer={"name": "llama3", "eos_id": 128001, "bos_id": 128000, "pad_id": 128004},
        metadata={"note": "Grüße, \U0001f418\n", "nested": {"b": [1, 2.5, None, True], "a": ""}},
    ) as writer:
        writer.append_document([128000, 9906, 11, 1917, 0])
        writer.append([65535, 65536, 65537, 70000, 100000, 128255, 0, 1])


def write_adopted(folder: Path) -> None:
    (folder / "files").mkdir(parents=True)
    header_of = {"first.bin": b"", "files/ids.foreign": b"a header....", "last.bin": b""}
    for (file, header), tokens in zip(header_of.items(), ADOPTED.shards.values(), strict=True):
        (folder / file).write_bytes(header + np.array(tokens, dtype=ADOPTED.dtype).tobytes())
    manifest = {
        "version": 1,
        "format": "shardstream",
        "added_later": {"kept": [1.5, None, "as it was"]},
        "vocab_size": 65536,
        "dtype": "uint16",
        "tokenizer": None,
        "shards": [
            {"num_bytes": 2, "num_tokens": 1, "name": "first.bin", "sha256": None, "added_later": "kept too"},
            {
                "num_tokens": 3,
                "num_bytes": 6,
                "name": "foreign/tokens.bin",
                "location": "files/ids.foreign",
                "byte_offset": 12,
                "min_token": 0,
                "max_token": 65535,
            },
            {"num_bytes": 4, "num_tokens": 2, "name": "last.bin", "byte_offset": 0},
        ],
        "num_tokens": 6,
        "num_documents": 0,
        "shard_tokens": 3,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2), "utf-8")


def write_zstd(folder: Path) -> None:
    with shardstream.DatasetWriter(
        folder, vocab_size=50257, shard_tokens=256, eos_id=50256, compression="zstd"
    ) as writer:
        writer.append(UINT16.tokens * 40)
    shard = folder / "shard-000001.bin.zst"
    data = zstandard.ZstdCompressor(level=19, write_checksum=True).compress(
        np.array(ZSTD.shards[shard.name], ZSTD.dtype).tobytes()
    )
    shard.write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["shards"][1]["stored"] |= {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    canonical = shardstream.Manifest.parse(json.dumps(manifest).encode()).to_json()
    (folder / "manifest.json").write_bytes(canonical)


def write_sided(folder: Path) -> None:
    with shardstream.DatasetWriter(folder, vocab_size=50257, shard_tokens=8, eos_id=50256, side_files=True) as writer:
        for document in SIDED_DOCUMENTS:
            tokens = SIDED.tokens[document.start :]
            writer.append_document(tokens[: tokens.index(50256)], source=document.source, key=document.key)
    path = folder / "shard-000002.documents.parquet"
    columns = parquet.read_table(path)
    columns = columns.cast(pa.schema([pa.field(field.name, field.type) for field in columns.schema]))
    parquet.write_table(
        columns.append_column("length", pa.array([1.0])),
        path,
        row_group_size=1,
        compression="none",
        use_dictionary=False,
        column_encoding={"start": "DELTA_BINARY_PACKED"},
    )
    data = path.read_bytes()
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["shards"][2]["documents"] |= {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    canonical = shardstream.Manifest.parse(json.dumps(manifest).encode()).to_json()
    (folder / "manifest.json").write_bytes(canonical)


GOLDEN = (UINT16, UINT32, ADOPTED, ZSTD, SIDED)
WRITERS: list[Callable[[Path], None]] = [write_uint16, write_uint32, write_adopted, write_zstd, write_sided]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("golden", ALL)
def test_golden_dataset_gives_exactly_its_tokens(golden: Golden) -> None:
    """A golden dataset opens, and its tokens are the ones written down here, in its stored dtype."""
    with golden.open() as dataset:
        assert dataset[:].tolist() == golden.tokens
        assert dataset.windows(range(len(golden.tokens) - 3), 4).tolist() == [
            golden.tokens[start : start + 4] for start in range(len(golden.tokens) - 3)
        ]
        assert dataset.dtype == np.dtype(golden.dtype)
        assert dataset.manifest.num_documents == golden.num_documents


@pytest.mark.parametrize("golden", ALL)
def test_golden_dataset_verifies(golden: Golden) -> None:
    """Every shard of a golden dataset is what its manifest says."""
    report = golden.open().verify()

    assert report.ok, report.problems
    assert (report.num_shards, report.num_tokens) == (len(golden.shards), len(golden.tokens))


@pytest.mark.parametrize("golden", ALL)
def test_golden_digest_never_changes(golden: Golden) -> None:
    """The dataset digest of a golden dataset is the one written down here."""
    assert golden.open().manifest.digest == golden.digest


@pytest.mark.parametrize("golden", ALL[:2])
def test_numpy_alone_reads_a_golden_shard(golden: Golden) -> None:
    """``numpy.memmap(name, dtype)`` of a shard gives its tokens: there is nothing else in the file."""
    for name, tokens in golden.shards.items():
        assert np.memmap(V1 / golden.name / name, golden.dtype, mode="r").tolist() == tokens


@pytest.mark.parametrize(
    ("golden", "write"), [(UINT16, write_uint16), (UINT32, write_uint32)], ids=["uint16", "uint32"]
)
def test_writer_still_writes_the_golden_bytes(golden: Golden, write: Callable[[Path], None], tmp_path: Path) -> None:
    """A writer given the golden tokens makes the golden files, byte for byte but for the version in ``creator``."""
    write(tmp_path / golden.name)

    written = files_of(tmp_path / golden.name)
    ours = b'"creator":"shardstream %s"' % version("shardstream").encode()
    assert written["manifest.json"].count(ours) == 1
    written["manifest.json"] = written["manifest.json"].replace(ours, CREATOR)
    assert written == files_of(V1 / golden.name)


def test_golden_frames_give_exactly_their_tokens() -> None:
    """Every compressed golden shard is what its row says and decompresses to its tokens, as a raw one would hold them."""
    manifest = shardstream.Manifest.parse((V1 / "zstd" / "manifest.json").read_bytes())

    assert manifest.digest == ZSTD.digest
    for entry, (name, tokens) in zip(manifest.shards, ZSTD.shards.items(), strict=True):
        assert entry.name == name
        with (V1 / "zstd" / name).open("rb") as file:
            assert content_problem(manifest, entry, file) is None
            file.seek(0)
            raw = b"".join(bytes(block) for block in decompressed_blocks(file.read, entry))
        assert np.frombuffer(raw, ZSTD.dtype).tolist() == tokens


def test_golden_side_files_lead_to_their_documents(tmp_path: Path) -> None:
    """Every token of the golden dataset with side files has its document, and the writer still writes the same rows."""
    write_sided(tmp_path / "sided")

    for folder in (V1, tmp_path):
        with shardstream.open(folder / "sided") as dataset:
            found = [dataset.document_at(position) for position in range(len(dataset))]
            names = [shard.documents_name for shard in dataset.manifest.shards]
        assert found == [
            max((d for d in SIDED_DOCUMENTS if d.start <= position), key=lambda d: d.start)
            for position in range(len(found))
        ]
        # Not its bytes, which name the version of the Parquet library that wrote them.
        rows = [parquet.read_table(folder / "sided" / name).to_pylist() for name in names]
        assert [[row["start"] for row in file] for file in rows] == [[0, 5], [2], [2]]


@pytest.mark.parametrize("name", ["uint16", "uint32", "zstd", "sided"])
def test_golden_manifest_is_canonical(name: str) -> None:
    """Parsing a golden manifest and writing it again gives the same bytes."""
    data = (V1 / name / "manifest.json").read_bytes()

    assert shardstream.Manifest.parse(data).to_json() == data


def test_unknown_fields_of_the_golden_dataset_are_kept() -> None:
    """Fields that version 1 does not know survive parsing and writing, in the manifest and in its rows."""
    data = (V1 / "adopted" / "manifest.json").read_bytes()

    rewritten = json.loads(shardstream.Manifest.parse(data).to_json())

    assert rewritten["added_later"] == {"kept": [1.5, None, "as it was"]}
    assert [row.get("added_later") for row in rewritten["shards"]] == ["kept too", None, None]


def test_every_golden_dataset_is_tested() -> None:
    """No folder of golden bytes is without its expectations here."""
    assert {folder.name for folder in V1.iterdir() if folder.is_dir()} == {golden.name for golden in GOLDEN}


def make(folder: Path) -> None:
    """Write the golden datasets below ``folder``, none of which may be there."""
    targets = [folder / golden.name for golden in GOLDEN]
    if there := [str(target) for target in targets if target.exists()]:
        sys.exit(f"golden bytes are never written again: {', '.join(there)} exist; name another folder")
    for target, write in zip(targets, WRITERS, strict=True):
        write(target)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
