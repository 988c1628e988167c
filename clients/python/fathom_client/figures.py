"""Figures as people read them: money, sizes, counts and times, each to a short text.

Only the way out. What a person types is read in `command/quantities.py`.
"""

from __future__ import annotations

NANOS_PER_USD = 1_000_000_000
_HOURS_AS_DAYS = 48
"""From so many on, a length of time is told in whole days."""


def usd_text(nanos: int) -> str:
    """Return billionths of a US dollar as `$5`, `$0.31` or, below a cent, two digits that count."""
    sign, nanos = ("-", -nanos) if nanos < 0 else ("", nanos)
    whole, rest = divmod(nanos, NANOS_PER_USD)
    if rest == 0 and nanos:
        return f"{sign}${whole:,}"
    if nanos == 0:
        return "$0.00"
    if nanos >= NANOS_PER_USD // 100:
        return f"{sign}${nanos / NANOS_PER_USD:,.2f}"
    return f"{sign}${float(f'{nanos / NANOS_PER_USD:.2g}'):.9f}".rstrip("0")


def bytes_text(size_bytes: int) -> str:
    """Return a size in decimal units, such as `41.2 MB`."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    size = float(size_bytes)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"


def count_text(count: int) -> str:
    """Return a count with three digits at most before its unit, such as `212` or `1.4M`."""
    if count < 1000:
        return str(count)
    value = float(count)
    for unit in ("k", "M", "G"):
        value /= 1000
        if value < 999.95:
            return f"{value:.1f}".removesuffix(".0") + unit
    return f"{value / 1000:.1f}T"


def clock_text(elapsed_s: float) -> str:
    """Return a running time as `0:42` or `1:02:03`."""
    minutes, seconds = divmod(max(0, int(elapsed_s)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def span_text(span_s: float) -> str:
    """Return a length of time in words, such as `40 ms`, `3.2 s`, `1 h 30 min` or `7 days`."""
    if span_s < 1:
        return f"{span_s * 1000:.0f} ms"
    if span_s < 60:
        return f"{span_s:.1f}".removesuffix(".0") + " s"
    minutes, seconds = divmod(round(span_s), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= _HOURS_AS_DAYS:
        return f"{round(span_s / 86_400)} days"
    parts = [(hours, "h"), (minutes, "min"), (seconds, "s")]
    return " ".join(f"{value} {unit}" for value, unit in parts if value)


def plural(count: int, noun: str) -> str:
    """Return `1 file` or `1,204 files`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
