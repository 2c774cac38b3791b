"""``shardstream demo``: the whole job, on real text that every machine has."""

import contextlib
import json
import random
import shlex
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import rich_click as click

import shardstream
from shardstream import BatchStream, TokenDataset, TokenizeProgress
from shardstream.cli.measure import batch_maker, has_module, times_of
from shardstream.cli.program import Interrupted, RefusedData, Verb, examples, wrong_use
from shardstream.cli.progress import job_bar, progress_bar
from shardstream.cli.report import console_of, counted, print_labelled, printable, seconds_text, size_text
from shardstream.cli.verify import verified
from shardstream.errors import StorageError
from shardstream.ingest.input_places import absolute, files_below
from shardstream.ingest.tokenizer import END_OF_TEXT

if TYPE_CHECKING:
    from shardstream.ingest.json_tokenizer import JsonTokenizer

_OUT: Final = "shardstream-demo"
_DATASET_NAME: Final = "dataset"
_TOKENIZER_NAME: Final = "tokenizer.json"
_METADATA: Final = {"made_by": "shardstream demo"}

_SKIPPED: Final = {"site-packages", "dist-packages"}  # other people's folders below the standard library's
_VOCAB_SIZE: Final = 16_384
# A fourth of the documents teaches a tokenizer whose tokens are 2 % shorter than those of one that has read them all,
# in a fifth of the time.
_LEARNING_STRIDE: Final = 4
_SHARD_TOKENS: Final = 2**20  # 2 MiB: small, so that there are several
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
        is_ours = (
            is_like_ours
            and shardstream.open(out / _DATASET_NAME).manifest.metadata.get("made_by") == _METADATA["made_by"]
        )
    except StorageError:  # no manifest: a demo that was interrupted, or none
        is_ours = is_like_ours
    if not is_ours:
        raise RefusedData(f"{out}: holds something else than an earlier demo; choose another folder with --out")


def _read(source: Path | None) -> list[Path]:
    """The files that are text."""
    folder = source or Path(sysconfig.get_path("stdlib"))
    with wrong_use():
        next(folder.iterdir(), None)  # a folder that is there
        names = [name for name, _ in files_below(absolute(str(folder)), None, {})]
    paths = [folder / name for name in names if name.endswith(".py") and _SKIPPED.isdisjoint(name.split("/"))]
    documents = []
    with progress_bar("reading", _num_bytes(paths), is_quiet=False) as advance:
        for path in paths:
            data = path.read_bytes()
            with contextlib.suppress(UnicodeDecodeError):
                data.decode("utf-8")
                documents.append(path)
            advance(len(data))
    if not documents:
        raise RefusedData(f"{folder}: holds no .py files; name a folder of Python source with --source")
    num_left_out = len(paths) - len(documents)
    left_out = f"; {num_left_out} more with bytes that are no UTF-8, left out" if num_left_out else ""
    _say(
        "text",
        f"{counted(len(documents), 'document')}, {size_text(_num_bytes(documents))}: .py files in {folder}{left_out}",
    )
    return documents


def _num_bytes(paths: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def _learn(documents: Sequence[Path], vocab_size: int) -> "JsonTokenizer":
    from shardstream.ingest.json_tokenizer import train_byte_bpe  # noqa: PLC0415 - heavy, and may be missing

    lessons = documents[::_LEARNING_STRIDE]
    began = time.perf_counter()
    with progress_bar("learning a tokenizer", _num_bytes(lessons), is_quiet=False) as advance:

        def texts() -> Iterator[str]:
            for path in lessons:  # pragma: no cover - runs in a thread of tokenizers, which no tracer sees
                yield path.read_text("utf-8")
                advance(path.stat().st_size)

        tokenizer = train_byte_bpe(texts(), vocab_size=vocab_size)
    _say(
        "tokenizer",
        f"byte-level BPE, {tokenizer.vocab_size:,} ids, learnt from {len(lessons):,} of the documents in "
        f"{seconds_text(time.perf_counter() - began)}",
    )
    return tokenizer


def _write(out: Path, documents: Sequence[Path], tokenizer: "JsonTokenizer") -> TokenDataset:
    began = time.perf_counter()
    last = TokenizeProgress()
    with tempfile.TemporaryDirectory() as folder, job_bar("tokenizing and writing", is_quiet=False) as show:

        def keep(progress: TokenizeProgress) -> None:
            nonlocal last
            last = progress
            show(progress.num_bytes, progress.total_bytes, progress.note)

        # Beside the dataset only when that is there: a folder with a tokenizer alone is somebody else's.
        path = Path(folder, "shardstream-demo", _TOKENIZER_NAME)
        path.parent.mkdir()
        tokenizer.save(path)
        manifest = shardstream.tokenize(
            documents,
            out / _DATASET_NAME,
            tokenizer=path,
            eos=END_OF_TEXT,
            side_files=True,
            shard_tokens=_SHARD_TOKENS,
            metadata=_METADATA,
            overwrite=True,
            progress=keep,
        )
    seconds = time.perf_counter() - began
    tokenizer.save(out / _TOKENIZER_NAME)
    _say(
        "tokens",
        f"{manifest.num_tokens:,}, {last.num_bytes / manifest.num_tokens:.2f} bytes of text each: tokenized and written "
        f"in {seconds_text(seconds)}, {last.num_bytes / seconds / 1e6:,.1f} MB/s, "
        f"{manifest.num_tokens / seconds / 1e6:,.2f} M tokens/s",
    )
    _say(
        "dataset",
        f"{out / _DATASET_NAME}: {counted(len(manifest.shards), 'shard')}, {size_text(manifest.num_bytes)}",
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
