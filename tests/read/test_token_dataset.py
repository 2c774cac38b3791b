"""The dataset as one array, and what it says when its files are not what they should be."""

import gc
import pickle
import resource
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstream
from shardstream import FormatError, IntegrityError, StorageError
from shardstream.format.manifest import Manifest, ShardEntry


def test_indexing_is_numpy_indexing(write_dataset, tokens) -> None:
    """Any position and any slice, negative and stepped ones included, give what NumPy gives."""
    dataset = write_dataset(tokens)

    @given(key=st.slices(1000) | st.integers(-1000, 999))
    def law(key: int | slice) -> None:
        np.testing.assert_array_equal(tokens[key], dataset[key])
        assert dataset[key].dtype == np.uint16

    law()


def test_what_is_read_is_a_copy(write_dataset, tokens) -> None:
    """Slices and windows can be written to without changing the dataset."""
    dataset = write_dataset(tokens)
    dataset[3:9][:] = 0
    dataset.windows([3], 6)[:] = 0

    np.testing.assert_array_equal(tokens[3:9], dataset[3:9])


def test_a_dataset_as_an_array(write_dataset, tokens) -> None:
    """NumPy gets all tokens at once; a view it cannot have."""
    dataset = write_dataset(tokens)

    np.testing.assert_array_equal(tokens, np.asarray(dataset))
    assert np.asarray(dataset, dtype=np.int64).dtype == np.int64
    with pytest.raises(ValueError, match="always a copy"):
        dataset.__array__(copy=False)


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        (1000, IndexError, "position 1000 is not in the dataset's 1000 tokens"),
        (-1001, IndexError, "position -1001 is not in the dataset's 1000 tokens"),
        ([1, 2], TypeError, "indexed by a position or a slice, got list; for many windows at once use windows"),
        (1.0, TypeError, "indexed by a position or a slice, got float"),
    ],
)
def test_a_wrong_index_is_refused(key, error, message, write_dataset, tokens) -> None:
    """What is no position in the dataset is refused with the dataset's length or with what to do."""
    with pytest.raises(error, match=message):
        write_dataset(tokens)[key]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64, np.int64])
def test_starts_of_any_integer_dtype(dtype, write_dataset, tokens) -> None:
    """Starts may be any integers, or a list, or none at all."""
    dataset = write_dataset(tokens)

    assert dataset.windows(np.array([5, 100], dtype=dtype), 3).tolist() == [
        tokens[5:8].tolist(),
        tokens[100:103].tolist(),
    ]
    assert dataset.windows([], 3).shape == (0, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1]], 3), ValueError, r"starts have shape \(1, 1\); wanted one dimension"),
        (([1.5], 3), TypeError, "starts have dtype float64; wanted integers"),
        (([1], 0), ValueError, "length is 0; a window has at least 1 token"),
        (([1], -1), ValueError, "length is -1"),
        (([1], 1001), IndexError, "does not lie within the dataset's 1000 tokens"),
        (
            ([1], 3, np.zeros((1, 4), np.uint16)),
            ValueError,
            r"out has shape \(1, 4\) and dtype uint16; wanted \(1, 3\)",
        ),
        (([1], 3, np.zeros((1, 3), np.int64)), ValueError, "dtype int64; wanted .* and uint16"),
    ],
)
def test_wrong_windows_are_refused(arguments, error, message, write_dataset, tokens) -> None:
    """Each wrong argument of windows is refused with what was got and wanted."""
    with pytest.raises(error, match=message):
        write_dataset(tokens).windows(*arguments)


def test_an_empty_dataset_opens(write_dataset) -> None:
    """A dataset without a token is a dataset: length 0, nothing to index, verified."""
    dataset = write_dataset([])

    assert len(dataset) == 0
    assert dataset[:].shape == (0,)
    assert dataset.verify().ok
    with pytest.raises(IndexError, match="0 tokens"):
        dataset[0]
    with pytest.raises(IndexError, match="0 tokens"):
        dataset.windows([0], 1)


def test_a_pickle_is_small_and_opens_again(write_dataset, tokens) -> None:
    """A pickle holds no token; what it makes reads the same."""
    dataset = write_dataset(tokens)
    dataset[:]
    pickled = pickle.dumps(dataset)

    assert len(pickled) < 1000
    np.testing.assert_array_equal(tokens, pickle.loads(pickled)[:])


