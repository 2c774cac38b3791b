"""The loop: what comes, in which order, for whom, and how it goes on after a stop."""

import json
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import shardstream
from shardstream import BatchStream, IntegrityError, ResumeError, TokenDataset
from shardstream.stream.ahead import Ahead
from shardstream.stream.stream_state import StreamState

ORDERS = ["shuffle", "block-shuffle", "sequential", "random"]


def stream_of(dataset: TokenDataset, **options: Any) -> BatchStream:
    """A stream of 2 samples of 3 tokens each on the only rank, unless told otherwise."""
    options = {"batch_size": 2, "context_length": 3, "dp_rank": 0, "dp_world_size": 1, **options}
    return BatchStream(dataset, **options)


def positions_of(streams: list[BatchStream], num_steps: int) -> list[int]:
    """The global sequence: where the samples of each global batch begin, rank after rank."""
    found: list[int] = []
    for _ in range(num_steps):
        for stream in streams:
            next(stream)
            found += stream.positions.tolist()
    return found


class TestBatches:
    """What one batch is."""

    @pytest.mark.parametrize("order", ORDERS)
    def test_a_batch_is_windows_of_the_dataset(self, dataset_of, order: str) -> None:
        """Inputs are the tokens at the positions, targets the ones after them; both int64, contiguous and apart."""
        stream = stream_of(dataset_of(100), order=order)
        for _ in range(20):
            inputs, targets = next(stream)

            expected = torch.from_numpy(stream.positions)[:, None] + torch.arange(3)
            assert torch.equal(inputs, expected)
            assert torch.equal(targets, expected + 1)
            assert inputs.dtype == targets.dtype == torch.int64
            assert inputs.is_contiguous()
            assert targets.is_contiguous()

    def test_uint32_tokens(self, write_dataset) -> None:
        """Ids that need 32 bits come out as they are."""
        dataset = write_dataset(np.arange(2**31, 2**31 + 50), vocab_size=2**32)
        inputs, targets = next(stream_of(dataset, order="sequential"))

        assert inputs.tolist() == [[2**31, 2**31 + 1, 2**31 + 2], [2**31 + 3, 2**31 + 4, 2**31 + 5]]
        assert torch.equal(targets, inputs + 1)

    def test_a_returned_batch_is_never_written_again(self, dataset_of) -> None:
        """All batches of an epoch, kept, still hold what they held."""
        stream = stream_of(dataset_of(100), epochs=1)
        kept = [(inputs, inputs.clone()) for inputs, _ in stream]

        assert len(kept) == 16
        assert all(torch.equal(inputs, copy) for inputs, copy in kept)

    def test_another_device(self, dataset_of) -> None:
        """The batch goes where it is asked to go."""
        inputs, targets = next(stream_of(dataset_of(100), device="meta"))

        assert inputs.device.type == targets.device.type == "meta"
        assert inputs.shape == targets.shape == (2, 3)

    @given(st.integers(2, 120), st.integers(1, 12))
    def test_an_epoch_has_each_target_once(self, dataset_of, num_tokens: int, context_length: int) -> None:
        """Promise 12: floor((T - 1) / m) windows, which may span shards of 16 tokens, and each target once."""
        num_windows = (num_tokens - 1) // context_length
        if not num_windows:
            return
        for order in ("shuffle", "block-shuffle", "sequential"):
            stream = stream_of(
                dataset_of(num_tokens), batch_size=1, context_length=context_length, order=order, epochs=1
            )
            targets = torch.cat([targets.flatten() for _, targets in stream])

            assert sorted(targets.tolist()) == list(range(1, num_windows * context_length + 1))


