"""SentencePiece models."""

import hashlib

import pytest
import sentencepiece
from hypothesis import given

from shardstream.ingest.sentencepiece_tokenizer import SentencePieceTokenizer
from tests.ingest.tokenizer_kinds import TEXT, sentencepiece_like, sentencepiece_model


def test_the_identity_is_the_models_own() -> None:
    """Its special ids are those that the model names, or none; the checksum is its file's."""
    default = sentencepiece_like()
    other = sentencepiece_like("bpe", bos_id=-1, eos_id=1, pad_id=2)

    assert (default.bos_id, default.eos_id, default.pad_id) == (1, 2, None)
    assert (other.bos_id, other.eos_id, other.pad_id) == (None, 1, 2)
    assert default.sha256 == hashlib.sha256(sentencepiece_model()).hexdigest()
    assert default.vocab_size == sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model()).vocab_size()


@given(text=TEXT)
def test_ids_are_the_librarys(text: str) -> None:
    """The library itself gives the same ids, without special ones at the ends."""
    for model_type in ("bpe", "unigram"):
        theirs = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(model_type))

        [ids] = sentencepiece_like(model_type).encode_batch([text])

        assert ids.tolist() == theirs.encode(text)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_control_symbols_are_not_found_in_text_and_the_users_are(model_type: str) -> None:
    """A control symbol is special, and spelt letter by letter; a user-defined one is text, and one token."""
    tokenizer = sentencepiece_like(model_type, control_symbols="<control>", user_defined_symbols="<user>")

    [ids] = tokenizer.encode_batch(["<control>the cat<user></s><s>"])

    assert tokenizer.special_tokens() == ("<unk>", "<s>", "</s>", "<control>")
    assert tokenizer.id_of("<user>") in ids
    assert not {1, 2, tokenizer.id_of("<control>")} & set(ids.tolist())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"junk", r"^here\.model: not a SentencePiece model$"),
        (b"", r"^here\.model: not a SentencePiece model"),
        (
            sentencepiece_model().replace("▁the".encode(), b"\xff\x96\x81the"),
            r"^here\.model: not a SentencePiece model$",
        ),
        (b"IQ== 0\nIg== 1\n", r"model; it holds tiktoken's ranks, as Llama 3's does: name its tokenizer\.json$"),
    ],
    ids=["junk", "nothing", "a piece that is no UTF-8", "ranks"],
)
def test_what_is_no_model_is_refused(content: bytes, message: str) -> None:
    """Another file under the name of a model is told, one that is often met by its own name."""
    with pytest.raises(ValueError, match=message):
        SentencePieceTokenizer(content, name="here", source="here.model")
