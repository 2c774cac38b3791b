"""``shardstream demo``: the whole job, on real text that every machine has."""

import json
import random
import shlex
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import rich_click as click

import shardstream
from shardstream import BatchStream, DatasetWriter, TokenDataset
from shardstream.cli.measure import batch_maker, has_module, times_of
from shardstream.cli.program import Interrupted, RefusedData, Verb, examples, wrong_use
from shardstream.cli.progress import progress_bar
from shardstream.cli.report import console_of, counted, print_labelled, printable, seconds_text, size_text
from shardstream.cli.verify import verified
from shardstream.errors import StorageError
from shardstream.ingest.documents import Document, read_document, text_files

if TYPE_CHECKING:
    from shardstream.ingest.tokenizers import Tokenizer

_OUT: Final = "shardstream-demo"
_DATASET_NAME: Final = "dataset"
_TOKENIZER_NAME: Final = "tokenizer.json"
_METADATA: Final = {"made_by": "shardstream demo"}

_VOCAB_SIZE: Final = 16_384
# A fourth of the documents teaches a tokenizer whose tokens are 2 % shorter than those of one that has read them all,
# in a fifth of the time.
_LEARNING_STRIDE: Final = 4
_SHARD_TOKENS: Final = 2**20  # 2 MiB: small, so that there are several
_BATCH_DOCUMENTS: Final = 256  # 64 would leave processors idle: the largest document of a batch makes all wait
_BATCH_SIZE: Final = 64
_CONTEXT_LENGTH: Final = 256
_DRAW_SECONDS: Final = 1.0
_WINDOW_TOKENS: Final = 128


@click.command(
    cls=Verb,
    epilog=examples(
        "shardstream demo",
        "shardstream demo --source ~/my-project --vocab-size 4096 --out /tmp/my-demo",
    ),
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    default=_OUT,
    show_default=True,
    help="Folder for the dataset and its tokenizer. An earlier demo there is replaced.",
)
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of Python source to take as text.  [default: Python's standard library]",
)
@click.option(
    "--vocab-size", type=int, metavar="N", default=_VOCAB_SIZE, show_default=True, help="Ids of the tokenizer."
)
@click.option("--seed", type=int, metavar="N", help="Shows the same window again.")
def demo(*, out: Path, source: Path | None, vocab_size: int, seed: int | None) -> None:
    """Do the whole job once: real text, a tokenizer, a dataset, batches.

    The text is the source of Python's standard library, some 30 MB that are on every machine; nothing is downloaded. A
    byte-level BPE is learnt from it, every file becomes a document, random batches are drawn from the dataset as tensors,
    and an epoch is streamed, stopped in its middle and resumed. It takes less than a minute, and leaves a dataset to play with.
    """
    if missing := [name for name in ("torch", "tokenizers") if not has_module(name)]:
        raise ModuleNotFoundError(
            f"shardstream demo needs {' and '.join(missing)}: pip install 'shardstream[torch,tokenizers]'"
        )
    try:
        _run(out, source, vocab_size, random.Random(seed))  # noqa: S311 - no secret
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted; run it again, what it left is replaced") from error


def _run(out: Path, source: Path | None, vocab_size: int, chance: random.Random) -> None:
    _check_ours(out)
    documents = _read(source)
    with wrong_use():
        tokenizer = _learn(documents, vocab_size)
    dataset = _write(out, documents, tokenizer)
    _verify(dataset)
    _draw(dataset)
    _stream(dataset)
    start = chance.randrange(max(1, len(dataset) - _WINDOW_TOKENS))
    window = dataset[start : start + _WINDOW_TOKENS]
    console = console_of(sys.stdout)
    console.print(f"\n{len(window)} tokens from position {start:,} on, as text", style="bold")
    click.echo(printable(tokenizer.decode(window), kept="\n\t"))
    console.print("\nNow try", style="bold")
    place, tokenizer_path = shlex.quote(str(out / _DATASET_NAME)), shlex.quote(str(out / _TOKENIZER_NAME))
    for command in (f"info {place}", f"peek {place} --tokenizer {tokenizer_path}", f"verify {place}", f"bench {place}"):
        console.print(f"  shardstream {command}", soft_wrap=True)


