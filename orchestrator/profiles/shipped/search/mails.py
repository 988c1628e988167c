"""Mails and documents: a table of what there is, and passages with their places."""

# mypy: ignore-errors

import email
import email.policy
import email.utils
import re

_BEFORE_SUBJECT = re.compile(r"^(\s*(\[[^\]]{1,40}\]|(re|fwd?|aw|wg)\s*:))+\s*", re.IGNORECASE)
"""Names of lists, and words for replies."""


class Mail:
    """One mail: .date, .sender, .to, .subject, .body, and .document, .start, .end for its place.

    .date is as the sender's clock had it; .moment_s is comparable, in Unix time.
    """

    def __init__(self, document, start, raw):
        parsed = email.message_from_string(raw, policy=email.policy.compat32)
        self.document, self.start, self.end = document, start, start + len(raw)
        self.subject = _header(parsed, "subject")
        self.sender = _header(parsed, "from")
        self.to = _header(parsed, "to")
        self.message_id = _header(parsed, "message-id")
        self.in_reply_to = _header(parsed, "in-reply-to")
        self.date, self.moment_s = _date(_header(parsed, "date"))
        break_at = re.search(r"\r?\n\r?\n", raw)
        self.body_start = start + (break_at.end() if break_at else 0)
        self.body = raw[break_at.end() :] if break_at else raw

    def __repr__(self):
        return f"{self.date[:16]:16}  {self.sender[:40]:40}  {self.subject[:70]}"


def mails(limit=100_000):
    """Return all mails of `context`, oldest first: an mbox, a mail a document, or both."""
    found = []
    for name, text in _texts():
        starts = [match.start for match in grep(r"^From \S+@?\S* .*\d\d:\d\d", text, limit=limit)]
        if not starts:
            head = str(text[:4000])
            if re.search(r"^(From|Subject|Message-ID):", head, re.MULTILINE | re.IGNORECASE):
                found.append(Mail(name, 0, str(text[:])))
            continue
        size = text.characters if hasattr(text, "characters") else len(text)
        for start, end in zip(starts, [*starts[1:], size]):
            raw = str(text[start:end])
            line = raw.find("\n") + 1  # the envelope's line is no header
            found.append(Mail(name, start + line, raw[line:]))
    return sorted(found, key=lambda mail: mail.moment_s)


def threads(of=None):
    """Return mails by thread: a dict from the plain subject to its mails, the largest first."""
    groups = {}
    for mail in mails() if of is None else of:
        subject = _BEFORE_SUBJECT.sub("", " ".join(mail.subject.split()))
        groups.setdefault(subject.lower(), []).append(mail)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def passages(pattern, limit=40, around=300, ignore_case=True):
    """Return passages around matches of a pattern: dicts of document, start, end and text."""
    found = []
    for match in grep(pattern, ignore_case=ignore_case, limit=limit):
        name = match.document or ""
        text = context[name] if name else context
        low, high = max(match.start - around, 0), match.end + around
        if found and found[-1]["document"] == name and low <= found[-1]["end"]:
            low = found.pop()["start"]
        part = str(text[low:high])
        found.append({"document": name, "start": low, "end": low + len(part), "text": part})
    return found


def sentence_at(passage, words):
    """Return evidence for words that stand in a passage: a dict of quote, document, start, end."""
    at = passage["text"].lower().find(words.lower())
    if at < 0:
        raise ValueError(f"the passage does not have {words!r}")
    text = passage["text"]
    low = max(text.rfind("\n", 0, at), text.rfind(". ", 0, at) + 1) + 1
    ends = [end for end in (text.find("\n", at), text.find(". ", at)) if end >= 0]
    high = min(ends) + 1 if ends else len(text)
    quote = text[low:high].strip()
    start = passage["start"] + text.index(quote, low)
    return {
        "quote": quote,
        "document": passage["document"],
        "start": start,
        "end": start + len(quote),
    }


def _texts():
    if hasattr(context, "lazy"):
        return [(name, context.lazy(name)) for name in context]
    if hasattr(context, "items"):
        return list(context.items())
    return [("", context)]


def _date(header):
    """Return a date as ISO text, and as Unix time; what cannot be read comes before all."""
    try:
        date = email.utils.parsedate_to_datetime(header)
        return date.isoformat(), date.timestamp()
    except (TypeError, ValueError, OverflowError):
        return "", float("-inf")


def _header(parsed, name):
    return str(email.header.make_header(email.header.decode_header(str(parsed.get(name, "")))))
