"""Flags as text: arguments of a command, and the lines of `flags.txt`."""

import dataclasses
import typing


def as_text(value):
    """A field's value as a flag has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def as_arguments(values):
    """Command-line arguments for a dictionary of flags.

    None leaves a flag out.

    Example:

    >>> as_arguments({"depth": 18, "manifest": None})
    ['--depth=18']
    """
    return [f"--{k}={as_text(v)}" for k, v in values.items() if v is not None]


def as_flags(values):
    """The text of `flags.txt` for a dictionary of flags."""
    return "".join(f"{x}\n" for x in as_arguments(dict(sorted(values.items()))))


def read_flags(text):
    r"""The flags of a `flags.txt`: dictionary of names and texts.

    Example:

    >>> read_flags("--depth=18\n--nodoctor\n")
    {'depth': '18', 'doctor': 'false'}
    """
    values = {}
    for line in text.splitlines():
        name, has_value, value = line.removeprefix("--").partition("=")
        if not has_value:  # As absl writes flags that are on or off.
            value = "false" if name.startswith("no") else "true"
            name = name.removeprefix("no")
        values[name] = value
    return values


def from_text(kind, texts):
    """Values of fields of `Data` or `Recipe` from texts: a dictionary."""
    values = {}
    for field in dataclasses.fields(kind):
        if field.name in texts:
            value, flag = texts[field.name], flag_type(field)
            if value is not None:
                value = _from_text(field.name, value, flag)
            values[field.name] = value
    return values


def _from_text(name, text, kind):
    if kind is bool:
        return text == "true"
    try:
        return kind(text)
    except ValueError:
        raise ValueError(
            f"`{name}` must be {kind.__name__}, as flags.txt has it. Received: "
            f"{name}={text[:40]!r}"
        ) from None


def flag_type(field):
    """The type of a field's flag: bool, int, float or str."""
    kinds = [x for x in typing.get_args(field.type) if x is not type(None)]
    return kinds[0] if kinds else field.type