def _say(label: str, text: str) -> None:
    print_labelled(label, text, width=len("tokenizer"))


def _check_ours(out: Path) -> None:
    """Refuse a folder that holds anything but an earlier demo."""
    names = {path.name for path in out.iterdir()} if out.exists() else set()
    is_like_ours = not names or (_DATASET_NAME in names and names <= {_DATASET_NAME, _TOKENIZER_NAME})
    try:
        is_ours = is_like_ours and shardstream.open(out / _DATASET_NAME).manifest.metadata == _METADATA
    except StorageError:  # no manifest: a demo that was interrupted, or none
        is_ours = is_like_ours
    if not is_ours:
        raise RefusedData(f"{out}: holds something else than an earlier demo; choose another folder with --out")


def _read(source: Path | None) -> list[Document]:
    folder = source or Path(sysconfig.get_path("stdlib"))
    with wrong_use():
        paths = text_files(folder, suffixes={".py"}, skipped_folders={"site-packages", "dist-packages"})
    documents = []
    with progress_bar("reading", sum(path.stat().st_size for path in paths), is_quiet=False) as advance:
        for path in paths:
            documents.append(read_document(path))
            advance(documents[-1].num_bytes)
    if not documents:
        raise RefusedData(f"{folder}: holds no .py files; name a folder of Python source with --source")
    num_repaired = sum(document.is_repaired for document in documents)
    repaired = f"; {num_repaired} with bytes that are no UTF-8, replaced" if num_repaired else ""
    _say(
        "text",
        f"{counted(len(documents), 'document')}, {size_text(_num_bytes(documents))}: .py files in {folder}{repaired}",
    )
    return documents


def _num_bytes(documents: Sequence[Document]) -> int:
    return sum(document.num_bytes for document in documents)


def _learn(documents: Sequence[Document], vocab_size: int) -> "Tokenizer":
    from shardstream.ingest.tokenizers import train_byte_bpe  # noqa: PLC0415 - heavy, and may be missing

    lessons = documents[::_LEARNING_STRIDE]
    began = time.perf_counter()
    with progress_bar("learning a tokenizer", _num_bytes(lessons), is_quiet=False) as advance:

        def texts() -> Iterator[str]:
            for document in lessons:  # pragma: no cover - runs in a thread of tokenizers, which no tracer sees
                yield document.text
                advance(document.num_bytes)

        tokenizer = train_byte_bpe(texts(), vocab_size=vocab_size)
    _say(
        "tokenizer",
        f"byte-level BPE, {tokenizer.vocab_size:,} ids, learnt from {len(lessons):,} of the documents in "
        f"{seconds_text(time.perf_counter() - began)}",
    )
    return tokenizer


