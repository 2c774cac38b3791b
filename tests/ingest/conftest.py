"""What every test of inputs needs: files in two kinds of places, read in small pieces."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from numpy.typing import NDArray

from shardstream.ingest import column_ids, flat_ids
from shardstream.ingest.token_pieces import TokenFile


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces so small that every file has several."""
    monkeypatch.setattr(flat_ids, "_PIECE_BYTES", 64)
    monkeypatch.setattr(column_ids, "_NUM_ID_ROWS", 100)
    monkeypatch.setattr(column_ids, "_NUM_LIST_ROWS", 3)


class FaultyFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """What lies at ``memory://``, from a server that fails when it is told to."""

    protocol = "faulty"
    cachable = False
    faults: ClassVar[dict[tuple[str, str], OSError]] = {}
    """What a call raises of a path."""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("faulty://", "memory://")))

    def _fail(self, call: str, path: str) -> None:
        if fault := self.faults.get((call, self._strip_protocol(path))):
            raise fault

    def info(self, path: str, **options: Any) -> Any:
        self._fail("info", path)
        return super().info(path, **options)

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        self._fail("ls", path)
        return super().ls(path, detail, **options)

    def _open(self, path: str, *args: Any, **options: Any) -> Any:
        self._fail("open", path)
        return super()._open(path, *args, **options)


@pytest.fixture
def faults() -> Iterator[dict[tuple[str, str], OSError]]:
    """What ``faulty://`` is to raise, by call and path; it is empty afterwards."""
    fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
    yield FaultyFileSystem.faults
    FaultyFileSystem.faults.clear()
    MemoryFileSystem.store.clear()


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str, bytes], str]]:
    """Put bytes at a local path, or where only fsspec finds them; say where they are."""

    def put(name: str, data: bytes) -> str:
        uri = f"memory://inputs/{name}" if request.param == "memory" else str(tmp_path / name)
        with fsspec.open(uri, "wb") as file:
            file.write(data)
        return uri

    yield put
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def ids_of() -> Callable[[TokenFile], NDArray[Any]]:
    """Read all ids; the bytes that were passed must add up to the file's size, as far as a bar can show."""

    def read(file: TokenFile) -> NDArray[Any]:
        pieces = list(file.pieces())
        if file.num_bytes is not None and pieces:
            assert sum(piece.num_bytes for piece in pieces) == pytest.approx(file.num_bytes, rel=0.2, abs=150)
        return np.concatenate([np.empty(0, np.int64), *(piece.ids for piece in pieces)])

    return read