class TestRanks:
    """What each rank gets."""

    @given(st.integers(20, 60), st.integers(1, 3), st.tuples(*[st.integers(1, 3)] * 3), st.booleans())
    def test_every_rank_has_the_same_number_of_batches(
        self, dataset_of, num_tokens: int, context_length: int, sizes: tuple[int, int, int], drop_last: bool
    ) -> None:
        """Promise 2: as many as ``len`` says beforehand, by a closed form, for all sizes."""
        batch_size, ranks, epochs = sizes
        num_samples = epochs * ((num_tokens - 1) // context_length)
        num_rows = batch_size * ranks
        if num_rows > (num_tokens - 1) // context_length:
            return
        expected = num_samples // num_rows if drop_last else -(-num_samples // num_rows)
        positions = []
        for rank in range(ranks):
            stream = stream_of(
                dataset_of(num_tokens),
                batch_size=batch_size,
                context_length=context_length,
                epochs=epochs,
                drop_last=drop_last,
                dp_rank=rank,
                dp_world_size=ranks,
            )
            assert len(stream) == expected
            num_batches = 0
            for inputs, _ in stream:
                num_batches += 1
                positions += stream.positions.tolist()
                assert len(inputs) == len(stream.positions)
                assert len(stream) == expected - num_batches
            assert num_batches == expected
            with pytest.raises(StopIteration):
                next(stream)

        if not drop_last:
            every_window = list(range(0, num_samples // epochs * context_length, context_length))
            assert sorted(positions) == sorted(epochs * every_window)

    @pytest.mark.parametrize(
        "options", [{"order": "shuffle"}, {"order": "block-shuffle", "lanes": 4, "block_tokens": 9}]
    )
    def test_ranks_share_each_global_batch(self, dataset_of, options: dict[str, Any]) -> None:
        """Every global batch holds the same samples for 1, 2 and 4 ranks, and no two ranks share one."""
        global_batches = {
            ranks: [
                positions_of([stream], 1)
                for stream in [
                    stream_of(dataset_of(500), batch_size=8 // ranks, dp_rank=rank, dp_world_size=ranks, **options)
                    for rank in range(ranks)
                ]
            ]
            for ranks in (1, 2, 4)
        }

        expected = global_batches[1][0]
        assert len(set(expected)) == 8
        for batches in global_batches.values():
            assert [position for batch in batches for position in batch] == expected

    def test_a_stream_without_an_end_has_no_length(self, dataset_of) -> None:
        """Without epochs, len() says why there is none."""
        with pytest.raises(TypeError, match="has no end and no length; give epochs"):
            len(stream_of(dataset_of(50)))


class TestResume:
    """How a run goes on."""

    @pytest.mark.parametrize("order", ORDERS)
    @pytest.mark.parametrize("num_steps", range(9))
    def test_stopped_at_any_step_and_resumed_at_any_size(self, dataset_of, order: str, num_steps: int) -> None:
        """Promise 3: saved on 2 ranks of 3, loaded on 1, 2 or 3 ranks with other batch sizes: the same samples go on."""
        options: dict[str, Any] = {"order": order, "epochs": None if order == "random" else 4}
        if order == "block-shuffle":
            options |= {"block_tokens": 9, "buffer_blocks": 2}
        whole = positions_of([stream_of(dataset_of(101), batch_size=6, **options)], 18)
        first_run = [
            stream_of(dataset_of(101), batch_size=3, dp_rank=rank, dp_world_size=2, **options) for rank in range(2)
        ]
        assert positions_of(first_run, num_steps) == whole[: 6 * num_steps]
        states = [stream.state_dict() for stream in first_run]
        assert states[0] == states[1]
        saved = json.dumps(states[0])
        assert len(saved) < 1000

        for ranks, batch_size in ((1, 1), (1, 7), (2, 2), (3, 4)):
            resumed = [
                stream_of(dataset_of(101), batch_size=batch_size, dp_rank=rank, dp_world_size=ranks, **options)
                for rank in range(ranks)
            ]
            for stream in resumed:
                stream.load_state_dict(json.loads(saved))
            num_rows = ranks * batch_size
            num_left = (len(whole) - 6 * num_steps) // num_rows
            found = positions_of(resumed, num_left)
            assert found == whole[6 * num_steps :][: num_left * num_rows]
            assert resumed[0].num_samples == 6 * num_steps + len(found)

    def test_lanes_keep_the_samples_of_a_resumed_run(self, dataset_of) -> None:
        """Promise 3, with lanes: another global batch deals the same samples, as sets, in the same order of lanes."""
        options: dict[str, Any] = {"order": "block-shuffle", "lanes": 2, "block_tokens": 9, "buffer_blocks": 2}
        stream = stream_of(dataset_of(301), batch_size=4, **options)
        whole = positions_of([stream], 12)
        resumed = stream_of(dataset_of(301), batch_size=8, **options)
        first = stream_of(dataset_of(301), batch_size=4, **options)
        positions_of([first], 4)
        resumed.load_state_dict(first.state_dict())

        found = positions_of([resumed], 4)

        assert sorted(found) == sorted(whole[16:])
        for step in range(4):
            pair = whole[16 + 8 * step : 24 + 8 * step]
            lanes = [pair[0:2] + pair[4:6], pair[2:4] + pair[6:8]]
            assert found[8 * step : 8 * step + 8] == lanes[0] + lanes[1]

    def test_a_state_far_ahead(self, dataset_of) -> None:
        """A state at sample 10^12 is loaded, proven and gone on from like any other."""
        stream = stream_of(dataset_of(101))
        state = stream.state_dict()
        stream._lookahead = stream._go_to(10**12)
        far = stream.state_dict()

        other = stream_of(dataset_of(101))
        other.load_state_dict(far)

        assert positions_of([other], 3) == positions_of([stream], 3)
        assert far["num_samples"] == 10**12
        assert far != state

    def test_a_stream_can_be_pickled(self, dataset_of) -> None:
        """A copy in a worker process goes on where the original stands, and the original is not moved."""
        stream = stream_of(dataset_of(101), order="block-shuffle", block_tokens=9, buffer_blocks=2, epochs=3)
        positions_of([stream], 2)
        copy = pickle.loads(pickle.dumps(stream))

        assert len(pickle.dumps(stream)) < 3000
        assert repr(copy) == repr(stream)
        assert positions_of([copy], 5) == positions_of([stream], 5)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"order_version": 2}, "order_version is 2 in the state, and 1 in this stream; install the version"),
            ({"dataset_digest": "0" * 64}, "dataset_digest is '0000.*; open the dataset that the run was trained on"),
            ({"seed": 1}, "seed is 1 in the state, and 0 in this stream; to go on with the same samples, make"),
            ({"order": "sequential"}, "order is 'sequential' in the state, and 'shuffle' in this stream"),
            (
                {"order_parameters": {"lanes": 2}},
                "order_parameters is {'lanes': 2} in the state, and {} in this stream",
            ),
            ({"context_length": 4}, "context_length is 4 in the state, and 3 in this stream"),
            ({"num_samples": 5}, "positions_sha256 is .*; the state was edited or damaged"),
            ({"num_samples": -2}, "num_samples is -2 in the state; wanted a multiple of the 1 lanes, 0 or more"),
            ({"num_samples": 2**62}, "num_samples is 4611686018427387904 in the state"),
            ({"num_samples": "4"}, r"Expected `int`, got `str` - at `\$.num_samples`"),
            ({"extra": 1}, "Object contains unknown field `extra`"),
        ],
    )
    def test_a_state_of_another_stream_is_refused(self, dataset_of, change: dict[str, Any], message: str) -> None:
        """A state that contradicts the stream names the field, and the stream stays where it was."""
        stream = stream_of(dataset_of(101))
        other = stream_of(dataset_of(101))
        positions_of([other, stream], 2)
        with pytest.raises(ResumeError, match=message):
            stream.load_state_dict({**other.state_dict(), **change})

        assert positions_of([stream], 3) == positions_of([other], 3)

    @pytest.mark.parametrize("field", StreamState.__struct_fields__)
    def test_a_truncated_state_is_refused(self, dataset_of, field: str) -> None:
        """A state that lacks a field names it."""
        stream = stream_of(dataset_of(101))
        state = stream.state_dict()
        del state[field]
        with pytest.raises(
            ResumeError, match=f"this is no state of a batch stream: .*missing required field `{field}`"
        ):
            stream.load_state_dict(state)

    def test_something_else_than_a_state_is_refused(self, dataset_of) -> None:
        """A list is no state."""
        with pytest.raises(ResumeError, match="this is no state of a batch stream: Expected `object`, got `array`"):
            stream_of(dataset_of(101)).load_state_dict([])  # type: ignore[arg-type]

    def test_a_state_beyond_the_last_epoch_is_refused(self, dataset_of) -> None:
        """A state of a longer run says that more epochs are needed."""
        long = stream_of(dataset_of(101), epochs=3)
        positions_of([long], 40)
        with pytest.raises(ResumeError, match="num_samples is 80 in the state, more than the 66 of 2 epochs"):
            stream_of(dataset_of(101), epochs=2).load_state_dict(long.state_dict())

    def test_lanes_that_do_not_divide_a_state_are_refused(self, dataset_of) -> None:
        """Samples consumed must fill all lanes alike."""
        stream = stream_of(dataset_of(101), order="block-shuffle", lanes=2)
        with pytest.raises(ResumeError, match="num_samples is 3 in the state; wanted a multiple of the 2 lanes"):
            stream.load_state_dict({**stream.state_dict(), "num_samples": 3})


