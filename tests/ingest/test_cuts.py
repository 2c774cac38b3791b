"""Texts cut in two."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardstream.ingest.cuts import Cut, Cutter
from tests.ingest.tokenizer_kinds import CUTTABLE, TEXT, WHOLE, byte_bpe, metaspace, secretly_replacing


@cache
def cutter_of(kind: str) -> Cutter:
    return Cutter(CUTTABLE[kind]())


@pytest.mark.parametrize("kind", CUTTABLE)
@given(data=st.data())
def test_the_pieces_have_the_ids_of_the_whole(kind: str, data: st.DataObject) -> None:
    """Wherever a text is cut, whatever follows: the ids of its pieces, one after the other, are those of the whole."""
    tokenizer = CUTTABLE[kind]()
    known, coming = data.draw(TEXT), data.draw(TEXT)
    cut = cutter_of(kind).last_cut(known)
    if cut is not None:
        text = known + coming
        whole, left, right = tokenizer.encode_batch([text, text[: cut.stop], text[cut.start :]])

        assert np.array_equal(whole, np.concatenate([left, right]))


@pytest.mark.parametrize("kind", CUTTABLE)
def test_a_text_of_words_can_be_cut(kind: str) -> None:
    """Between two words there is a place, the last one of a long text, also where no other is near it."""
    text = f"the cat sat on the mat {'x' * 5000}"

    cut = cutter_of(kind).last_cut(text)

    assert cut is not None
    assert cut.stop == (len(text) if kind == "bytes" else len("the cat sat on the mat"))
    assert cut.start - cut.stop in {0, 1}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_tokenizer_that_looks_over_words_is_not_cut(kind: str) -> None:
    """Where tokens hold white space after letters, or all of a text is weighed at once, no place is exact."""
    assert Cutter(WHOLE[kind]()).last_cut("the cat sat on the mat\nthe cat sat") is None


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("the cat", Cut(3, 3)),
        ("the cat\nsat", Cut(7, 7)),
        ("the cat sa", Cut(7, 7)),
        ("the cat ", Cut(3, 3)),
        ("the  cat", None),
        ("the 1 cat", None),
        ("a,\nb", None),
        ("a_ b", None),
        ("cat", None),
        ("", None),
        (" a", None),
        ("a ", None),
    ],
    ids=repr,
)
def test_cuts_are_made_between_letters(text: str, cut: Cut | None) -> None:
    """A place has one space or the end of a line, and a letter on both sides."""
    assert Cutter(byte_bpe()).last_cut(text) == cut


@pytest.mark.parametrize("num_before", [4094, 4095, 4096, 4097])
def test_a_place_is_found_where_two_scans_meet(num_before: int) -> None:
    """It does not matter how far from the end a place is."""
    assert Cutter(byte_bpe()).last_cut(f"the c{'.' * (num_before - 1)}") == Cut(3, 3)


def test_the_space_of_a_dummy_prefix_is_dropped() -> None:
    """Where each text is given a space to begin with, the right piece comes without its own; line ends are no such space."""
    assert Cutter(metaspace(splits=False)).last_cut("the cat\nsat") == Cut(3, 4)


def test_a_place_is_tried_on_its_surroundings() -> None:
    """Where the tokenizer tells of no such thing, but two words become one, there is no place between them."""
    cutter = Cutter(secretly_replacing())

    assert cutter.last_cut("the cat q q") == Cut(7, 7)
    assert cutter.last_cut("the cat. " + "q q. " * 100) is None
