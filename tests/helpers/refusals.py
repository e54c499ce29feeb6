"""What is refused, and how that is said."""
import pytest

from fastcontrast.core import InputError


def refusal(f, *args, **kwargs) -> str:
    "What the `InputError` says: one sentence"
    with pytest.raises(InputError) as e: f(*args, **kwargs)
    text = str(e.value)
    assert type(e.value) is InputError and '\n' not in text and text.endswith(('.', '?')), text
    assert 20 < len(text) < 700, text
    return text


def brief(f, *args, **kwargs) -> str:
    "The same sentence, where it has to be a short one"
    text = refusal(f, *args, **kwargs)
    assert len(text) < 400, text
    return text


def said(words, f, *args, **kwargs) -> str:
    "The sentence, which has these words"
    text = refusal(f, *args, **kwargs)
    assert all(str(w) in text for w in words), text
    return text


def said_briefly(words, f, *args, **kwargs):
    text = said(words, f, *args, **kwargs)
    assert len(text) < 400, text
