"""Counter-based randomness: the generator, its laws, and independence of how the work is divided."""

import itertools

import numpy as np
import pytest
from numba import njit
from scipy import stats

from icrl import streams
from icrl.streams import Split, Stream

MASK = 0xFFFFFFFF


def philox_in_python(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & MASK, (p0 >> 32) ^ c[3] ^ k[1], p0 & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


def test_known_answers():
    zero = streams.philox(*[np.uint64(0)] * 6)
    assert [f"{int(w):08x}" for w in zero] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    ones = streams.philox(*[np.uint64(MASK)] * 6)
    assert [f"{int(w):08x}" for w in ones] == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]


def test_uniforms_are_the_words_of_a_pure_python_philox():
    seed, index = 2**62 + 12345, 2**40 + 77
    got = streams.uniforms(seed, Split.TEST, Stream.REWARD, np.array([index]), 7)[0]
    words = []
    for block in range(2):
        counter = (block, Split.TEST << 16 | Stream.REWARD, index & MASK, index >> 32)
        words += philox_in_python(counter, (seed & MASK, seed >> 32))
    np.testing.assert_array_equal(got, np.array([(w >> 8) / 2**24 for w in words[:7]], np.float32))


def test_normals_are_box_muller_of_the_words():
    index = 31
    got = streams.normals(9, Split.TRAIN, Stream.ALGORITHM, np.array([index]), 400)[0]
    want = []
    for block in range(100):
        tag = Split.TRAIN << 16 | streams.USE_NORMAL << 8 | Stream.ALGORITHM
        w = philox_in_python((block, tag, index, 0), (9, 0))
        for a, b in ((w[0], w[1]), (w[2], w[3])):
            radius = np.sqrt(-2 * np.log(((a >> 8) + 1) / 2**24))
            angle = 2 * np.pi * (b >> 8) / 2**24 - np.pi / 4
            want += [radius * np.cos(angle), radius * np.sin(angle)]
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_laws():
    z = streams.normals(0, Split.TRAIN, Stream.REWARD, np.arange(2000), 200).ravel()
    u = streams.uniforms(0, Split.TRAIN, Stream.REWARD, np.arange(2000), 200).ravel()
    assert stats.kstest(z, "norm").pvalue > 0.01
    assert stats.kstest(u, "uniform").pvalue > 0.01
    assert 0 <= u.min() < u.max() < 1
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / z.size)
    lag = z.reshape(2000, 200)
    assert abs(np.mean(lag[:, 1:] * lag[:, :-1])) < 4 / np.sqrt(z.size)
    assert abs(np.mean(lag[1:] * lag[:-1])) < 4 / np.sqrt(z.size)


@pytest.mark.parametrize("draw", [streams.uniforms, streams.normals])
def test_numbers_depend_on_the_index_alone(draw):
    whole = draw(5, Split.EVAL, Stream.ALGORITHM, np.arange(1000), 13)
    for low, high in itertools.pairwise([0, 1, 130, 517, 1000]):
        np.testing.assert_array_equal(whole[low:high], draw(5, Split.EVAL, Stream.ALGORITHM, np.arange(low, high), 13))
    order = np.random.default_rng(0).permutation(1000)
    np.testing.assert_array_equal(whole[order], draw(5, Split.EVAL, Stream.ALGORITHM, order, 13))
    for start, count in ((0, 3), (1, 4), (5, 8), (12, 1)):
        part = draw(5, Split.EVAL, Stream.ALGORITHM, np.arange(1000), count, start=start)
        np.testing.assert_array_equal(whole[:, start : start + count], part)


def test_streams_splits_seeds_indices_and_uses_differ():
    drawn = {}
    for seed, split, stream in itertools.product((0, 1, 1 << 32, 1 << 40), Split, Stream):
        indices = np.array([0, 1, 1 << 32, 1 << 33])
        for use in (streams.uniforms, streams.normals):
            for index, row in zip(indices, use(seed, split, stream, indices, 8), strict=True):
                drawn[seed, split, stream, int(index), use.__name__] = row.tobytes()
    assert len(set(drawn.values())) == len(drawn) == 4 * 4 * len(Stream) * 4 * 2


def test_permutation():
    p = streams.permutation(1, Split.TRAIN, Stream.ORDER, 1001, 3)
    assert p.dtype == np.int64
    np.testing.assert_array_equal(np.sort(p), np.arange(1001))
    np.testing.assert_array_equal(p, streams.permutation(1, Split.TRAIN, Stream.ORDER, 1001, 3))
    assert np.any(p != streams.permutation(1, Split.TRAIN, Stream.ORDER, 1001, 4))
    assert np.any(p != streams.permutation(2, Split.TRAIN, Stream.ORDER, 1001, 3))
    first = [streams.permutation(0, Split.TRAIN, Stream.ORDER, 4, key)[0] for key in range(4000)]
    assert stats.chisquare(np.bincount(first)).pvalue > 0.01
    assert streams.permutation(0, Split.TRAIN, Stream.ORDER, 0).size == 0


def test_exponential_of_nonpositive_numbers():
    @njit
    def exponential(x):
        out = np.empty_like(x)
        for i in range(x.size):
            out[i] = streams.exp_nonpositive(x[i])
        return out

    x = np.linspace(-86.9, 0, 200_001).astype(np.float32)
    np.testing.assert_allclose(exponential(x), np.exp(x.astype(np.float64)), rtol=2e-7)
    assert exponential(np.array([0.0], np.float32))[0] == 1
    assert exponential(np.array([-1e30], np.float32))[0] < 2e-38


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seed_out_of_range(seed):
    with pytest.raises(ValueError, match="seed"):
        streams.uniforms(seed, Split.TRAIN, Stream.REWARD, np.arange(2), 1)


@pytest.mark.parametrize("indices", [np.array([-1]), np.zeros((2, 2), np.int64)])
def test_bad_indices(indices):
    with pytest.raises(ValueError, match="indices"):
        streams.normals(0, Split.TRAIN, Stream.REWARD, indices, 1)
