"""Text to a dataset, against bare `tokenizers`: `encode_batch` over the same texts in as many processes.

What shardstream does beside encoding: it starts processes and loads the tokenizer in each, reads the files, checks ids,
takes checksums, and writes shards durably; all of that is in its time. The bare contender's texts are in memory, its
processes are started and its tokenizer loaded before the clock is, and its ids go nowhere. Processes of both have one
thread each. Real text: the source of Python's standard library, and the documentation of Linux where Debian's
linux-doc-6.1 is installed. The tokenizer is GPT-2's where --tokenizer names it, else one trained on the spot.
"""

import argparse
import gzip
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
from measure import MIB, Bar, Report, Timings, arguments, scratch_folder, take_turns

import shardstream
from shardstream.ingest.json_tokenizer import train_byte_bpe
from shardstream.ingest.tokenizer import END_OF_TEXT
from shardstream.ingest.tokenizers import load_tokenizer
from shardstream.integrations.ray_data import RayEngine

LINUX_DOC = Path("/usr/share/doc/linux-doc-6.1/Documentation")
BATCH_CHARACTERS = 2**20
VOCAB_SIZE = 50_257


class Size(NamedTuple):
    """How much is measured."""

    num_files: int | None
    """Of each corpus; None takes all."""
    num_rounds: int
    vocab_size: int
    adopted_bytes: int
    part_bytes: int | None


FULL = Size(None, 4, VOCAB_SIZE, 2**30, None)
QUICK = Size(40, 1, 1_000, 2**20, 2**16)


class Corpus(NamedTuple):
    """Text on disk, and the same in memory."""

    paths: list[str]
    texts: list[str]

    @property
    def num_bytes(self) -> int:
        """Bytes of UTF-8."""
        return sum(len(text.encode()) for text in self.texts)


def main() -> int:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--tokenizer", metavar="T", help="as for `shardstream tokenize`; by default a BPE is trained")
    own, others = parser.parse_known_args()
    options = arguments(__doc__.partition("\n")[0], others)
    size = QUICK if options.quick else FULL
    report = Report("ingest", options)
    with scratch_folder(options) as folder:
        corpus = read_corpus(size, folder)
        tokenizer = own.tokenizer or trained(corpus, size, folder)
        report.setup |= {
            **size._asdict(),
            "tokenizer": load_tokenizer(tokenizer).name,
            "num_documents": len(corpus.texts),
            "text_bytes": corpus.num_bytes,
            "statistic": "best round of each contender",
        }
        measure_speed(report, size, corpus, tokenizer, folder / "target")
        measure_memory(report, size, corpus, tokenizer, folder)
        measure_adopt(report, size, folder)
    return report.finish()


