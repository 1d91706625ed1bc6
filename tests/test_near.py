"""Texts that are equal or near: what is taken for the same, and what is found of it."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations

import pytest

from iis_finetune.dataset.near import NEAR, NearIndex, key_of, normalised, shingles


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ｗｈａｔ  is\nthis？", "what is this"),
        ("STRASSE, or Straße!", "strasse or straße"),
        ("你好，世界。", "你好 世界"),
        ("**Yes** - it_is.", "yes it is"),
    ],
)
def test_texts_that_differ_in_spelling_alone_are_equal(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)
    assert key_of(normalised(one)) == key_of(normalised(other))


@pytest.mark.parametrize(
    "text", ["A_b-C d!", "1 + 1 = 2; $5 < 6^7", "\t~tab\x00\x7f\n", "31*/_2", "1.5 - 2.x 3!! -4 %5 6%."]
)
def test_ascii_is_written_as_all_other_text_is(text: str) -> None:
    assert f"{normalised(text)} é" == normalised(f"{text} é")


MEANT = [
    ("लड़का आया", "लड़की आयी"),
    ("เสือ", "เสื้อ"),
    ("4 - 2", "4 / 2"),
    ("-3 + 5", "3 + -5"),
    ("5!", "5"),
    ("50% of 8", "50 of 8"),
    ("it is 1.5 m", "it is 15 m"),
]


@pytest.mark.parametrize(
    ("one", "other"), [("2+2", "2<2"), ("fine 👍", "fine 👎"), ("a b", "ab"), ("1.5", "15"), *MEANT]
)
def test_what_carries_meaning_is_kept(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


def sentences(count: int, seed: int, chinese: bool = False) -> list[list[str]]:
    source = random.Random(seed)
    known = [chr(0x4E00 + at) for at in range(900)] if chinese else [f"word{at}" for at in range(3000)]
    return [source.choices(known, k=source.randrange(30, 90)) for _ in range(count)]


def copies(texts: list[list[str]], source: random.Random) -> list[list[str]]:
    """Each text with none to a fifth of its words replaced, so that the pairs lie on both sides of the threshold."""
    made = []
    for words in texts:
        changed = list(words)
        for at in source.sample(range(len(words)), source.randrange(0, len(words) // 5)):
            changed[at] = f"new{at}"
        made.append(changed)
    return made


def indexed(texts: list[str]) -> NearIndex:
    index = NearIndex()
    for text in texts:
        index.add(text)
    index.settle()
    return index


def pairs(index: NearIndex) -> set[tuple[int, int]]:
    return {(other, number) for number, other, _ in index.pairs(lambda *_: True, float)}


@pytest.mark.parametrize("chinese", [False, True])
def test_near_texts_are_those_that_a_comparison_of_all_with_all_finds(chinese: bool) -> None:
    originals = sentences(1000, 5, chinese)
    rows = originals + copies(originals, random.Random(6))
    texts = [normalised(("" if chinese else " ").join(words)) for words in rows]
    sets = [shingles(text) for text in texts]
    holders: dict[int, list[int]] = {}
    for number, each in enumerate(sets):
        for shingle in each:
            holders.setdefault(shingle, []).append(number)
    both = Counter(pair for numbers in holders.values() for pair in combinations(numbers, 2))
    union = {(one, other): len(sets[one]) + len(sets[other]) - shared for (one, other), shared in both.items()}
    wanted = {pair for pair, shared in both.items() if shared / union[pair] >= NEAR}
    found = pairs(indexed(texts))
    recall, precision = len(found & wanted) / len(wanted), len(found & wanted) / len(found)
    print(f"\n2000 rows, {len(wanted)} pairs at {NEAR}: recall {recall:.4f}, precision {precision:.4f}")
    assert recall > 0.99 and precision == 1.0


def test_the_order_of_the_texts_changes_nothing() -> None:
    originals = sentences(300, 7)
    texts = [" ".join(words) for words in originals + copies(originals, random.Random(8))]
    turned = texts[::-1]
    there, back = pairs(indexed(texts)), pairs(indexed(turned))
    assert {frozenset((texts[one], texts[other])) for one, other in there} == {
        frozenset((turned[one], turned[other])) for one, other in back
    }


def test_rows_that_share_a_template_are_not_near_but_a_copy_among_them_is() -> None:
    template = " ".join(f"rule{at}" for at in range(80))
    texts = [f"{template} {' '.join(words[:12])}" for words in sentences(200, 9)]
    texts.append(texts[17].replace("rule3 ", "rule three "))
    assert pairs(indexed(texts)) == {(17, 200)}


def test_texts_without_words_are_near_to_none() -> None:
    assert pairs(indexed(["", "", "one", "two words", "one"])) == {(2, 4)}
    assert pairs(indexed([])) == set()


def test_texts_that_mostly_are_what_many_share_are_counted() -> None:
    source, words = random.Random(11), sentences(1, 10)[0][:30] + ["end"] * 30
    changed = [[*words[: (at := source.randrange(60))], f"new{number}", *words[at + 1 :]] for number in range(120)]
    index = indexed([" ".join(each) for each in changed + sentences(200, 12)])
    assert index.template == 120 and not pairs(index)
    assert indexed([" ".join(each) for each in sentences(300, 13)]).template == 0
