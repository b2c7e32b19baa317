"""Laws of resemblance: it is Broder's, of five successive characters of normalised texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import jaccard_score

from colbert_zero.mining.resemblance import resemblance, shingles

words = st.lists(st.sampled_from(["a", "an", "and", "hand", "handle", "candle"]), min_size=3, max_size=12)


@given(words, words)
def test_resemblance_is_scikit_learns_jaccard_score_of_character_ngrams(one: list[str], other: list[str]) -> None:
    texts = [" ".join(one), " ".join(other)]
    if min(map(len, texts)) < 5:
        return
    counts = CountVectorizer(analyzer="char", ngram_range=(5, 5), binary=True).fit_transform(texts).toarray()
    assert resemblance(*map(shingles, texts)) == pytest.approx(jaccard_score(*counts))


@given(st.text(max_size=20), st.text(max_size=20))
def test_it_is_symmetric_between_none_and_all_and_all_for_the_same_text(one: str, other: str) -> None:
    first, second = shingles(one), shingles(other)
    assert resemblance(first, second) == resemblance(second, first)
    assert 0 <= resemblance(first, second) <= resemblance(first, first) == 1


def test_case_white_space_and_forms_of_characters_do_not_count() -> None:
    assert shingles("Ｔwo  WORDS\n") == shingles("two words") == {"two w", "wo wo", "o wor", " word", "words"}
    assert shingles("Two") == {"two"}