def test_a_pickle_of_a_dataset_that_was_replaced_is_refused(write_dataset, tokens) -> None:
    """A pickle finds the very tokens it was made of, or an IntegrityError."""
    pickled = pickle.dumps(write_dataset(tokens))
    write_dataset(tokens[::-1], overwrite=True)

    with pytest.raises(IntegrityError, match="the dataset has been replaced meanwhile"):
        pickle.loads(pickled)


def test_repr_says_what_and_where(write_dataset, tokens) -> None:
    """The repr names place, size, dtype, vocabulary and shards."""
    assert repr(write_dataset(tokens)).endswith("dataset', 1,000 tokens, uint16, vocab_size=1000, 16 shards)")


def test_a_closed_dataset_reads_again(write_dataset, tokens) -> None:
    """Leaving the ``with`` block lets go of the maps; reading on maps anew."""
    with write_dataset(tokens) as dataset:
        dataset[0]

    assert dataset[1] == tokens[1]


def test_a_dataset_that_is_dropped_lets_go_of_its_maps_at_once(write_dataset, tokens) -> None:
    """No reference cycle keeps files mapped until the garbage collector comes by."""
    dataset = write_dataset(tokens)
    dataset[:]
    maps = weakref.ref(dataset._shards)
    gc.disable()
    try:
        del dataset
        assert maps() is None
    finally:
        gc.enable()


def test_no_manifest_no_dataset(tmp_path: Path) -> None:
    """Opening a place without a manifest says what was looked for."""
    with pytest.raises(StorageError, match=r"manifest.json: cannot read: there is no such file; a dataset is a folder"):
        shardstream.open(tmp_path)


def test_a_file_url_is_a_local_path(write_dataset, tokens, tmp_path: Path) -> None:
    """``file://`` and a path are the same place."""
    write_dataset(tokens)

    np.testing.assert_array_equal(tokens, shardstream.open(f"file://{tmp_path}/dataset")[:])


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("max_cache_bytes", [None, 128, 1024])
def test_a_dataset_behind_a_url_is_read_through_the_cache(
    tokens, tmp_path, own_cache, compression, max_cache_bytes
) -> None:
    """Behind any URL, compressed or not, tokens, slices and windows are those of the array; the cache keeps its bound."""
    url = f"memory://{tmp_path}"
    with shardstream.DatasetWriter(url, vocab_size=1000, shard_tokens=64, compression=compression) as writer:
        writer.append(tokens)
    dataset = shardstream.open(url, max_cache_bytes=max_cache_bytes)
    largest = 0

    @settings(max_examples=30)
    @given(
        key=st.slices(1000) | st.integers(-1000, 999),
        starts=st.lists(st.integers(0, 900), max_size=8),
        length=st.integers(1, 100),
    )
    def law(key: int | slice, starts: list[int], length: int) -> None:
        nonlocal largest
        np.testing.assert_array_equal(tokens[key], dataset[key])
        expected = [tokens[start : start + length].tolist() for start in starts]
        assert dataset.windows(starts, length).tolist() == expected
        largest = max(largest, sum(path.stat().st_size for path in own_cache.glob("*.tokens")))

    law()
    assert dataset.verify().ok
    assert 0 < largest <= (max_cache_bytes or 2000)


def test_a_compressed_local_dataset_is_read_through_the_cache(write_dataset, tokens, own_cache) -> None:
    """Compressed shards on a local disk are decompressed into the cache, and read from there."""
    dataset = write_dataset(tokens, compression="zstd")

    np.testing.assert_array_equal(tokens, dataset[:])
    assert len(list(own_cache.glob("*.tokens"))) == 16


def test_a_damaged_copy_in_the_cache_is_mended(write_dataset, tokens, own_cache) -> None:
    """Promise 5: a cached shard that was cut or overwritten, before or while it is mapped, is downloaded again."""
    dataset = write_dataset(tokens, compression="zstd")
    dataset.expect(dataset, in_use=[0, 1])
    dataset.look_again()
    dataset[:]
    for path in own_cache.glob("*.tokens"):
        path.chmod(0o644)
        path.write_bytes(b"x" * 10)
    dataset.look_again()

    np.testing.assert_array_equal(tokens, dataset[:])


