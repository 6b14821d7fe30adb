import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.texts import (
    END,
    FIM_MIDDLE,
    FIM_PREFIX,
    FIM_SUFFIX,
    build_objective,
    make_batch,
    random_windows,
)

MARKS = (FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE)


def restore(document):
    """Return the parts (prefix, middle, suffix) of a document that was rearranged, and its order.

    In SPM prefix and middle are one; it is returned as the middle.
    """
    assert document[0] == FIM_PREFIX and all(document.count(mark) == 1 for mark in MARKS)
    suffix, middle = document.index(FIM_SUFFIX), document.index(FIM_MIDDLE)
    parts = document[1:suffix], document[middle + 1 :], document[suffix + 1 : middle]
    return parts, "SPM" if suffix == 1 else "PSM"


def split(row):
    """Split a row after each end of text."""
    places = np.flatnonzero(np.array(row) == END) + 1
    return [part.tolist() for part in np.split(np.array(row), places)]


def whole_row(batch, row):
    """Return the window that tokens and targets were cut from."""
    assert np.array_equal(batch.tokens[row, 1:], batch.targets[row, :-1])
    return [batch.tokens[row, 0].item(), *batch.targets[row].tolist()]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 150),
    st.sampled_from([0.0, 0.03, 0.3]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(0, 2**32),
)
def test_the_documents_come_back(length, ends, rate, spm_rate, seed):
    objective = build_objective("fill_in_the_middle", length, fim_rate=rate, spm_rate=spm_rate)
    text = random_windows(objective, 4, ends, seed)
    batch = make_batch(objective, text, seed=seed)
    assert batch.weights.min() == 1

    for row, line in enumerate(text.tolist()):
        made, documents = split(whole_row(batch, row)), split(line)
        # All documents but what is left of the last are complete, in their places.
        for document, original in zip(made[:-1], documents, strict=False):
            if FIM_PREFIX in document:
                (prefix, middle, suffix), order = restore(document)
                assert rate > 0 and middle[-1] == END
                assert order in (["PSM"], ["PSM", "SPM"], ["SPM"])[round(2 * spm_rate)] or (
                    order == "SPM" and not prefix  # PSM with an empty prefix looks like it
                )
                expected = original
                if original[-1] != END:  # the text goes on after the window
                    lost = sum(map(whole_row(batch, row).count, MARKS)) + 1
                    expected = [*original[:-lost], END]
                assert prefix + middle[:-1] + suffix + [END] == expected
            else:
                assert document == original and (rate < 1 or original == [END])

        # Each token that was added pushed one out.
        tokens = whole_row(batch, row)
        assert {*tokens} - {*MARKS, END} <= {*line} and len(tokens) == len(line)


def test_a_text_that_goes_on_gives_up_its_tail():
    objective = build_objective("fill_in_the_middle", 30, fim_rate=1.0, spm_rate=0.5)
    text = random_windows(objective, 50)
    batch = make_batch(objective, text)
    for row, line in enumerate(text.tolist()):
        (prefix, middle, suffix), _ = restore(whole_row(batch, row))
        assert prefix + middle[:-1] + suffix == line[:-4] and middle[-1] == END


def test_what_is_too_short_for_the_tokens_stays():
    objective = build_objective("fill_in_the_middle", 30, fim_rate=1.0)
    text = random_windows(objective, 50)
    text[:, 24] = END  # 6 tokens follow; the two documents would need 7
    batch = make_batch(objective, text)
    for row, line in enumerate(text.tolist()):
        document, rest = split(whole_row(batch, row))
        (prefix, middle, suffix), _ = restore(document)
        assert prefix + middle[:-1] + suffix + [END] + rest == line[:-3]


@pytest.mark.parametrize("rate, spm_rate", [(0.5, 0.5), (0.9, 0.25)])
def test_shares_and_cuts_are_those_of_the_config(rate, spm_rate):
    rows, length = 6000, 20  # tokens of the document, which end_of_text ends
    objective = build_objective("fill_in_the_middle", length + 3, fim_rate=rate, spm_rate=spm_rate)
    text = np.repeat(random_windows(objective, 1), rows, axis=0)
    text[:, length] = END
    batch = make_batch(objective, text)
    starts = batch.tokens[:, 0] == FIM_PREFIX
    spread = 5 * np.sqrt(rows / 4)  # at least the deviation of any binomial of `rows`
    assert abs(starts.sum() - rows * rate) < spread

    # Both cuts are uniform over 21 places, so the smaller is 0 with probability 1 - (20 / 21)**2:
    # the prefix is empty, and PSM looks like SPM.
    looks_like_spm = starts & (batch.tokens[:, 1] == FIM_SUFFIX)
    empty = 1 - (length / (length + 1)) ** 2
    share = rate * (spm_rate + (1 - spm_rate) * empty)
    assert abs(looks_like_spm.sum() - rows * share) < spread

    # An empty suffix is as probable.
    suffix, middle = (np.argmax(batch.tokens == mark, axis=1) for mark in (FIM_SUFFIX, FIM_MIDDLE))
    has_no_suffix = starts & (middle == suffix + 1)
    assert abs(has_no_suffix.sum() - rows * rate * empty) < 5 * np.sqrt(rows * rate * empty)

    psm = starts & ~looks_like_spm
    prefix_lengths = suffix[psm] - 1
    # The smaller of two uniform numbers, given that it is not 0: its mean is that over 1 - empty.
    n = length
    mean = n * (2 * n + 1) / (6 * (n + 1)) / (1 - empty)
    assert abs(prefix_lengths.mean() - mean) < 5 * n / 4 / np.sqrt(psm.sum())
    assert (middle[psm] > suffix[psm]).all()
