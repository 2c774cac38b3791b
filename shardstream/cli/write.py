"""``shardstream write``: files of ids become a dataset."""

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final

import rich_click as click

from shardstream import DatasetWriter, Manifest
from shardstream.cli.info import facts_of
from shardstream.cli.program import Interrupted, RefusedData, Verb, examples, refused_data, wrong_use
from shardstream.cli.progress import progress_bar
from shardstream.cli.report import Fact, count, json_option, print_report, seconds_text, size_text, text
from shardstream.cli.target import out_option, tokenizer_name_option
from shardstream.ingest.flat_ids import decimal_stream, raw_stream
from shardstream.ingest.token_files import open_token_file
from shardstream.ingest.token_pieces import TokenFile
from shardstream.write.dataset_writer import DEFAULT_SHARD_TOKENS
from shardstream.write.zstd_upload import Compression

_STDIN: Final = "standard input"


@click.command(
    cls=Verb,
    epilog=examples(
        "shardstream write a.bin b.bin --dtype uint16 --vocab-size 50257 --out data/train",
        "shardstream write rows-*.parquet --eos-id 2 --vocab-size 32000 --out s3://bucket/train",
        "zcat ids.txt.gz | shardstream write - --vocab-size 50257 --out data/train",
        "shardstream write *.npy --vocab-size 50257 --compression zstd --out s3://bucket/train",
    ),
)
@click.argument("inputs", metavar="IN...", nargs=-1, required=True)
@out_option
@click.option(
    "--vocab-size",
    type=int,
    metavar="N",
    required=True,
    help="Number of ids; up to 65,536 are stored as uint16, else as uint32.",
)
@click.option("--dtype", metavar="NAME", help="Dtype of raw inputs, as NumPy names it: uint16, int32, >u4.")
@click.option("--column", metavar="NAME", help="Column of ids or of lists of ids.  [default: the only one]")
@click.option(
    "--eos-id",
    type=int,
    metavar="N",
    help="Id that ends a document. With it, each row of a column of lists is a document.",
)
@click.option("--allow-eos-in-documents", is_flag=True, help="Accept rows that hold the eos id themselves.")
@click.option(
    "--shard-tokens",
    type=int,
    metavar="N",
    default=DEFAULT_SHARD_TOKENS,
    show_default=True,
    help="Tokens of each shard but the last.",
)
@click.option(
    "--compression",
    type=click.Choice(["zstd"]),
    help="Store each shard as a zstd frame, about a third of the size. It pays where bytes travel, to and from object "
    "storage. Where the dataset is read from a local disk, leave it out: raw shards are mapped as they lie, compressed "
    "ones take a cache and time to be decompressed into it.  [default: raw]",
)
@tokenizer_name_option
@click.option("--overwrite", is_flag=True, help="Replace the dataset, or what a run left behind, at URI.")
@click.option("--resume", is_flag=True, help="Go on where an earlier run of the same command stopped.")
@json_option
def write(  # the options are the interface
    inputs: tuple[str, ...],
    *,
    uri: str,
    vocab_size: int,
    dtype: str | None,
    column: str | None,
    eos_id: int | None,
    allow_eos_in_documents: bool,
    shard_tokens: int,
    compression: Compression | None,
    tokenizer_name: str | None,
    overwrite: bool,
    resume: bool,
    as_json: bool,
) -> None:
    """Write files of token ids as one dataset.

    IN are local paths or fsspec URLs, in the order of the stream: .npy (one dimension), raw .bin (with --dtype), both
    also compressed (.bin.zst, .npy.gz); columns of .parquet, .arrow and .feather; or - for standard input, raw with
    --dtype, else decimal ids between white space. Every id is checked. Memory stays small, however large the inputs.

    The dataset appears when it is complete. After a crash, add --resume to the same command.
    """
    with wrong_use():
        files = _opened(inputs, dtype, column)
        append = _append_rows if _has_documents(files, eos_id) else _append_flat
        writer = DatasetWriter(
            uri,
            vocab_size=vocab_size,
            shard_tokens=shard_tokens,
            eos_id=eos_id,
            tokenizer={"name": tokenizer_name},
            compression=compression,
            allow_eos_in_documents=allow_eos_in_documents,
            overwrite=overwrite,
            resume=resume,
        )
    num_durable = writer.num_tokens
    sizes = [file.num_bytes for file in files]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    began = time.perf_counter()
    try:
        with writer, progress_bar("writing", total, is_quiet=as_json) as advance:
            append(writer, files, advance)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"interrupted; nothing is published, but full shards are kept: the same command with --resume"
            f"{' in place of --overwrite' if overwrite else ''} goes on from there"
        ) from error
    facts = _facts_of(writer.manifest, num_durable, time.perf_counter() - began)
    print_report([text("uri", "dataset", writer.uri), *facts], as_json=as_json)