def test_a_pickle_of_a_remote_dataset_keeps_its_way_of_reading(tokens, tmp_path) -> None:
    """Cache, bound and public options travel with a pickle; cache_dir=False does too."""
    url = f"memory://{tmp_path}"
    with shardstream.DatasetWriter(url, vocab_size=1000, shard_tokens=64) as writer:
        writer.append(tokens)
    cached = pickle.loads(pickle.dumps(shardstream.open(url, cache_dir=tmp_path / "cache", max_cache_bytes=1000)))
    ranged = pickle.loads(pickle.dumps(shardstream.open(url, cache_dir=False)))

    assert (cached.cache.folder, cached.cache.max_bytes) == (tmp_path / "cache", 1000)
    assert ranged.cache is None
    assert cached[5] == ranged[5] == tokens[5]


@pytest.mark.parametrize(
    ("options", "compression", "message"),
    [
        (
            {"cache_dir": False, "max_cache_bytes": 5},
            None,
            "max_cache_bytes is 5, but cache_dir=False asks for no cache",
        ),
        (
            {"cache_dir": False},
            "zstd",
            "shard-000000.bin.zst is compressed, and read through a cache; give a cache_dir",
        ),
        ({"max_cache_bytes": 127}, None, "max_cache_bytes is 127; wanted at least 128: .* shard-000000.bin for one"),
        ({"cache_dir": "/dev/shm/cache"}, None, "cache_dir is /dev/shm/cache, which is memory, not a disk"),
    ],
)
def test_a_way_of_reading_that_cannot_work_is_refused(options, compression, message, tokens, tmp_path) -> None:
    """Promise 6: what cannot be read as wished is refused at open, with the figures or with what to do."""
    url = f"memory://{tmp_path}"
    with shardstream.DatasetWriter(url, vocab_size=1000, shard_tokens=64, compression=compression) as writer:
        writer.append(tokens)

    with pytest.raises(ValueError, match=message):
        shardstream.open(url, **options)


def test_shards_without_checksum_are_not_cached(tokens, tmp_path) -> None:
    """Adopted shards without a checksum are read in place or by ranges, never through a cache."""
    import fsspec  # noqa: PLC0415

    entry = ShardEntry(name="a.bin", num_tokens=1000, num_bytes=2000)
    manifest = Manifest(vocab_size=1000, shard_tokens=1000, shards=(entry,))
    files = fsspec.filesystem("memory")
    files.pipe_file(f"{tmp_path}/a.bin", tokens.tobytes())
    files.pipe_file(f"{tmp_path}/manifest.json", manifest.to_json())

    with pytest.raises(
        FormatError, match="a.bin has no checksum, and a cache holds verified shards only; adopt it again"
    ):
        shardstream.open(f"memory://{tmp_path}")
    assert shardstream.open(f"memory://{tmp_path}", cache_dir=False)[7] == tokens[7]


def test_an_empty_dataset_behind_a_url(tmp_path) -> None:
    """A dataset without a token opens behind a URL too, with any bound."""
    shardstream.DatasetWriter(f"memory://{tmp_path}", vocab_size=1000, shard_tokens=64).close()

    assert shardstream.open(f"memory://{tmp_path}", max_cache_bytes=0)[:].shape == (0,)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-2]), "truncated"),
        (lambda path: path.write_bytes(b""), "truncated: 0 bytes, the manifest says 128"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "too long: 129 bytes, the manifest says 128"),
    ],
)
def test_a_shard_of_the_wrong_size_is_found_before_it_is_read(damage, problem, write_dataset, tokens) -> None:
    """Promises 5 and 7: a missing, short, empty or long shard is an IntegrityError that names it, never a crash."""
    dataset = write_dataset(tokens)
    damage(Path(dataset.uri) / "shard-000003.bin")

    with pytest.raises(IntegrityError, match=f"shard-000003.bin: .*{problem}"):
        dataset.windows([200], 5)
    report = dataset.verify()
    assert not report.ok
    assert [(found.shard, problem in found.problem) for found in report.problems] == [("shard-000003.bin", True)]


