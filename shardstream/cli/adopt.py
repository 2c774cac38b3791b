"""``shardstream adopt``: token files of other systems become a dataset, where they lie."""

import time
from collections import Counter

import rich_click as click

from shardstream import Manifest
from shardstream.cli.info import facts_of
from shardstream.cli.program import Verb, examples, wrong_use
from shardstream.cli.progress import progress_bar
from shardstream.cli.report import Fact, count, counted, json_option, print_report, rate, seconds_text, text
from shardstream.cli.target import tokenizer_name_option
from shardstream.ingest.adopt import FoundFiles, adopt_files, find_files


@click.command(
    cls=Verb,
    epilog=examples(
        "shardstream adopt train.bin --vocab-size 50257 --out data/train",
        "shardstream adopt fineweb_train_*.bin --vocab-size 50257 --eos-id 50256 --out .",
        "shardstream adopt part-*.npy --dtype uint32 --vocab-size 100278 --out data/olmo",
        "shardstream verify data/train --trust-locations",
    ),
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--out", "uri", metavar="URI", required=True, help="Folder or URL that the manifest goes to.")
@click.option(
    "--vocab-size",
    type=int,
    metavar="N",
    required=True,
    help="Number of ids of the tokenizer. Up to 65,536 the ids must be of 16 bits, else of 32.",
)
@click.option(
    "--dtype",
    metavar="NAME",
    help="Dtype of files that do not say it: uint16, int16, uint32 or int32.  [default: by the vocabulary]",
)
@click.option("--eos-id", type=int, metavar="N", help="Id that ends a document, to be counted.")
@tokenizer_name_option
@click.option(
    "--no-checksum",
    is_flag=True,
    help="Read no id, for a look: nothing is checked but sizes, and damage will not be found.",
)
@click.option("--overwrite", is_flag=True, help="Replace a manifest that is there, and nothing else.")
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="Files read at a time.  [default: one per processor]"
)
@json_option
def adopt(  # the options are the interface
    files: tuple[str, ...],
    *,
    uri: str,
    vocab_size: int,
    dtype: str | None,
    eos_id: int | None,
    tokenizer_name: str | None,
    no_checksum: bool,
    overwrite: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Make a dataset of token files that another program wrote, without copying them.

    Known are NumPy's .npy, the .bin of llm.c, Megatron's .bin with its .idx beside it, datatrove's .ds, and raw ids as in
    nanoGPT's .bin and the .npy of OLMo and Dolma. Each file becomes one shard, in the order given. Its ids are read once:
    all must be below --vocab-size, and their checksum goes into the manifest. Only the manifest is written.

    The files must stay where they are, unchanged. Files below URI become shards like any other, which a writer that
    overwrites the dataset would delete; of others the manifest holds the paths, and who reads them has to trust it:
    --trust-locations, or trust_locations=True in Python. A manifest behind a URL can list files below that URL only.
    """
    began = time.perf_counter()
    with wrong_use():
        found = find_files(files, uri, vocab_size=vocab_size, dtype=dtype)
        with progress_bar("reading", found.num_bytes, is_quiet=as_json) as advance:
            manifest = adopt_files(
                found,
                vocab_size=vocab_size,
                eos_id=eos_id,
                tokenizer={"name": tokenizer_name} if tokenizer_name else None,
                metadata=None,
                checksum=not no_checksum,
                overwrite=overwrite,
                num_threads=threads,
                progress=advance,
            )
    seconds = time.perf_counter() - began
    print_report(
        [
            text("uri", "dataset", found.target.uri),
            _formats(found),
            _elsewhere(manifest),
            *facts_of(manifest),
            Fact("seconds", "time", seconds, seconds_text(seconds)),
            count("num_read_bytes", "read", 0) if no_checksum else rate(found.num_bytes, seconds),
        ],
        as_json=as_json,
    )


def _formats(found: FoundFiles) -> Fact:
    """What the files were taken for."""
    numbers = Counter((file.format, file.dtype.name) for file in found.files)
    value = [{"format": format_, "dtype": dtype, "num_files": number} for (format_, dtype), number in numbers.items()]
    words = (f"{counted(number, 'file')} of {dtype}: {format_}" for (format_, dtype), number in numbers.items())
    return Fact("formats", "taken for", value, "; ".join(words))


def _elsewhere(manifest: Manifest) -> Fact:
    """How many files need trust."""
    number = sum(shard.location is not None for shard in manifest.shards)
    words = f"{counted(number, 'file')}; reading takes --trust-locations" if number else "no file"
    return Fact("num_elsewhere", "elsewhere", number, words)
