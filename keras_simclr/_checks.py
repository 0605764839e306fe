"""Checks of arguments."""

import collections
import difflib
import math
import numbers
import os
import re

import numpy as np

_SHOWN = 10  # Of what an error message lists,
_LONGEST = 300  # and characters of each.
# The last texts of `fail`: a graph passes no exceptions on, but their words.
_failures = collections.deque(maxlen=16)


def real_number(name, value, *, low=-math.inf, high=math.inf, rule):
    """Returns `value` if it is a number in [low, high]; raises if not."""
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Real)
        or not math.isfinite(value)
        or not low <= value <= high
    ):
        raise ValueError(f"`{name}` must be {rule}. Received: {name}={value!r}")
    return value


def positive_number(name, value):
    """Returns `value` if it is a finite number above 0; raises if not."""
    smallest = math.ulp(0.0)
    return real_number(name, value, low=smallest, rule="a positive number")


def probability(name, value):
    """Returns `value` if it lies in [0, 1]; raises if not."""
    rule = "a probability between 0 and 1"
    return real_number(name, value, low=0, high=1, rule=rule)


def positive_range(name, value, *, high=math.inf):
    """Returns `value` as a tuple `0 < low <= high`; raises if it is none."""
    try:
        first, last = value
        if 0 < first <= last <= high and math.isfinite(last):
            return (float(first), float(last))
    except (TypeError, ValueError):
        pass
    limit = "" if high == math.inf else f" <= {high}"
    raise ValueError(
        f"`{name}` must be a pair (low, high) with 0 < low <= high{limit}. "
        f"Received: {name}={value!r}"
    )


def integer(name, value, *, minimum, maximum=math.inf):
    """Returns `value` if it is an integer of these limits; or raises."""
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Integral)
        or not minimum <= value <= maximum
    ):
        limit = "" if maximum == math.inf else f" and at most {maximum}"
        raise ValueError(
            f"`{name}` must be an integer of at least {minimum}{limit}. "
            f"Received: {name}={value!r}"
        )
    return int(value)


def boolean(name, value):
    """Returns `value` if it is True or False; raises if not."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(
            f"`{name}` must be True or False. Received: {name}={value!r}"
        )
    return bool(value)


def matching(name, value, *, pattern, rule):
    """Returns `value` if a regular expression matches its text; or raises."""
    if not re.fullmatch(pattern, str(value)):
        raise ValueError(f"`{name}` must be {rule}. Received: {name}={value!r}")
    return value


def seed(name, value):
    """Returns `value` if it is an integer that TensorFlow can hold; or raises.

    All that is random is a function of such a number.
    """
    if integer(name, value, minimum=0) >= 2**63:
        raise ValueError(
            f"`{name}` must be an integer below 2**63. Received: {name}={value}"
        )
    return int(value)


def listing(items):
    r"""The first few of a list, in words: in one line, whatever they are.

    >>> listing(range(12))
    '0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...'
    >>> listing(["a\nb"])
    'a\\nb'
    """
    more = ", ..." * (len(items) > _SHOWN)
    return ", ".join(map(_shortened, items[:_SHOWN])) + more


def _shortened(item):
    # Names of files as `_files.in_one_line` shows them.
    text = str(item).encode("utf-8", "surrogateescape")
    text = text.decode("utf-8", "backslashreplace")
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]}...{text[-_LONGEST // 2 :]}"
    return "".join(x if x.isprintable() else ascii(x)[1:-1] for x in text)


def finite_rows(what, rows, names=()):
    """Refuses outputs of a network, a row for each image, that are not finite.

    `names` of the images, or nothing if they have none.
    """
    is_finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
    places = np.flatnonzero(~is_finite)
    if len(places):
        example = names[places[0]] if names else f"row {places[0]}"
        raise ValueError(
            f"{what} must be finite. Received: NaN or infinity for "
            f"{len(places)} of {len(rows)} images, such as {example!r}. The "
            "training has diverged: train anew, with a lower learning rate"
        )


def choice(name, value, choices):
    """Returns `value` if it is one of `choices`; or raises and lists them."""
    for item in choices:
        if type(value) is type(item) and value == item:
            return value
    near = []
    if isinstance(value, str):
        near = difflib.get_close_matches(value, choices, n=1)
    hint = f". Did you mean {near[0]!r}?" if near else ""
    listing = ", ".join(repr(item) for item in sorted(choices))
    raise ValueError(
        f"`{name}` must be one of {listing}. Received: {name}={value!r}{hint}"
    )


def fail(text):
    """Raises a ValueError in a function that a graph calls."""
    # Names of files need not be valid UTF-8, but TensorFlow stops at others.
    text = os.fsencode(text).decode(errors="replace")
    _failures.append(text)
    raise ValueError(text)


def failure_in(message):
    """The text of a `fail` that what TensorFlow says of it holds, or None."""
    return next((text for text in _failures if text in message), None)
