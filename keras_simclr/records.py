"""What the text files of a run may hold, whoever wrote them."""

import types

_TEXT = str | None  # Or it is not there.
# Of entries of `summary.json` that are read again: types; in lists and
# dictionaries, of what is in them.
_KINDS = {
    "command": str,
    "data": {"sha256": _TEXT},
    "earlier_data": [{"epochs_trained": int | None}],
    "earlier_evaluations": [{"evaluation": dict | None}],
    "epochs_trained": int,
    "evaluation": {"weights": _TEXT, "verdict": _TEXT},
    "finished": bool,
    "flags": {"given": [str], "values": dict | None},
    "gains": list,
    "labelled": {"source": str, "sha256": _TEXT},
    "more_epochs": [int],
    "official": dict,
    "resumed": [int],
    "rows": [
        {
            "features": str,
            "probe": str,
            "labels": str | int,
            "accuracy": float,
            "interval": [float],
        }
    ],
    "start": {"name": str, "weights": _TEXT},
    "steps_trained": int,
    "teacher": {"name": str, "weights": _TEXT},
    "weights": str,
}


def check_summary(summary):
    """Raises TypeError, with the entry, if one is not what was written there.

    >>> check_summary({"epochs_trained": "two"})
    Traceback (most recent call last):
    TypeError: the entry epochs_trained, 'two'
    """
    for name, kind in _KINDS.items():
        if name in summary and not _fits(summary[name], kind):
            raise TypeError(f"the entry {name}, {str(summary[name])[:40]!r}")


def check_checkpoints(files):
    """Raises TypeError if `checkpoints.json` says of a file what it never does.

    >>> check_checkpoints({"epoch-000001.weights.h5": {"sha256": 3}})
    Traceback (most recent call last):
    TypeError: the entry epoch-000001.weights.h5, {'sha256': 3}
    """
    if not isinstance(files, dict):
        raise TypeError(f"files, {str(files)[:40]!r}")
    for name, known in files.items():
        within = {"metrics": [float], "skips": bool} if "step" in name else {}
        kind = {"sha256": _TEXT, **within}
        # Version 0.1 knew nothing of them; None may not be complete.
        if known not in (None, {}) and not _fits(known, kind):
            raise TypeError(f"the entry {name}, {known}")


# How an example is read: for each kind, the flags that tell it.
READING = {
    "images": ("bits",),
    "audio": ("rate", "seconds"),
    "series": ("window", "stride", "label"),
    "tables": ("label",),
}
# Of which columns an example is made, and how: for each kind, a file of a run.
COLUMNS = {"series": "columns.json", "tables": "columns.keras"}


def reading_of(flags, directory):
    """Texts of the flags that tell how examples are read, by name.

    Args:
        flags: Dictionary of a `flags.txt`.
        directory: Where it is, for errors.

    Returns:
        Dictionary: `kind`, and what goes with it.

    Raises:
        ValueError: If one is not what `pretrain` writes.

    >>> reading_of({"depth": "10"}, "runs/a")
    {'kind': 'images', 'bits': '8'}
    """
    kind = flags.get("kind", "images")
    if kind not in READING:
        raise ValueError(
            f"flags.txt must say --kind= and one of {', '.join(READING)}. "
            f"Received: --kind={kind[:40]!r} in {str(directory)!r}. Mend it"
        )
    flags = {**flags, "bits": str(bits_of(flags, directory))}
    return {"kind": kind, **{name: flags.get(name) for name in READING[kind]}}


def reading(values):
    """Of a dictionary of flags those that tell how examples are read.

    >>> reading({"kind": "audio", "rate": 8000, "seconds": 1.0, "bits": None})
    {'kind': 'audio', 'rate': 8000, 'seconds': 1.0}
    """
    return {k: values[k] for k in ("kind", *READING[values["kind"]])}


def bits_of(flags, directory):
    """Bits of the images that flags tell of, which a directory holds."""
    bits = flags.get("bits", "8")
    if bits not in ("8", "16"):
        raise ValueError(
            "flags.txt must say --bits=8 or --bits=16, or neither. Received: "
            f"--bits={bits[:40]!r} in {str(directory)!r}. Mend it"
        )
    return int(bits)


def _fits(value, kind):
    if isinstance(kind, list):
        return isinstance(value, list) and all(_fits(x, *kind) for x in value)
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(
            _fits(value.get(name), each) for name, each in kind.items()
        )
    if isinstance(kind, types.UnionType):
        return any(_fits(value, each) for each in kind.__args__)
    if isinstance(value, bool):
        return kind is bool
    if kind is int:
        return isinstance(value, int) and 0 <= value < 2**63
    if kind is float:  # NaN is not below anything.
        return isinstance(value, int | float) and abs(value) < 2**63
    return isinstance(value, kind)
