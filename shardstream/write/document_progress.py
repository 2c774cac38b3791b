"""A document on its way into the shards -> what the journal says of it when a shard ends inside it.

A document may be longer than memory, so it is not kept: of the pieces that have passed there is a count and a running
checksum. A document that comes in one piece is hashed up to the last shard that ends in it, and mostly not at all.
"""

import hashlib
from typing import Any

from numpy.typing import NDArray

from shardstream.errors import ResumeError
from shardstream.write.journal import Progress


class DocumentProgress:
    """How far one document has come.

    Args:
        number: Documents before it.
        resumed: Where the run being resumed stopped: some tokens of the document may be durable already.
        source, key: Where it comes from.
    """

    def __init__(self, number: int, resumed: Progress, *, source: str, key: str) -> None:
        self.source, self.key = source, key
        self.is_begun = resumed.document_tokens > 0
        """Whether a token of it is in a shard."""
        self.num_durable = resumed.document_tokens
        """Tokens of the document that are durable and have not been sent again yet."""
        self._number = number
        self._resumed = resumed
        self._num_tokens = 0
        self._num_piece_tokens = 0  # those of the piece that is being written
        self._sha256 = hashlib.sha256()

    def drop_durable(self, ids: NDArray[Any], *, is_last: bool) -> NDArray[Any]:
        """What is not durable yet of a piece, or of the last piece with ``eos_id``, in the stored dtype.

        Raises:
            ResumeError: The document is not the one whose first tokens are durable.
        """
        durable = ids[: self.num_durable]
        self._hash(durable)
        self.num_durable -= len(durable)
        is_same = bool(self.num_durable) or self._sha256.hexdigest() == self._resumed.document_sha256
        # The end of a document is never durable while the document is not.
        if not is_same or (is_last and len(durable) == len(ids)):
            raise ResumeError(
                f"document {self._number} is not the one whose first {self._resumed.document_tokens} tokens are durable; "
                "send the same documents in the same order, or start again with overwrite=True"
            )
        return ids[len(durable) :]

    def progress_at(self, ids: NDArray[Any], num_written: int, *, is_last: bool) -> Progress:
        """Where the token stream stands after the first ``num_written`` tokens of a piece."""
        if is_last and num_written == len(ids):
            return Progress(num_documents=self._number + 1)
        self._hash(ids[self._num_piece_tokens : num_written])
        self._num_piece_tokens = num_written
        return Progress(
            num_documents=self._number, document_tokens=self._num_tokens, document_sha256=self._sha256.hexdigest()
        )

    def end_piece(self, ids: NDArray[Any]) -> None:
        """Say that a piece is written, and another one follows."""
        self._hash(ids[self._num_piece_tokens :])
        self._num_piece_tokens = 0

    def _hash(self, ids: NDArray[Any]) -> None:
        self._num_tokens += len(ids)
        self._sha256.update(ids.data)
