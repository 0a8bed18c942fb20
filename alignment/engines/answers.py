"""What an OpenAI-compatible server sent -> a Reply, whatever it sent. Nothing here waits, retries or raises.

    reply_from(b'{"choices": [{"text": " Yes.", "finish_reason": "stop"}]}', secrets)  Reply(" Yes.", "stop")
    reply_from(b"<html>restarting</html>", secrets)                                    Reply(None, "failed: a web page")
    reply_to_refusal(400, b'{"error": {"message": "context length is 8"}}', secrets)   Reply(None, "too long")

`secrets` are those of the address; the key is known. A reason is one short line without them, whatever a server put
there: the key that it was sent, a stack trace, half a page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from alignment.generation import Reply
from alignment.records import SURROGATE
from alignment.secrecy import without_key, without_secrets

WHOLE = ("stop", "length")
ROW = (400, 413, 422)  # a server's no to this one request
BUSY = (408, 409, 429)
REFUSED, REDIRECTED = "failed: refused", "failed: redirected"  # what a server does to all requests or to none
KEY_IN_TEXT = 8  # characters; a shorter key, such as EMPTY, is a word that a reply may hold
SHORT = 120  # characters of what a server said
TOO_LONG = re.compile(
    r"context[ _-]?(length|size|window)|maximum (model |sequence |input )?length|max_(model|seq)_len"
    r"|(prompt|input|message)s? (is|are) too long|too many (input )?tokens|must have less than \d+ tokens",
    re.IGNORECASE,
)
FILTERED = re.compile(r"content[ _-]?(filter|policy|management)|moderation|flagged", re.IGNORECASE)


def one_line(text: str, secrets: Sequence[str]) -> str:
    """What a server said, fit to be part of a message: the secrets go before anything is cut."""
    shown = "".join(letter if letter.isprintable() else " " for letter in without_key(text, secrets))
    return " ".join(shown.split())[:SHORT].rstrip()


def value_of(body: bytes) -> Any:
    """The value of a JSON text. ValueError for none: bad UTF-8, half a text, too many digits, too deep."""
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def told_by(body: bytes) -> tuple[str, str]:
    """(message, code) of an error's body, in any of the forms that servers give it; else the body as the message."""
    try:
        value = value_of(body)
    except ValueError:
        return "a web page" if is_page(body) else body[:2000].decode(errors="replace"), ""
    error = value.get("error") or value if isinstance(value, dict) else value
    if not isinstance(error, dict):
        return error if isinstance(error, str) else json.dumps(error), ""
    message, code = error.get("message") or error.get("detail"), str(error.get("code") or error.get("type") or "")
    if isinstance(message, list):  # FastAPI's: `input` beside `msg` is the request again
        message = "; ".join(str(each.get("msg", "")) for each in message if isinstance(each, dict))
    return (message if isinstance(message, str) else "") or code or json.dumps(error), code


def is_page(body: bytes) -> bool:
    return body.lstrip()[:1] == b"<"


def of_this_row(message: str, code: str) -> Reply | None:
    """What an error says of the request itself, whatever status it came under."""
    if TOO_LONG.search(said := f"{message} {code}"):
        return Reply(None, "too long")
    return Reply(None, "failed: content filter") if FILTERED.search(said) else None


def reply_from(body: bytes, secrets: Sequence[str]) -> Reply:
    """The reply in a body that came under status 200: a whole one, or why it is none. Texts and chats are read alike,
    since some servers answer either with the other."""
    try:
        value = value_of(body)
    except ValueError:
        return Reply(None, "failed: a web page" if is_page(body) else "failed: no JSON")
    if isinstance(value, dict) and value.get("error"):
        message, code = told_by(body)
        return of_this_row(message, code) or Reply(None, f"failed: error under 200: {one_line(message, secrets)}")
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return Reply(None, "failed: no choices")
    choice, finish = choices[0], choices[0].get("finish_reason")
    if finish not in WHOLE:
        return Reply(None, f"failed: {unfinished(finish, secrets)}")
    message = choice.get("message")
    texts = (choice.get("text"), message.get("content") if isinstance(message, dict) else None)
    text = next((each for each in texts if isinstance(each, str)), None)
    if text is None:
        return Reply(None, "failed: no text")
    return Reply(without_secrets(SURROGATE.sub("\ufffd", text), secrets, shortest=KEY_IN_TEXT), finish)


def owners(body: bytes) -> set[str]:
    """Who a server's list of models names as their owners: vLLM names itself. None where it is no such list."""
    try:
        value = value_of(body)
    except ValueError:
        return set()
    models = value.get("data") if isinstance(value, dict) else None
    return (
        {str(each.get("owned_by")) for each in models if isinstance(each, dict)} if isinstance(models, list) else set()
    )


def unfinished(finish: Any, secrets: Sequence[str]) -> str:
    """Why a reply is no whole one, from its finish_reason."""
    if not isinstance(finish, str):
        return "no finish_reason"
    return "content filter" if finish == "content_filter" else f"finish_reason {one_line(finish, secrets)[:40]}"


def reply_to_refusal(status: int, body: bytes, secrets: Sequence[str]) -> Reply:
    """The reply to a request that came back under another status than 2xx, retries included."""
    message, code = told_by(body)
    if status < 500 and status not in BUSY and (reply := of_this_row(message, code)):
        return reply
    if status in ROW:
        return Reply(None, f"refused: {status} {one_line(message, secrets)}".rstrip())
    if status in BUSY or not 300 <= status < 500:
        return Reply(None, f"failed: server {'busy' if status in BUSY else 'error'} {status}")
    return Reply(None, f"{REDIRECTED if status < 400 else REFUSED} {status}")