class TestArguments:
    """What is refused before anything starts."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"batch_size": 0}, "batch_size is 0; wanted at least 1"),
            ({"batch_size": -1}, "batch_size is -1; wanted at least 1"),
            ({"context_length": 0}, "context_length is 0; wanted at least 1"),
            ({"context_length": 101}, "101 tokens are too few for context_length 101: a sample takes 102"),
            ({"batch_size": 34}, "batch_size 34 on 1 ranks makes a global batch of 34 samples, and an epoch has 33"),
            ({"seed": -1}, "seed is -1; wanted at least 0"),
            ({"seed": 2**64}, "seed is 18446744073709551616; wanted below"),
            ({"epochs": 0}, "epochs is 0; wanted at least 1"),
            ({"order": "random", "epochs": 1}, "epochs is 1, but order 'random' has none; leave epochs out"),
            (
                {"order": "shuffled"},
                "order is 'shuffled'; wanted one of 'shuffle', 'block-shuffle', 'sequential', 'random'",
            ),
            ({"lanes": 2}, "lanes is 2, but order is 'shuffle'; only 'block-shuffle' has lanes"),
            (
                {"order": "random", "block_tokens": 6},
                "block_tokens is 6, but order is 'random'; only 'block-shuffle' has",
            ),
            ({"order": "block-shuffle", "block_tokens": 10}, "wanted a multiple of context_length 3, such as 12"),
            ({"order": "block-shuffle", "block_tokens": 0}, "block_tokens is 0; wanted at least 1"),
            ({"order": "block-shuffle", "buffer_blocks": 0}, "buffer_blocks is 0; wanted at least 1"),
            ({"order": "block-shuffle", "lanes": 34}, "lanes is 34, but the dataset has 33 windows; wanted fewer"),
            (
                {"order": "block-shuffle", "lanes": 4},
                r"lanes is 4, and a global batch has 2 samples .*; wanted a multiple",
            ),
            ({"dp_rank": 2, "dp_world_size": 2}, r"dp_rank is 2; wanted 0 to 1 \(dp_world_size is 2\)"),
            ({"dp_rank": -1}, "dp_rank is -1; wanted 0 to 0"),
            ({"dp_world_size": None}, "dp_rank is 0 and dp_world_size is None: give both, or neither"),
            ({"device": "gpu"}, "device is 'gpu'; wanted one that torch knows, such as 'cpu', 'cuda' or 'cuda:1'"),
        ],
    )
    def test_an_argument_out_of_range_is_named(self, dataset_of, options: dict[str, Any], message: str) -> None:
        """The message says which argument, what it is and what is wanted."""
        with pytest.raises(ValueError, match=message):
            stream_of(dataset_of(101), **options)

    @pytest.mark.parametrize("options", [{"batch_size": 1.5}, {"seed": "0"}, {"epochs": 1.0}])
    def test_a_number_that_is_no_integer_is_named(self, dataset_of, options: dict[str, Any]) -> None:
        """Nothing is rounded."""
        with pytest.raises(TypeError, match=f"{next(iter(options))} is .*; wanted an integer"):
            stream_of(dataset_of(101), **options)

    def test_only_a_dataset_is_streamed(self) -> None:
        """An array is what get_batch takes."""
        with pytest.raises(TypeError, match=r"dataset is a ndarray; wanted what shardstream.open\(\) returns"):
            stream_of(np.arange(100))  # type: ignore[arg-type]

    def test_a_dataset_of_a_single_window(self, dataset_of) -> None:
        """The smallest dataset of all is streamed, in every order."""
        for order in ORDERS:
            stream = stream_of(dataset_of(4), batch_size=1, order=order)
            assert [next(stream)[1].tolist() for _ in range(3)] == 3 * [[[1, 2, 3]]]


class TestErrors:
    """What goes wrong on the way comes out of next()."""

    def shard(self, dataset: TokenDataset, number: int) -> Path:
        return Path(dataset.uri) / f"shard-{number:06d}.bin"

    def drain(self, stream: BatchStream) -> float:
        """Take batches until one fails; return how long the last one took."""
        while True:
            started = time.monotonic()
            try:
                next(stream)
            except BaseException:
                assert time.monotonic() - started < 1
                raise

    def test_a_shard_that_was_never_there(self, write_dataset, tokens) -> None:
        """Promise 18: a missing shard is an IntegrityError out of next() that names it."""
        dataset = write_dataset(tokens)
        self.shard(dataset, 7).unlink()
        with pytest.raises(IntegrityError, match="shard-000007.bin: the shard is missing"):
            self.drain(stream_of(dataset))

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda path: path.unlink(), "shard-000003.bin: the shard cannot be read any more: No such file"),
            (
                lambda path: path.write_bytes(b"x" * 10),
                "shard-000003.bin: truncated: 10 bytes, the manifest says 128; ",
            ),
            (
                lambda path: path.write_bytes(b"x" * 200),
                "shard-000003.bin: too long: 200 bytes, the manifest says 128; ",
            ),
        ],
    )
    def test_a_shard_that_changes_while_it_is_read(self, write_dataset, tokens, damage: Any, message: str) -> None:
        """Promises 7 and 18: vanished, cut or grown while mapped: an IntegrityError that names it, never SIGBUS."""
        dataset = write_dataset(tokens)
        stream = stream_of(dataset, batch_size=32)
        for _ in range(20):
            next(stream)
        damage(self.shard(dataset, 3))

        with pytest.raises(IntegrityError, match=message):
            self.drain(stream)

    def test_no_sample_is_lost_to_an_error(self, write_dataset, tokens) -> None:
        """After the cause is mended, the stream goes on with the very batch that failed."""
        dataset = write_dataset(tokens)
        expected = positions_of([stream_of(dataset)], 100)
        path = self.shard(dataset, 7)
        content = path.read_bytes()
        path.unlink()
        stream = stream_of(shardstream.open(dataset.uri))
        found = []
        with pytest.raises(IntegrityError):
            while True:
                found += positions_of([stream], 1)
        path.write_bytes(content)

        assert stream.num_samples == len(found)
        found += positions_of([stream], 100 - len(found) // 2)
        assert found == expected

    def test_an_interrupt_is_no_loss_either(self, dataset_of, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ctrl-C in the middle of a gather leaves the stream where it was."""
        stream, twin = stream_of(dataset_of(101)), stream_of(dataset_of(101))
        with monkeypatch.context() as patch:
            patch.setattr(TokenDataset, "windows", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                next(stream)

        assert positions_of([stream], 3) == positions_of([twin], 3)

    def test_a_closed_stream_says_so(self, dataset_of) -> None:
        """After close(), or after its with block, a stream returns nothing; the dataset stays open."""
        with stream_of(dataset_of(101)) as stream:
            next(stream)
        stream.close()
        with pytest.raises(ValueError, match="BatchStream.* is closed"):
            next(stream)
        assert dataset_of(101)[5] == 5

    def test_the_interpreter_exits_at_once(self, dataset_of) -> None:
        """Promise 18: a stream left open in the middle, with a batch begun ahead, holds up nothing."""
        script = f"""
import time, shardstream
stream = shardstream.BatchStream(shardstream.open({dataset_of(101).uri!r}), batch_size=2, context_length=3)
for _ in range(5):
    next(stream)
    time.sleep(0.002)
next(stream)
print(time.time(), flush=True)
"""
        done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)

        assert time.time() - float(done.stdout) < 2