def test_damage_that_keeps_the_size_is_found_by_verify(write_dataset, tokens) -> None:
    """Promise 5: a flipped bit and swapped shards are each found, the shard named, the twin too."""
    dataset = write_dataset(tokens)
    folder = Path(dataset.uri)
    data = bytearray((folder / "shard-000001.bin").read_bytes())
    data[17] ^= 1
    (folder / "shard-000001.bin").write_bytes(data)
    (folder / "shard-000004.bin").rename(folder / "aside")
    (folder / "shard-000007.bin").rename(folder / "shard-000004.bin")
    (folder / "aside").rename(folder / "shard-000007.bin")

    problems = {found.shard: found.problem for found in dataset.verify(num_threads=3).problems}

    assert list(problems) == ["shard-000001.bin", "shard-000004.bin", "shard-000007.bin"]
    assert "checksum is sha256" in problems["shard-000001.bin"]
    assert problems["shard-000004.bin"].endswith("its bytes are those of shard-000007.bin")


def test_verify_reports_progress(write_dataset, tokens) -> None:
    """The progress callback sees each shard once."""
    seen: list[str] = []
    dataset = write_dataset(tokens)
    dataset.verify(progress=lambda entry: seen.append(entry.name))

    assert sorted(seen) == [shard.name for shard in dataset.manifest.shards]


def test_a_read_only_dataset_is_read_in_place(write_dataset, tokens) -> None:
    """Promise 22: reading and verifying write nothing beside the dataset."""
    dataset = write_dataset(tokens)
    folder = Path(dataset.uri)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    folder.chmod(0o555)
    try:
        again = shardstream.open(folder)
        again.verify()
        again.windows([0, 500], 10)
    finally:
        folder.chmod(0o755)

    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_adopted_files_need_trust(tmp_path: Path, tokens) -> None:
    """A file outside the dataset's folder is read only with trust_locations=True."""
    (tmp_path / "foreign.bin").write_bytes(b"head" + tokens.tobytes())
    (tmp_path / "dataset").mkdir()
    entry = ShardEntry(
        name="foreign.bin", num_tokens=1000, num_bytes=2000, byte_offset=4, location=str(tmp_path / "foreign.bin")
    )
    manifest = Manifest(vocab_size=1000, shard_tokens=1000, shards=(entry,))
    (tmp_path / "dataset/manifest.json").write_bytes(manifest.to_json())

    with pytest.raises(FormatError, match="foreign.bin lies elsewhere, .* open with trust_locations=True"):
        shardstream.open(tmp_path / "dataset")
    dataset = shardstream.open(tmp_path / "dataset", trust_locations=True)
    np.testing.assert_array_equal(tokens, dataset[:])
    assert dataset.verify().ok


def test_twenty_thousand_shards_under_128_descriptors(tmp_path: Path) -> None:
    """Promise 8: 20,000 shards are read at random by a process that may open 128 files."""
    entry = ShardEntry(name="x", num_tokens=4, num_bytes=8)
    data = np.arange(4, dtype="<u2")
    shards = []
    for index in range(20_000):
        name = f"{index // 1000:02}/{index:06d}.bin"
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((data + index % 60_000).astype("<u2").tobytes())
        shards.append(ShardEntry(**{**{f: getattr(entry, f) for f in entry.__struct_fields__}, "name": name}))
    (tmp_path / "manifest.json").write_bytes(Manifest(vocab_size=65536, shard_tokens=4, shards=tuple(shards)).to_json())
    script = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
