"""Parts: laws for any inputs and any size of a part."""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardstream.ingest import plan
from shardstream.ingest.plan import Plan, plan_parts

ROWS = 40
TABLE = pa.table({"text": [str(n) * n for n in range(ROWS)]})


def write(folder: Path, suffixes: Sequence[tuple[str, int]]) -> list[Path]:
    """One file per suffix: so many bytes, or rows in so many at a time."""
    paths = [folder / f"{number:02}{suffix}" for number, (suffix, _) in enumerate(suffixes)]
    for path, (suffix, size) in zip(paths, suffixes, strict=True):
        if suffix == ".parquet":
            pq.write_table(TABLE, path, row_group_size=max(size, 1))
        elif suffix == ".feather":
            pyarrow.feather.write_feather(TABLE, path, chunksize=max(size, 1))
        else:
            path.write_bytes(bytes(size))
    return paths


def num_units(path: Path) -> int:
    """How far a file can be counted through: bytes, row groups or record batches."""
    if path.suffix == ".parquet":
        return int(pq.ParquetFile(path).num_row_groups)
    return pa.ipc.open_file(path).num_record_batches if path.suffix == ".feather" else path.stat().st_size


@given(
    suffixes=st.lists(
        st.tuples(st.sampled_from([".txt", ".jsonl", ".jsonl.gz", ".parquet", ".feather"]), st.integers(0, 300)),
        min_size=1,
        max_size=8,
    ),
    part_bytes=st.integers(1, 3000),
)
def test_parts_are_the_inputs(suffixes: Sequence[tuple[str, int]], part_bytes: int) -> None:
    """One after the other, the ranges of all parts cover every file once, in order; a part is small where it can be."""
    with tempfile.TemporaryDirectory() as folder:
        paths = write(Path(folder), suffixes)
        plan = plan_parts([folder], part_bytes=part_bytes)

        assert plan == plan_parts([folder], part_bytes=part_bytes)
        assert plan.num_bytes == sum(path.stat().st_size for path in paths)
        ranges = [one for part in plan.parts for one in part]
        for path in paths:
            own = [one for one in ranges if one.path == str(path)]
            ranges = ranges[len(own) :] if ranges[: len(own)] == own else []
            assert sum(one.num_bytes for one in own) == path.stat().st_size
            assert {one.file_bytes for one in own} == {path.stat().st_size}
            if (own[0].start, own[-1].stop) != (0, None):
                assert [own[0].start, *(one.stop for one in own)] == [*(one.start for one in own), num_units(path)]
                assert all(one.start < (one.stop or 0) for one in own)
        assert ranges == []
        for part in plan.parts:
            assert part
            if sum(one.num_bytes for one in part) > part_bytes:
                assert len(part) == 1
                assert part[0].kind != "jsonl" or part[0].path.endswith(".gz")
                assert part[0].stop in {None, part[0].start + 1}


def test_small_files_share_a_part(tmp_path: Path) -> None:
    """Files follow one another until the next would make the part too large."""
    write(tmp_path, [(".txt", 4), (".txt", 5), (".txt", 1), (".txt", 20), (".txt", 0), (".txt", 0)])

    plan = plan_parts([str(tmp_path)], part_bytes=10)

    assert [[one.num_bytes for one in part] for part in plan.parts] == [[4, 5, 1], [20], [0, 0]]


def test_json_lines_are_cut_evenly(tmp_path: Path) -> None:
    """No part is a small rest."""
    write(tmp_path, [(".jsonl", 31)])

    plan = plan_parts([str(tmp_path)], part_bytes=10)

    assert [(one.start, one.stop) for part in plan.parts for one in part] == [(0, 7), (7, 15), (15, 23), (23, 31)]


@pytest.mark.parametrize(("num_bytes", "num_parts"), [(2**21, 1), (2**21 + 1, 2), (2**31, 256), (2**40, 1024)])
def test_the_size_of_a_part_follows_from_all_inputs(tmp_path: Path, num_bytes: int, num_parts: int) -> None:
    """By default a 256th, but from 2 MiB to 1 GiB."""
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.truncate(num_bytes)  # a hole: nothing is read

    assert len(plan_parts([str(tmp_path)]).parts) == num_parts


def test_the_checksum_tells_names_sizes_and_order(tmp_path: Path) -> None:
    """It is that of ``size path NUL`` of every file; how the inputs are cut does not matter."""
    paths = write(tmp_path, [(".txt", 4), (".jsonl", 50)])
    content = "".join(f"{size} {path}\0" for path, size in zip(paths, (4, 50), strict=True))

    plans = [plan_parts([str(tmp_path)], part_bytes=part_bytes) for part_bytes in (1, None)]

    assert {plan.inputs_sha256 for plan in plans} == {hashlib.sha256(content.encode()).hexdigest()}
    assert plan_parts([str(path) for path in reversed(paths)]).inputs_sha256 != plans[0].inputs_sha256


def test_damaged_files_are_for_the_reader(place) -> None:
    """A plan does not fail at what is no Parquet or Arrow: it is one range, to be reported with the other bad records."""
    for suffix in ("parquet", "arrow"):
        plan = plan_parts([place(f"a.{suffix}", b"no such file")], part_bytes=1)

        assert [[(one.start, one.stop, one.num_bytes) for one in part] for part in plan.parts] == [[(0, None, 12)]]


def test_the_stream_format_of_arrow_is_read_as_a_whole(place) -> None:
    """Where its batches begin is known only to who reads it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=5)

    plan = plan_parts([place("a.arrow", bytes(sink.getvalue()))], part_bytes=1)

    assert [(one.start, one.stop) for part in plan.parts for one in part] == [(0, None)]


def test_a_part_holds_a_byte() -> None:
    """A size of nothing is a wrong argument."""
    with pytest.raises(ValueError, match="^part_bytes is 0; wanted at least 1, such as 2097152$"):
        plan_parts(["a"], part_bytes=0)


def test_parts_are_not_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes memory, and a dataset of its own: a size that makes very many is taken for a mistake."""
    monkeypatch.setattr(plan, "_MAX_NUM_PARTS", 10)
    write(tmp_path, [(".jsonl", 21)])

    with pytest.raises(ValueError, match="^part_bytes is 1, which makes some 21 parts; wanted at least 3$"):
        plan_parts([str(tmp_path)], part_bytes=1)
    assert len(plan_parts([str(tmp_path)], part_bytes=3).parts) == 7


def test_ignored_files_are_counted(tmp_path: Path) -> None:
    """Over all inputs."""
    write(tmp_path, [(".txt", 1), (".bin", 1), (".png", 1)])

    plan: Plan = plan_parts([str(tmp_path)])

    assert plan.num_ignored == 2