def _write(out: Path, documents: Sequence[Document], tokenizer: "Tokenizer") -> TokenDataset:
    from shardstream.ingest.tokenizers import END_OF_TEXT  # noqa: PLC0415

    num_bytes = _num_bytes(documents)
    encode_seconds = write_seconds = 0.0
    writer = DatasetWriter(
        out / _DATASET_NAME,
        vocab_size=tokenizer.vocab_size,
        shard_tokens=_SHARD_TOKENS,
        eos_id=tokenizer.id_of(END_OF_TEXT),
        tokenizer={"name": "byte-level BPE of shardstream demo", "sha256": tokenizer.sha256},
        metadata=_METADATA,
        overwrite=True,
    )
    with writer, progress_bar("tokenizing and writing", num_bytes, is_quiet=False) as advance:
        for first in range(0, len(documents), _BATCH_DOCUMENTS):
            batch = documents[first : first + _BATCH_DOCUMENTS]
            began = time.perf_counter()
            encoded = tokenizer.encode_batch([document.text for document in batch])
            encoded_at = time.perf_counter()
            for ids in encoded:
                writer.append_document(ids)
            write_seconds += time.perf_counter() - encoded_at
            encode_seconds += encoded_at - began
            advance(_num_bytes(batch))
        began = time.perf_counter()
        writer.close()
        write_seconds += time.perf_counter() - began
    tokenizer.save(out / _TOKENIZER_NAME)
    manifest = writer.manifest
    num_tokens = manifest.num_tokens
    _say(
        "tokens",
        f"{num_tokens:,}, {num_bytes / num_tokens:.2f} bytes of text each: tokenized in "
        f"{seconds_text(encode_seconds)}, {num_bytes / encode_seconds / 1e6:,.1f} MB/s, "
        f"{num_tokens / encode_seconds / 1e6:,.2f} M tokens/s",
    )
    _say(
        "dataset",
        f"{out / _DATASET_NAME}: {counted(len(manifest.shards), 'shard')}, {size_text(manifest.num_bytes)}, written in "
        f"{seconds_text(write_seconds)}, {manifest.num_bytes / write_seconds / 1e6:,.0f} MB/s, "
        f"{num_tokens / write_seconds / 1e6:,.0f} M tokens/s",
    )
    return shardstream.open(out / _DATASET_NAME)


def _verify(dataset: TokenDataset) -> None:
    report, seconds = verified(dataset, None, is_quiet=False)
    if not report.ok:
        raise RefusedData(f"{dataset.uri}: {report.problems[0].shard}: {report.problems[0].problem}")
    _say("verified", f"{counted(report.num_shards, 'shard')}, all well, {report.num_bytes / seconds / 1e6:,.0f} MB/s")


def _draw(dataset: TokenDataset) -> None:
    with wrong_use():
        draw_batch = batch_maker(dataset, _BATCH_SIZE, _CONTEXT_LENGTH)
        inputs, targets = draw_batch()
    times = times_of(draw_batch, _DRAW_SECONDS)
    per_second = len(times) / float(times.sum())
    _say(
        "batches",
        f"{per_second:,.0f} per second, {per_second * _BATCH_SIZE * _CONTEXT_LENGTH / 1e6:,.0f} M tokens/s, drawn at "
        f"random by get_batch(dataset, {_BATCH_SIZE}, {_CONTEXT_LENGTH})",
    )
    for name, tensor in (("inputs", inputs), ("targets", targets)):
        _say("", f"{name:7}  {tuple(tensor.shape)}, {tensor.dtype}, on {tensor.device}: {tensor[0, :6].tolist()} ...")


def _stream(dataset: TokenDataset) -> None:
    """Stream an epoch, and in its middle do as a run that dies and is started again."""
    num_windows = (len(dataset) - 1) // _CONTEXT_LENGTH

    def new_stream() -> BatchStream:
        return BatchStream(
            dataset,
            batch_size=min(_BATCH_SIZE, num_windows),
            context_length=_CONTEXT_LENGTH,
            epochs=1,
            drop_last=False,
            dp_rank=0,
            dp_world_size=1,
        )

    began = time.perf_counter()
    starts: list[int] = []
    stream = new_stream()
    num_batches = len(stream)
    for _ in range(num_batches // 2):
        next(stream)
        starts += stream.positions.tolist()
    state = json.dumps(stream.state_dict())
    stream = new_stream()
    stream.load_state_dict(json.loads(state))
    for _ in stream:
        starts += stream.positions.tolist()
    seconds = time.perf_counter() - began
    _say(
        "epoch",
        f"{counted(num_batches, 'step')} in {seconds_text(seconds)}, "
        f"{len(starts) * _CONTEXT_LENGTH / seconds / 1e6:,.0f} M tokens/s, shuffled by BatchStream",
    )
    _say(
        "",
        f"stopped in its middle, resumed from a state of {len(state)} bytes: {len(starts):,} samples, "
        f"{len(set(starts)):,} different ones of {num_windows:,} windows",
    )
