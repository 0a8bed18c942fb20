"""Secrets taken out of what is said and written: no message, card, journal or page holds a key.

    without_key("refused: sk-1234... is no key")                 the value of OPENAI_API_KEY, wherever it stands
    without_key("http://me:secret@host/v1?key=1234")             what an address carries: http://***@host/v1?***
    without_key("wrong password: secret", secrets_in(api_base))  the same secrets alone, as a server echoes them

It knows what it is told and no more: a key that stands in an address as a part of its path is taken for a path.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable
from urllib.parse import parse_qsl, unquote, urlsplit

KEY, HIDDEN = "OPENAI_API_KEY", "***"
USER_INFO = re.compile(r"(?<=://)[^/?#\s'\"]*@")
QUERY = re.compile(r"(://[^?\s'\"]*\?)[^\s'\"]+")


def secrets_in(address: str) -> list[str]:
    """What an address carries beside the place: a password, or the user name that stands for one; values after `?`."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return []
    info = parts.netloc.rpartition("@")[0]
    user, _, password = info.partition(":")
    found = [password or user, unquote(password or user), base64.b64encode(unquote(info).encode()).decode()]
    for field in parts.query.split("&") if parts.query else ():
        found += [field.partition("=")[2], *(value for _, value in parse_qsl(field))]
    return [each for each in found if each] if info else found[3:]


def without_secrets(text: str, more: Iterable[str] = (), *, shortest: int = 4) -> str:
    """A text with OPENAI_API_KEY's value, and `more` secrets, replaced by ***. One of fewer characters than `shortest`
    is no secret but a word in the place of one, such as `x`."""
    for secret in sorted({os.environ.get(KEY, "").strip(), *more}, key=len, reverse=True):  # one may be part of another
        if len(secret) >= shortest:
            text = text.replace(secret, HIDDEN)
    return text


def without_key(text: str, more: Iterable[str] = ()) -> str:
    """The same, and what addresses in the text carry."""
    text = QUERY.sub(rf"\1{HIDDEN}", USER_INFO.sub(f"{HIDDEN}@", text)) if "://" in text else text
    return without_secrets(text, more)
