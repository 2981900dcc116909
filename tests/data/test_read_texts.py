"""Texts of unknown origin: what is read, what is refused, and how much of it a tokenizer gets to see."""

import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.data.readers.text import MAX_TEXT_BYTES, MAX_WORD, limit_text, read_text
from geobind.errors import DataError
from geobind.towers import clip
from geobind.towers.options import ClipOptions

OPTIONS = ClipOptions(model={"embed_dim": 8, "text_cfg": {"context_length": 77}}, pretrained=False)


@pytest.fixture
def tokenizer(monkeypatch):
    """CLIP's tokenizer, which counts the bytes of each word that it takes apart."""
    made = open_clip.SimpleTokenizer()
    made.taken = []
    take_apart = made.bpe
    monkeypatch.setattr(made, "bpe", lambda word: (made.taken.append(len(word)), take_apart(word))[1])
    monkeypatch.setattr(open_clip, "SimpleTokenizer", lambda clean: made)
    clip._bpe.cache_clear()
    yield made
    clip._bpe.cache_clear()


LONG = {
    "one word": "abcdefghijklmnopqrstuvwxyz" * 30_000,
    "one emoji": "\N{FACE WITH TEARS OF JOY}" * 200_000,
    "letters between spaces": "a " * 400_000,
    "spaces": "a" + " " * 900_000 + "b",
    "entities": "&lt;" * 200_000,
    "punctuation": "!?" * 400_000,
    "digits": "7" * 900_000,
    "no spaces in Chinese": "\N{CJK UNIFIED IDEOGRAPH-6D77}" * 300_000,
    "zero-width spaces between letters": "a\u200b" * 300_000,
    "combining marks": "e" + "\u0301" * 400_000,
}


@pytest.mark.parametrize("kind", LONG)
def test_a_long_text_reaches_the_tokenizer_in_short_words_and_few_letters(tokenizer, kind):
    tokens = clip.prepare_text(LONG[kind], OPTIONS)
    assert tokens.shape == (77,)
    assert max(tokenizer.taken) <= 4 * MAX_WORD
    assert sum(tokenizer.taken) <= 4 * 50 * 77


def test_labels_and_templates_are_limited_as_captions_are(tokenizer):
    from geobind.binder import Binder
    from geobind_text import Text

    small = {
        "embed_dim": 8,
        "text_cfg": {"context_length": 77, "width": 8, "heads": 1, "layers": 1},
        "vision_cfg": {},
    }
    binder = Binder({"text": Text(clip={"model": small, "pretrained": False})}, 8, pretrained=False, seed=0)
    binder.classify("text", "a", ["ab" * 100_000, "b" * 100_000], templates=["{} " * 3])
    assert max(tokenizer.taken) <= 4 * MAX_WORD


def test_the_tokenizer_does_not_keep_every_word_it_has_seen(tokenizer, monkeypatch):
    monkeypatch.setattr(clip, "_WORDS_KEPT", 50)
    for number in range(40):
        word = "".join(chr(97 + int(digit)) for digit in str(10**6 + number))
        clip.prepare_text(" ".join(word[::-1] + letter for letter in "klmnop"), OPTIONS)
        assert len(tokenizer.cache) <= 50 + 6
    wanted = open_clip.tokenizer.tokenize("<end_of_text> is a word")[0]
    assert (clip.prepare_text("<end_of_text> is a word", OPTIONS) == 49407).sum() == 1
    assert wanted.shape == (77,)


@settings(deadline=None, max_examples=100)
@given(text=st.text(st.sampled_from("ab é海.  \n\t7&;'"), min_size=1, max_size=20_000))
def test_a_text_of_ordinary_words_has_the_tokens_of_the_whole(text):
    wanted = open_clip.tokenize(text)[0]
    words = text.split()
    if not words or max(map(len, words)) > MAX_WORD:
        return
    assert (clip.prepare_text(text, OPTIONS) == wanted).all()


def test_a_long_text_of_ordinary_words_has_the_tokens_of_the_whole():
    text = " ".join(f"word{number} incomprehensibilities" for number in range(3000))
    assert limit_text(text, 77) != text
    wanted = open_clip.tokenize(text)[0]
    assert (clip.prepare_text(text, OPTIONS)[:76] == wanted[:76]).all()


@settings(deadline=None)
@given(text=st.text(max_size=2000), tokens=st.integers(1, 40))
def test_a_limited_text_is_short_and_an_ordinary_one_stays(text, tokens):
    cut = limit_text(text, tokens)
    assert len(cut) <= 50 * tokens
    assert all(len(word) <= MAX_WORD for word in cut.split())
    if len(text) <= 50 * tokens and all(len(word) <= MAX_WORD for word in text.split()):
        assert cut == text


INVISIBLE = {
    "zero-width spaces": "\u200b\u200b\u200b",
    "soft hyphens": "\u00ad\u00ad",
    "joiners": "\u200d\u200c\u2060",
    "a mark of byte order": "\ufeff",
    "marks of direction": "\u200e\u202a\u2066",
    "Hangul fillers": "\u3164\uffa0\u115f",
    "blank Braille": "\u2800\u2800",
    "variation selectors": "\ufe0f\ufe0f",
    "a grapheme joiner": "\u034f",
    "tags": "\U000e0041\U000e0042",
    "spaces between them": "\u200b \u00a0\u3000\u200b",
    "controls": "\x00\x07\u0085",
}


@pytest.mark.parametrize("kind", INVISIBLE)
def test_a_text_that_shows_nothing_is_refused(kind):
    for raw in (INVISIBLE[kind], INVISIBLE[kind].encode()):
        with pytest.raises(DataError, match=r"shows nothing|is empty"):
            read_text(raw)


@pytest.mark.parametrize(
    "text",
    [
        "\u200ba\u200b",
        "海",
        "🌊",
        "5",
        "?",
        "é",
        "e\u0301",
        "\u0e01",
        "\u0915\u093e",
        "👩\u200d🌾",
        "ᄒ",
        "\ue000",
    ],
)
def test_a_text_that_shows_one_letter_is_read(text):
    assert read_text(f" {text}\n") == text


@pytest.mark.parametrize(
    "raw", ["a" * (MAX_TEXT_BYTES + 1), b"a" * (MAX_TEXT_BYTES + 1), "\udc80a", b"\xff\xfea"]
)
def test_a_text_too_long_or_not_unicode_is_refused(raw):
    with pytest.raises(DataError, match=r"no encoder reads that much|not valid Unicode|not UTF-8"):
        read_text(raw)