import numpy as np, shardstream
dataset = shardstream.open({str(tmp_path)!r})
starts = np.random.default_rng(0).integers(0, len(dataset) - 6, 5000)
windows = dataset.windows(starts, 6)
positions = starts[:, None] + np.arange(6)
assert (windows == positions // 4 % 60000 + positions % 4).all()
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_million_windows_grow_memory_by_less_than_16_mb(tmp_path: Path) -> None:
    """Promise 8: after a million random windows the process's anonymous memory has grown by under 16 MB."""
    with shardstream.DatasetWriter(tmp_path, vocab_size=60_000, shard_tokens=2**16) as writer:
        writer.append(np.arange(2**22) % 60_000)
    script = f"""
import numpy as np, shardstream
def anonymous_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))
dataset = shardstream.open({str(tmp_path)!r})
rng = np.random.default_rng(0)
def draw(count):
    for _ in range(count):
        dataset.windows(rng.integers(0, len(dataset) - 65, 500), 65)
draw(10)
before = anonymous_bytes()
draw(2000)
grown = anonymous_bytes() - before
assert grown < 16e6, grown
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_positions_beyond_every_32_bit_number(tmp_path: Path) -> None:
    """Promise 24: in 15 * 10^12 tokens of 100,000 sparse shards, first, last and random windows are right."""
    num_shards, shard_tokens = 100_000, 150_000_000
    entries = tuple(
        ShardEntry(
            name=f"{index // 1000:03}/{index:06d}.bin",
            num_tokens=shard_tokens,
            num_bytes=shard_tokens * 2,
            sha256="0" * 64,
        )
        for index in range(num_shards)
    )
    manifest = Manifest(vocab_size=65536, shard_tokens=shard_tokens, shards=entries)
    (tmp_path / "manifest.json").write_bytes(manifest.to_json())
    starts = np.random.default_rng(1).integers(0, manifest.num_tokens - 9, 50)
    starts = np.concatenate([[0, manifest.num_tokens - 9, shard_tokens - 4], starts])
    for start in starts:  # only the shards that are read need to exist; each token tells its position
        for position in range(int(start), int(start) + 9):
            path = tmp_path / entries[position // shard_tokens].name
            path.parent.mkdir(exist_ok=True)
            with path.open("r+b" if path.exists() else "wb") as file:
                file.truncate(shard_tokens * 2)
                file.seek(position % shard_tokens * 2)
                file.write(np.array([position % 65521], dtype="<u2").tobytes())
    dataset = shardstream.open(tmp_path)

    assert len(dataset) == 15 * 10**12
    np.testing.assert_array_equal((starts[:, None] + np.arange(9)) % 65521, dataset.windows(starts, 9))
    assert dataset[-1] == (15 * 10**12 - 1) % 65521


def test_eighty_concurrent_readers_read_nothing_wrong(write_dataset, tokens) -> None:
    """Promise 7: 80 threads on one dataset: no bad read."""
    dataset = write_dataset(tokens)
    bad: list[int] = []

    def read(seed: int) -> None:
        starts = np.random.default_rng(seed).integers(0, 900, 64)
        expected = tokens[starts[:, None] + np.arange(100)]
        bad.extend(seed for _ in range(20) if not np.array_equal(expected, dataset.windows(starts, 100)))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(80)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not bad


def test_a_map_that_the_system_refuses_names_the_shard(tmp_path: Path) -> None:
    """Where the process may have no more address space, the error names the shard that could not be mapped."""
    num_tokens = 2**35
    entry = ShardEntry(name="large.bin", num_tokens=num_tokens, num_bytes=2 * num_tokens)
    with (tmp_path / "large.bin").open("wb") as file:
        file.truncate(2 * num_tokens)
    (tmp_path / "manifest.json").write_bytes(
        Manifest(vocab_size=100, shard_tokens=num_tokens, shards=(entry,)).to_json()
    )
    dataset = shardstream.open(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**35, limits[1]))
    try:
        with pytest.raises(StorageError, match="large.bin: cannot map the shard: Cannot allocate memory"):
            dataset.windows([5], 2)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert dataset.windows([num_tokens - 2], 2).tolist() == [[0, 0]]


def test_open_takes_no_other_tokenizers_dataset(write_dataset) -> None:
    """A reader that says which tokenizer it counts on is given that one's dataset or none."""
    dataset = write_dataset([1], tokenizer={"name": "gpt2", "sha256": "aa" * 32})

    assert shardstream.open(dataset.uri, tokenizer="aa" * 32)[0] == 1
    with pytest.raises(
        FormatError,
        match=f"^{dataset.uri}: tokenizer.sha256 is '{'aa' * 32}', wanted '{'bb' * 32}'; another tokenizer made this dataset",
    ):
        shardstream.open(dataset.uri, tokenizer="bb" * 32)