def read_corpus(size: Size, folder: Path) -> Corpus:
    """The documents as files of plain text below ``folder``, and their texts."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    found = [path for path in sorted(stdlib.rglob("*.py")) if "site-packages" not in path.parts]
    paths = [*found[: size.num_files], *sorted(LINUX_DOC.rglob("*.gz"))[: size.num_files]]
    texts: list[str] = []
    written: list[str] = []
    for number, path in enumerate(paths):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        try:
            texts.append(data.decode("utf-8"))
        except UnicodeDecodeError:
            continue
        copy = folder / "corpus" / f"{number:06d}.txt"
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(data)
        written.append(str(copy))
    keep = [index for index, text in enumerate(texts) if text]
    return Corpus([written[index] for index in keep], [texts[index] for index in keep])


def trained(corpus: Corpus, size: Size, folder: Path) -> str:
    path = folder / "tokenizer.json"
    train_byte_bpe(corpus.texts[::4], vocab_size=size.vocab_size).save(path)
    return str(path)


# ---------------------------------------------------------------------------------------------------------------------
# Speed


def measure_speed(report: Report, size: Size, corpus: Corpus, tokenizer: str, target: Path) -> None:
    manifests: dict[str, shardstream.Manifest] = {}

    def ours(name: str, **how: Any) -> Callable[[object], None]:
        def run(_: object) -> None:
            manifests[name] = shardstream.tokenize(
                corpus.paths, target / name, tokenizer=tokenizer, eos=END_OF_TEXT, part_bytes=size.part_bytes, **how
            )

        return run

    contenders: dict[str, Callable[[dict[int, Encoders]], None]] = {
        "encode_batch, 1 process": lambda encoders: encoders[1].run(),
        "shardstream, 1 process": ours("one", processes=1),
        "encode_batch, 2 processes": lambda encoders: encoders[2].run(),
        "shardstream, 2 processes": ours("two", processes=2),
        "shardstream on Ray, 2 workers": ours("ray", engine=RayEngine()),
    }
    began = time.perf_counter()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    report.setup["ray_start_s"] = time.perf_counter() - began
    try:
        timings = take_turns(
            contenders,
            lambda _: {number: Encoders(corpus, tokenizer, number) for number in (1, 2)},
            num_rounds=size.num_rounds,
            before_each=lambda: shutil.rmtree(target, ignore_errors=True),
        )
    finally:
        ray.shutdown()
    digests = {manifest.digest for manifest in manifests.values()}
    if len(digests) != 1:
        raise SystemExit(f"the same job gave different datasets: {digests}")
    show_speed(report, corpus, timings, manifests["one"].num_tokens)


def show_speed(report: Report, corpus: Corpus, timings: Timings, num_tokens: int) -> None:
    rows = []
    for name in timings.seconds:
        best = timings.best(name)
        rows.append((name, f"{best:.1f} s", f"{corpus.num_bytes / best / 1e6:.2f}", f"{num_tokens / best / 1e6:.2f}"))
        report.figures.append({"name": name, "seconds": timings.seconds[name], "num_tokens": num_tokens})
    report.show(
        f"{len(corpus.texts):,} documents, {corpus.num_bytes / 1e6:.0f} MB, {num_tokens / 1e6:.1f} M tokens",
        ["contender", "time", "MB/s", "Mtokens/s"],
        rows,
    )
    for count in ("1 process", "2 processes"):
        ratio = timings.ratio(f"shardstream, {count}", f"encode_batch, {count}")
        report.bars.append(Bar(name=f"of bare encode_batch, {count}", bar=0.95, got=ratio))
    ratio = timings.ratio("shardstream, 2 processes", "shardstream, 1 process")
    report.bars.append(Bar(name="two processes against one", bar=1.8, got=ratio))
    ratio = timings.ratio("shardstream on Ray, 2 workers", "shardstream, 2 processes")
    report.bars.append(Bar(name="Ray with two workers against two local processes", bar=0.8, got=ratio))


class Encoders:
    """Processes that wait, with the texts and their tokenizer, for the word to begin; each takes the next batch."""

    def __init__(self, corpus: Corpus, tokenizer: str, num_processes: int) -> None:
        context = multiprocessing.get_context("fork")
        batches = batches_of(corpus.texts)
        self._taken = context.Value("q", 0)  # kept: what is forgotten here becomes the memory of the next such counter
        self._barrier = context.Barrier(num_processes + 1)
        self._processes = [
            context.Process(target=encode_batches, args=(batches, tokenizer, self._taken, self._barrier), daemon=True)
            for _ in range(num_processes)
        ]
        for process in self._processes:
            process.start()
        self._barrier.wait(timeout=120)  # until all have loaded

    def run(self) -> None:
        """Have all texts encoded."""
        self._barrier.wait()
        for process in self._processes:
            process.join()
        if any(process.exitcode for process in self._processes):
            raise SystemExit("encode_batch: a process failed; its traceback stands above")


def encode_batches(batches: list[list[str]], tokenizer: str, taken: Any, barrier: Any) -> None:
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    library: Any = load_tokenizer(tokenizer)._tokenizer  # type: ignore[attr-defined] # noqa: SLF001 - the bare one
    barrier.wait()  # loaded
    barrier.wait()  # begin
    while True:
        with taken.get_lock():
            number = taken.value
            taken.value += 1
        if number >= len(batches):
            return
        library.encode_batch(batches[number])


def batches_of(texts: list[str]) -> list[list[str]]:
    batches: list[list[str]] = [[]]
    num_characters = 0
    for text in texts:
        batches[-1].append(text)
        num_characters += len(text)
        if num_characters >= BATCH_CHARACTERS:
            batches.append([])
            num_characters = 0
    return [batch for batch in batches if batch]


# ---------------------------------------------------------------------------------------------------------------------
# Memory, and files of other systems

_PEAK_OF_CHILDREN = """
import json, resource, sys, shardstream
path, out, tokenizer = sys.argv[1:]
manifest = shardstream.tokenize([path], out, tokenizer=tokenizer, processes=1, shard_tokens=2**20, part_bytes=2**40)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


def measure_memory(report: Report, size: Size, corpus: Corpus, tokenizer: str, folder: Path) -> None:
    """The peak of a process whose part is a file of JSON lines, and of one whose part is a single document."""
    rows = []
    for kind, times in (("lines.jsonl", 1), ("lines.jsonl", 4), ("document.txt", 1), ("document.txt", 4)):
        path = folder / kind
        with path.open("w", encoding="utf-8") as file:
            for _ in range(times):
                for text in corpus.texts[:: 1 if size.num_files else 4]:
                    file.write(json.dumps({"text": text}) + "\n" if kind == "lines.jsonl" else text)
        out = folder / "memory"
        ran = subprocess.run(
            [sys.executable, "-c", _PEAK_OF_CHILDREN, str(path), str(out), tokenizer],
            check=True,
            capture_output=True,
            text=True,
        )
        num_bytes, peak = path.stat().st_size, int(ran.stdout)
        rows.append((kind, f"{num_bytes / MIB:,.0f} MiB", f"{peak / MIB:,.0f} MiB"))
        report.figures.append({"name": f"memory, {kind}", "input_bytes": num_bytes, "peak_bytes": peak})
        shutil.rmtree(out)
    report.show("peak memory of one process", ["input", "size", "peak"], rows)


def measure_adopt(report: Report, size: Size, folder: Path) -> None:
    """Two files of raw ids, adopted; beside it, their checksums by two threads and nothing else."""
    ids = np.random.default_rng(1).integers(0, VOCAB_SIZE, size=size.adopted_bytes // 4, dtype=np.uint16)
    paths = [folder / "a.bin", folder / "b.bin"]
    for path in paths:
        ids.tofile(path)

    def checksums(_: None) -> None:
        with ThreadPoolExecutor(len(paths)) as pool:
            list(pool.map(checksum_of, paths))

    def adopt(_: None) -> None:
        shardstream.adopt(paths, folder / "adopted", vocab_size=VOCAB_SIZE, overwrite=True)

    timings = take_turns({"sha256": checksums, "adopt": adopt}, lambda _: None, num_rounds=max(2, size.num_rounds))
    report.show(
        f"{size.adopted_bytes / MIB:,.0f} MiB of raw ids in two files",
        ["", "MB/s"],
        [(name, f"{size.adopted_bytes / timings.best(name) / 1e6:,.0f}") for name in timings.seconds],
    )
    report.figures += [{"name": name, "seconds": seconds} for name, seconds in timings.seconds.items()]


def checksum_of(path: Path) -> str:
    checksum = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(MIB):
            checksum.update(block)
    return checksum.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