def _opened(inputs: Sequence[str], dtype: str | None, column: str | None) -> list[TokenFile]:
    if inputs.count("-") > 1:
        raise ValueError("standard input, -, can be read once")
    return [_stdin(dtype) if name == "-" else open_token_file(name, dtype=dtype, column=column) for name in inputs]


def _stdin(dtype: str | None) -> TokenFile:
    data = open(0, "rb", closefd=False)  # noqa: SIM115 - not ours to close
    return decimal_stream(data, name=_STDIN) if dtype is None else raw_stream(data, dtype, name=_STDIN)


def _has_documents(files: Sequence[TokenFile], eos_id: int | None) -> bool:
    """Whether every row of every file is a document."""
    if eos_id is None:
        return False
    with_rows = [file.name for file in files if file.row_pieces]
    without = [file.name for file in files if not file.row_pieces]
    if with_rows and without:
        raise ValueError(
            f"{with_rows[0]} has rows, which --eos-id makes documents, and {without[0]} has none; write them as two "
            "datasets and merge those, or leave out --eos-id to join everything"
        )
    return bool(with_rows)


def _append_flat(writer: DatasetWriter, files: Sequence[TokenFile], advance: Callable[[int], object]) -> None:
    """Append the ids that follow those which are durable already."""
    num_durable, num_passed = writer.num_tokens, 0
    for file in files:
        where = f"{file.name}, which begins at position {num_passed}" if num_passed else file.name
        for piece in file.pieces():
            num_dropped = min(max(num_durable - num_passed, 0), len(piece.ids))
            if num_dropped < len(piece.ids):
                with refused_data(where):
                    writer.append(piece.ids[num_dropped:])
            num_passed += len(piece.ids)
            advance(piece.num_bytes)
    _check_reached(writer, num_durable, num_passed, "tokens")


def _append_rows(writer: DatasetWriter, files: Sequence[TokenFile], advance: Callable[[int], object]) -> None:
    """Append the documents that follow those which are durable already."""
    num_durable, num_passed = writer.num_documents, 0
    for name, row_pieces in [(file.name, file.row_pieces) for file in files if file.row_pieces]:
        num_before = num_passed
        for piece in row_pieces():
            for start, stop in pairwise(piece.bounds.tolist()):
                if num_passed >= num_durable:
                    with refused_data(f"{name}, row {num_passed - num_before}"):
                        writer.append_document(piece.ids[start:stop])
                num_passed += 1
            advance(piece.num_bytes)
    _check_reached(writer, num_durable, num_passed, "documents")


def _check_reached(writer: DatasetWriter, num_durable: int, num_passed: int, what: str) -> None:
    if num_passed < num_durable:
        raise RefusedData(
            f"{writer.uri}: {num_durable:,} {what} are durable, and the inputs hold only {num_passed:,}; give the inputs "
            "that the run began with, or start again with --overwrite"
        )


def _facts_of(manifest: Manifest, num_durable: int, seconds: float) -> list[Fact]:
    num_bytes = (manifest.num_tokens - num_durable) * manifest.dtype.itemsize
    mb_per_second = num_bytes / seconds / 1e6
    resumed = [count("num_resumed_tokens", "durable before", num_durable)] if num_durable else []
    return [
        *facts_of(manifest),
        *_stored_size(manifest),
        *resumed,
        Fact("seconds", "time", seconds, seconds_text(seconds)),
        Fact("mb_per_second", "rate", mb_per_second, f"{mb_per_second:,.0f} MB/s of {manifest.dtype.name} tokens"),
    ]


def _stored_size(manifest: Manifest) -> list[Fact]:
    """What compression made of the size, where there was any."""
    if not any(shard.stored for shard in manifest.shards):
        return []
    stored_bytes = sum(shard.file_bytes for shard in manifest.shards)
    ratio = stored_bytes / manifest.num_bytes
    return [Fact("stored_bytes", "stored size", stored_bytes, f"{size_text(stored_bytes)}, {ratio:.2f} of the size")]
