"""Bytes as ids."""

from hypothesis import given
from hypothesis import strategies as st

from shardstream.ingest.byte_tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()


@given(st.text())
def test_ids_are_the_bytes(text: str) -> None:
    """The ids of a text are its UTF-8."""
    [ids] = TOKENIZER.encode_batch([text])

    assert bytes(ids.tolist()) == text.encode()
    assert not TOKENIZER.joins_words()


def test_the_identity_is_for_ever() -> None:
    """A dataset of bytes is one of bytes in every version: the checksum is that of a sentence that never changes."""
    assert TOKENIZER.sha256 == "2fcf17910e549757e1fceba76893713520fa79c8cdf9f432912c6a13da83f9d2"
    assert (TOKENIZER.vocab_size, TOKENIZER.eos_id, TOKENIZER.bos_id, TOKENIZER.pad_id) == (257, 256, None, None)


def test_ascii_has_ids_by_name() -> None:
    """One byte is one token; a character of several has none."""
    assert [TOKENIZER.id_of(token) for token in ("A", "\x00", "ab", "é", "")] == [65, 0, None, None, None]


def test_bytes_that_are_no_text_are_replaced() -> None:
    """Half a character is U+FFFD; each document of several is decoded by itself."""
    assert TOKENIZER.decode([0xC3, 256, 0xA9, 65]) == "\ufffd<|endoftext|>\ufffdA"
    assert TOKENIZER.decode([]) == ""
