"""Laws of the keyed permutation: a bijection at every length, and random by every test here. Keys are fixed.

What a true random permutation does is found from NumPy's generator, or is known; bounds are five or more standard
deviations from it. At the end the same tests are put to networks that are known to be weak.
"""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from shardstream.order.permutation import MAX_LENGTH, Permutation, keys_of, mix

Integers = NDArray[np.int64]

# Lengths at which cycle walking has nothing to do, and at which it has.
LENGTHS = [pytest.param(2**20, id="power-of-four"), pytest.param(1_000_003, id="prime")]
SEEDS = range(8)


def is_bijection(images: Integers, length: int) -> bool:
    seen = np.zeros(length, dtype=bool)
    seen[images] = True
    return len(images) == length and bool(seen.all())


def num_differences(images: Integers) -> int:
    """Distinct XOR differences of neighbours ``P(2i) ^ P(2i + 1)``."""
    pairs = images[: len(images) // 2 * 2].reshape(-1, 2)
    return int(np.count_nonzero(np.bincount(pairs[:, 0] ^ pairs[:, 1])))


def serial_correlations(images: Integers) -> list[float]:
    """Correlation of the sequence with itself some places on."""
    centred = images - images.mean()
    variance = float((centred**2).mean())
    return [float((centred[:-lag] * centred[lag:]).mean()) / variance for lag in (1, 2, 3, 4, 8, 16, 64, 1024)]


def chi_square_deviation(counts: list[int], num_cells: int) -> float:
    """How many standard deviations the chi-square of these counts lies above its mean, if all cells are as likely."""
    expected = sum(counts) / num_cells
    chi_square = sum((count - expected) ** 2 / expected for count in counts)
    chi_square += (num_cells - len(counts)) * expected
    return (chi_square - (num_cells - 1)) / math.sqrt(2 * (num_cells - 1))


def with_rounds(permutation: Permutation, num_rounds: int) -> Permutation:
    permutation._keys = permutation._keys[:num_rounds]
    return permutation


@pytest.mark.parametrize("first", range(1, 4097, 1024))
def test_every_small_length_is_permuted(first: int) -> None:
    """Promise 12: at every length up to 4,096 it is a bijection, and the inverse undoes it."""
    for length in range(first, first + 1024):
        permutation = Permutation(length, "small")
        places = np.arange(length)

        images = permutation(places)

        assert is_bijection(images, length)
        assert (permutation.inverse(images) == places).all()


@pytest.mark.parametrize("bits", range(13, 25))
def test_lengths_about_powers_of_two_are_permuted(bits: int) -> None:
    """Promise 12: at lengths of 2^k - 1, 2^k and 2^k + 1 it is a bijection, and the inverse undoes it."""
    for length in (2**bits - 1, 2**bits, 2**bits + 1):
        permutation = Permutation(length, "powers")

        images = permutation(np.arange(length))

        assert is_bijection(images, length)
        some = np.arange(length - 4096, length)
        assert (permutation.inverse(images[some]) == some).all()


@pytest.mark.parametrize("bits", [40, 50, 61, 62])
def test_huge_lengths_are_permuted(bits: int) -> None:
    """At lengths about 2^40 to 2^62, images lie in range, are distinct, reach everywhere, and the inverse undoes them."""
    for length in (2**bits - 1, 2**bits, 2**bits + 1)[: 3 if bits < 62 else 2]:
        permutation = Permutation(length, "huge")
        places = np.concatenate([np.arange(50_000), length - 1 - np.arange(50_000)])

        images = permutation(places)

        assert len(np.unique(images)) == len(images)
        assert 0 <= images.min() < length // 10_000
        assert length - length // 10_000 < images.max() < length
        assert (permutation.inverse(images) == places).all()
        assert (permutation(permutation.inverse(places)) == places).all()


@pytest.mark.parametrize("length", [-1, 0, MAX_LENGTH + 1])
def test_a_length_out_of_bounds_is_refused(length: int) -> None:
    """A length below 1 or above 2^62 is a ValueError that says what is wanted."""
    with pytest.raises(ValueError, match=rf"length is {length}; wanted 1 to 2\*\*62"):
        Permutation(length, "refused")


@pytest.mark.parametrize("shape", [(), (0,), (1,), (20_000,), (3, 5), (2, 0)])
def test_any_shape_is_permuted_element_by_element(shape: tuple[int, ...]) -> None:
    """The images have the shape of the places, are those of each place alone, and the places are left as they were."""
    permutation = Permutation(30_011, "shape")
    places = np.arange(math.prod(shape)).reshape(shape)

    images = permutation(places)

    assert images.shape == shape
    assert images.dtype == np.int64
    assert images.ravel()[::499].tolist() == [int(permutation(place)) for place in places.ravel()[::499]]
    assert (permutation.inverse(images) == places).all()
    assert (places.ravel() == np.arange(math.prod(shape))).all()


def test_keys_are_a_stream() -> None:
    """Fewer keys of a text are the first of more; another text has others."""
    assert keys_of("text", 3).tolist() == keys_of("text", 11).tolist()[:3]
    assert not set(keys_of("text", 100).tolist()) & set(keys_of("texu", 100).tolist())


def test_mix_is_a_bijection_for_each_key() -> None:
    """Mixed values are 64-bit integers of their own, and another key mixes another way."""
    values = np.arange(100_000, dtype=np.uint64)

    mixed = [mix(values, np.array(key, dtype=np.uint64)) for key in (0, 2**64 - 1)]

    assert [len(np.unique(images)) for images in mixed] == [100_000, 100_000]
    assert (mixed[0][1:] == mixed[1][:-1]).sum() == 0
    assert (mixed[0][:-1] == mixed[1][1:]).all(), "the key is added: 2^64 - 1 is the value before"


@pytest.mark.parametrize("length", LENGTHS)
def test_neighbours_differ_as_in_a_random_permutation(length: int) -> None:
    """Neighbours have as many distinct XOR differences as in true random permutations, within 5 standard deviations."""
    true = [num_differences(np.random.default_rng(seed).permutation(length)) for seed in range(24)]
    mean, deviation = np.mean(true), np.std(true, ddof=1)

    ours = np.array([num_differences(Permutation(length, f"differences/{seed}")(np.arange(length))) for seed in SEEDS])

    assert abs(ours - mean).max() < 5 * deviation
    assert abs(ours.mean() - mean) < 5 * deviation * math.sqrt(1 / len(ours) + 1 / len(true))


@pytest.mark.parametrize("length", LENGTHS)
def test_successive_images_are_not_correlated(length: int) -> None:
    """Images some places apart have no correlation beyond chance, and neither have image and place."""
    for seed in SEEDS:
        images = Permutation(length, f"correlation/{seed}")(np.arange(length))

        assert max(map(abs, serial_correlations(images))) < 5 / math.sqrt(length)
        assert abs(np.corrcoef(images, np.arange(length))[0, 1]) < 5 / math.sqrt(length)


@pytest.mark.parametrize("bits", [20, 40, 62])
def test_each_bit_of_a_place_changes_each_bit_of_its_image_half_of_the_time(bits: int) -> None:
    """Avalanche: on a power of four, flipping any one bit flips any one bit of the image with probability one half."""
    num_places = 8192
    permutation = Permutation(2**bits, "avalanche")
    places = np.random.default_rng(3).integers(0, 2**bits, num_places)

    flips = [permutation(places) ^ permutation(places ^ (1 << bit)) for bit in range(bits)]

    shares = np.array([[(flip >> bit & 1).mean() for bit in range(bits)] for flip in flips])
    assert abs(shares - 0.5).max() < 5.5 * 0.5 / math.sqrt(num_places)


@pytest.mark.parametrize(
    ("one", "other"),
    [("key/0", "key/1"), ("key/0/1", "key/1/0"), ("key/1", "key/10"), ("key/1/11", "key/11/1")],
)
def test_keys_that_look_alike_are_unrelated(one: str, other: str) -> None:
    """Between two key texts, each bit of an image changes half of the time, and no shift makes the sequences one."""
    length = 2**16
    images, others = (Permutation(length, text)(np.arange(length)) for text in (one, other))

    shares = [((images ^ others) >> bit & 1).mean() for bit in range(16)]
    shifts = (Permutation(length, other).inverse(images) - np.arange(length)) % length
    assert max(abs(np.array(shares) - 0.5)) < 5 * 0.5 / math.sqrt(length)
    # Matches at one shift are one on average, by Poisson's law: 13 at any of 2**16 shifts, 4 times in a million.
    assert np.bincount(shifts).max() < 13


@pytest.mark.parametrize("length", [3, 4, 5])
def test_each_permutation_of_few_elements_is_as_likely(length: int) -> None:
    """Over 6,000 keys, every permutation of 3 to 5 elements occurs, each as often as by chance."""
    places = np.arange(length)

    counts = Counter(tuple(Permutation(length, f"few/{key}")(places).tolist()) for key in range(6_000))

    assert set(counts) == set(itertools.permutations(range(length)))
    assert chi_square_deviation(list(counts.values()), math.factorial(length)) < 6


@pytest.mark.parametrize("length", [4, 15, 16, 63, 64])
def test_even_and_odd_permutations_are_as_likely(length: int) -> None:
    """Permutations of a length that fills its domain, or nearly, are as often odd as even."""
    places = np.arange(length)

    found = [Permutation(length, f"odd/{key}")(places).tolist() for key in range(1_000)]

    num_odd = sum(map(is_odd, found))
    assert abs(num_odd - 500) < 5 * math.sqrt(1_000) / 2


def is_odd(images: list[int]) -> bool:
    remaining, num_cycles = set(range(len(images))), 0
    while remaining:
        num_cycles += 1
        place = next(iter(remaining))
        while place in remaining:
            remaining.remove(place)
            place = images[place]
    return (len(images) - num_cycles) % 2 == 1


def test_these_tests_find_a_network_of_fewer_rounds() -> None:
    """Two rounds fail each test of randomness, and three that of differences: what is tested can be seen by these tests."""
    length = 2**20
    true = [num_differences(np.random.default_rng(seed).permutation(length)) for seed in range(8)]

    three = with_rounds(Permutation(length, "weak"), 3)(np.arange(length))
    two = with_rounds(Permutation(length, "weak"), 2)(np.arange(length))

    assert is_bijection(two, length)
    assert is_bijection(three, length)
    assert num_differences(three) < np.mean(true) - 3 * np.std(true, ddof=1)
    assert num_differences(two) < np.mean(true) / 2
    assert max(map(abs, serial_correlations(two))) > 5 / math.sqrt(length)
    few = Counter(tuple(with_rounds(Permutation(5, f"few/{key}"), 4)(np.arange(5)).tolist()) for key in range(6_000))
    assert chi_square_deviation(list(few.values()), 120) > 6