class TestSlowSteps:
    """While a step takes longer than a millisecond, a thread gathers the next batch meanwhile."""

    def slowly(self, stream: BatchStream, num_steps: int) -> list[int]:
        found = []
        for _ in range(num_steps):
            found += positions_of([stream], 1)
            time.sleep(0.002)
        return found

    def threads(self) -> set[threading.Thread]:
        """Those of all streams, also of another test's that nobody has collected yet."""
        return {thread for thread in threading.enumerate() if thread.name == "shardstream-ahead"}

    def test_the_samples_are_the_same(self, dataset_of) -> None:
        """A slow loop, a fast one and one that is both get the same batches to the last one; close() ends the thread."""
        options: dict[str, Any] = {"epochs": 2, "drop_last": False}
        expected = positions_of([stream_of(dataset_of(101), **options)], 33)
        before = self.threads()
        stream = stream_of(dataset_of(101), **options)

        found = positions_of([stream], 5) + self.slowly(stream, 10) + positions_of([stream], 5)
        assert self.threads() - before
        found += self.slowly(stream, 13)
        assert found == expected
        assert list(stream) == []
        stream.close()
        assert not self.threads() - before

    def test_a_state_does_not_count_what_is_begun(self, dataset_of) -> None:
        """State, resume, pickle and load see what the loop consumed, not the batch that waits."""
        stream = stream_of(dataset_of(101))
        expected = positions_of([stream_of(dataset_of(101))], 12)
        self.slowly(stream, 4)
        next(stream)  # one more is begun
        state = stream.state_dict()
        resumed = stream_of(dataset_of(101))
        resumed.load_state_dict(state)

        assert state["num_samples"] == 10
        assert positions_of([resumed], 7) == expected[10:]
        assert positions_of([pickle.loads(pickle.dumps(stream))], 7) == expected[10:]
        stream.load_state_dict(state)
        assert positions_of([stream], 7) == expected[10:]
        stream.close()

    def test_an_error_of_the_thread_comes_out_of_next(self, write_dataset, tokens) -> None:
        """Promise 18: an error behind a slow loop is raised by next() with its cause, and no sample is lost."""
        dataset = write_dataset(tokens)
        expected = positions_of([stream_of(dataset)], 100)
        path = Path(dataset.uri) / "shard-000007.bin"
        content = path.read_bytes()
        path.unlink()
        found: list[int] = []
        with stream_of(shardstream.open(dataset.uri)) as stream:
            with pytest.raises(IntegrityError, match="shard-000007.bin: the shard is missing"):
                while True:
                    found += self.slowly(stream, 1)
            path.write_bytes(content)
            found += self.slowly(stream, 100 - len(found) // 2)

        assert found == expected

    def test_an_interrupted_wait_loses_nothing(self, dataset_of, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ctrl-C while next() waits for the thread: the batch comes with the next call."""
        expected = positions_of([stream_of(dataset_of(101))], 6)
        with stream_of(dataset_of(101)) as stream:
            found = self.slowly(stream, 2)
            next(stream)
            found += stream.positions.tolist()
            with monkeypatch.context() as patch:
                patch.setattr(Ahead, "result", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
                with pytest.raises(KeyboardInterrupt):
                    next(stream)
            found += positions_of([stream], 3)

        assert found == expected

    def test_a_forked_child_goes_on_by_itself(self, dataset_of) -> None:
        """Promise 9: forked while a batch is begun ahead, parent and child both get the samples that follow."""
        script = f"""
import os, time, warnings, shardstream
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forking beside threads
stream = shardstream.BatchStream(shardstream.open({dataset_of(101).uri!r}), batch_size=2, context_length=3)
for _ in range(4):
    next(stream)
    time.sleep(0.002)
next(stream)
reader, writer = os.pipe()
child = os.fork()
found = []
for _ in range(6):
    next(stream)
    found += stream.positions.tolist()
    time.sleep(0.002)
if child == 0:
    stream.close()
    os.write(writer, repr(found).encode())
    os._exit(0)
os.waitpid(child, 0)
assert os.read(reader, 10_000).decode() == repr(found), found
"""
        subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


class TestStats:
    """Promise 20: one sees whether the loader is the bottleneck."""

    def test_a_slow_disk_shows_and_a_fast_one_does_not(self, dataset_of, monkeypatch: pytest.MonkeyPatch) -> None:
        """Waits of 20 ms for one batch in ten move p95 and the share, not p50."""
        fast = stream_of(dataset_of(101))
        positions_of([fast], 200)
        assert fast.stats().wait_p95_s < 0.02

        gather, turn = TokenDataset.windows, iter(range(10**6))

        def slow_windows(self: TokenDataset, starts: Any, length: int, out: Any = None) -> NDArray[Any]:
            if next(turn) % 10 == 0:
                time.sleep(0.02)
            return gather(self, starts, length, out)

        monkeypatch.setattr(TokenDataset, "windows", slow_windows)
        slow = stream_of(dataset_of(101))
        positions_of([slow], 200)
        stats = slow.stats()

        assert stats.wait_p95_s >= 0.02
        assert stats.wait_p50_s < 0.02
        assert stats.wait_s >= 20 * 0.02
        assert 0.4 < stats.wait_share <= 1

    def test_what_was_read_is_counted(self, dataset_of) -> None:
        """Batches, tokens and bytes of this stream."""
        stream = stream_of(dataset_of(101))
        before = stream.stats()
        positions_of([stream], 5)
        stats = stream.stats()

        assert (before.num_batches, before.wait_share, before.elapsed_s) == (0, 0, 0)
        assert (stats.num_batches, stats.num_tokens, stats.num_bytes) == (5, 30, 5 * 2 * 4 * 2)
        assert stats.elapsed_s >= stats.wait_s > 0

    def test_who_it_is_for_is_logged(self, dataset_of, caplog: pytest.LogCaptureFixture) -> None:
        """Promise 19: the rank, and who said so, are in the log."""
        caplog.set_level("INFO", "shardstream")
        stream_of(dataset_of(101), dp_rank=1, dp_world_size=2)

        assert "dp_rank 1 of dp_world_size 2, as the arguments said; order shuffle, seed 0, dataset " in caplog.text


@pytest.mark.slow
def test_a_million_windows_take_no_memory(write_dataset) -> None:
    """Promise 8: 10^6 windows from 512 shards grow anonymous memory by less than 16 MB."""

    def anonymous_kb() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0])

    dataset = write_dataset(np.zeros(2**19, dtype=np.uint16), shard_tokens=2**10)
    stream = stream_of(dataset, batch_size=64, context_length=8)
    for _ in range(100):
        next(stream)
    before = anonymous_kb()
    for _ in range(10**6 // 64):
        next(stream)

    assert anonymous_kb() - before < 16_000


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("vocab_size", [2**16, 2**32])
def test_on_a_gpu(write_dataset, vocab_size: int) -> None:  # pragma: no cover - where there is one
    """On a GPU, batches hold what they hold on the CPU, and none is overwritten."""
    tokens = np.random.default_rng(0).integers(0, vocab_size, 10_000)
    dataset = write_dataset(tokens, vocab_size=vocab_size)
    options: dict[str, Any] = {"batch_size": 7, "context_length": 33, "epochs": 2, "drop_last": False}
    on_gpu = list(stream_of(dataset, device="cuda", **options))
    on_cpu = list(stream_of(dataset, **options))

    assert len(on_gpu) == len(on_cpu) > 80
    for (inputs, targets), (cpu_inputs, cpu_targets) in zip(on_gpu, on_cpu, strict=True):
        assert inputs.is_cuda
        assert inputs.is_contiguous()
        assert targets.is_contiguous()
        assert torch.equal(inputs.cpu(), cpu_inputs)
        assert torch.equal(targets.cpu(), cpu_targets)
