"""``shardstream tokenize``: text becomes a dataset."""

import time
from collections.abc import Sequence
from typing import Any, Final

import rich_click as click

import shardstream
from shardstream import Manifest, TokenizeProgress
from shardstream.cli.info import facts_of
from shardstream.cli.program import Interrupted, Verb, examples, wrong_use
from shardstream.cli.progress import job_bar
from shardstream.cli.report import Fact, count, json_option, print_report, seconds_text, text
from shardstream.cli.target import out_option
from shardstream.ingest.pipeline import Engine
from shardstream.write.dataset_writer import DEFAULT_SHARD_TOKENS

_LOCAL: Final = "local"
_RAY: Final = "ray"


@click.command(
    cls=Verb,
    epilog=examples(
        "shardstream tokenize corpus/ --tokenizer tokenizer.json --out data/train",
        "shardstream tokenize 'dumps/**/*.jsonl.zst' --tokenizer gpt2/ --out s3://bucket/train --on-error skip",
        "shardstream tokenize rows-*.parquet --text-field content --tokenizer bytes --out data/bytes",
        "shardstream tokenize s3://raw/web --tokenizer tekken.json --out s3://bucket/web --engine ray --address auto",
    ),
)
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option(
    "--tokenizer",
    metavar="T",
    required=True,
    help="tokenizer.json, a folder that holds one (or vocab.json and merges.txt), a SentencePiece .model, tekken.json, "
    "tiktoken:NAME, a name on the Hugging Face Hub, or bytes, which needs nothing.",
)
@out_option
@click.option("--processes", type=int, metavar="N", help="Processes at work.  [default: one per processor]")
@click.option(
    "--text-field",
    metavar="NAME",
    default="text",
    show_default=True,
    help="Field of JSON lines, or column of Parquet and Arrow, that holds the text.",
)
@click.option("--eos", metavar="TEXT", help="Token that ends each document.  [default: the tokenizer's own]")
@click.option("--add-bos", is_flag=True, help="Begin each document with the tokenizer's token for that.")
@click.option(
    "--special-text",
    type=click.Choice(["encode", "refuse"]),
    default="encode",
    show_default=True,
    help="Where text spells a special token, such as <|endoftext|>: take it as letters, or refuse the document.",
)
@click.option(
    "--on-error",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="A bad record ends the job, or is left out and counted.",
)
@click.option(
    "--shuffle-documents",
    type=int,
    metavar="SEED",
    help="Put documents in a new order, within buffers of 33 million characters, or 130,000 short documents.",
)
@click.option(
    "--side-files", is_flag=True, help="Keep where each document comes from, in a Parquet file beside each shard."
)
@click.option(
    "--shard-tokens",
    type=int,
    metavar="N",
    default=DEFAULT_SHARD_TOKENS,
    show_default=True,
    help="Tokens of each shard but the last of a part.",
)
@click.option(
    "--part-bytes",
    type=int,
    metavar="N",
    help="Input bytes of a part, the piece of work of one process.  [default: a 256th, 2 MiB to 1 GiB]",
)
@click.option("--compression", type=click.Choice(["zstd"]), help="Store shards compressed; see write --help.")
@click.option(
    "--engine",
    type=click.Choice([_LOCAL, _RAY]),
    default=_LOCAL,
    show_default=True,
    help="Processes of this machine, or tasks of a Ray cluster; the dataset is the same.",
)
@click.option(
    "--address",
    metavar="A",
    help="The Ray cluster: auto, or HOST:PORT.  [default: that of RAY_ADDRESS, one that runs here, or one started here]",
)
@click.option("--overwrite", is_flag=True, help="Replace the dataset, or what another job left, at URI.")
@json_option
def tokenize(
    inputs: tuple[str, ...],
    *,
    uri: str,
    processes: int | None,
    engine: str,
    address: str | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,  # those of shardstream.tokenize, under their names
) -> None:
    """Tokenize text into one dataset.

    INPUT are files, folders, quoted glob patterns or URLs: JSON lines (.jsonl, also .gz and .zst), Parquet and Arrow, of
    which one field is read; any other file is text, and one document. Every processor works; the dataset is the same for
    any number of them. Text never becomes a special token; each document is ended by one.

    The dataset appears when it is complete. After Ctrl-C or a crash, run the same command again: it goes on. Parts that
    are done stay; one that was begun goes on too on this machine, and begins anew on a Ray cluster.
    """
    with wrong_use():
        chosen = _engine_of(engine, address, processes)
    began = time.perf_counter()
    told: list[TokenizeProgress] = []  # the first, which counts what earlier runs did, and the last
    try:
        with job_bar("tokenizing", is_quiet=as_json) as show, wrong_use():

            def keep(progress: TokenizeProgress) -> None:
                told[1:] = [progress]
                show(progress.num_bytes, progress.total_bytes, progress.note)

            manifest = shardstream.tokenize(
                inputs,
                uri,
                processes=processes,
                engine=chosen,
                overwrite=overwrite,
                progress=keep,
                **options,
            )
    except KeyboardInterrupt as error:
        again = "the same command without --overwrite" if overwrite else "the same command"
        raise Interrupted(f"interrupted; what is durable stays, and {again} goes on from there") from error
    facts = _facts_of(manifest, told, time.perf_counter() - began)
    print_report([text("uri", "dataset", uri), *facts], as_json=as_json)


def _engine_of(engine: str, address: str | None, processes: int | None) -> Engine | None:
    if engine == _LOCAL:
        if address is not None:
            raise ValueError("--address names a Ray cluster; give --engine ray too")
        return None
    if processes is not None:
        raise ValueError("--processes are of this machine; on Ray, the cluster says how many")
    from shardstream.integrations.ray_data import RayEngine  # noqa: PLC0415 - its users have Ray

    return RayEngine(address=address)


def _facts_of(manifest: Manifest, told: Sequence[TokenizeProgress], seconds: float) -> list[Fact]:
    account = manifest.metadata["tokenize"]
    return [
        *facts_of(manifest),
        count("num_ignored_files", "ignored files", account["num_ignored_files"]),
        count("num_empty_documents", "empty documents", account["num_empty_documents"]),
        count("num_bad_records", "bad records", account["num_bad_records"]),
        Fact("seconds", "time", seconds, seconds_text(seconds)),
        _rate(told, seconds),
    ]


def _rate(told: Sequence[TokenizeProgress], seconds: float) -> Fact:
    if not told:
        return Fact("tokens_per_second", "rate", 0.0, "none: this very job was complete")
    tokens_per_second = told[-1].num_tokens / seconds
    mb_per_second = (told[-1].num_bytes - told[0].num_bytes) / seconds / 1e6
    return Fact(
        "tokens_per_second",
        "rate",
        tokens_per_second,
        f"{tokens_per_second / 1e6:,.2f} M tokens/s, {mb_per_second:,.1f} MB/s of input",
    )
