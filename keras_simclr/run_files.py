"""Texts of a run directory: its flags and its summary."""

import json
import pathlib

from keras_simclr import _files, cards, flag_texts, records
from keras_simclr.checkpoints import FLAGS

_SUMMARY = "summary.json"
_EARLIER = "earlier_evaluations"  # Of other weights than model.keras has.
# How texts hold names of files, under any locale, and also those not in UTF-8.
_ANY_NAME = {"encoding": "utf-8", "errors": "surrogateescape"}


def recorded_flags(run_dir):
    """Flags of the run that a directory holds: names and texts."""
    path = pathlib.Path(run_dir) / FLAGS
    text = path.read_text(**_ANY_NAME) if path.exists() else ""
    return flag_texts.read_flags(text)


def update_summary(run_dir, entries):
    """Adds entries to `summary.json` in one step."""
    write_summary(run_dir, {**read_summary(run_dir), **entries})


def sorted_evaluations(summary, weights):
    """A summary that says what these weights are worth, or nothing.

    Evaluations of all others, and those that do not say of which weights they
    are, are set aside.
    """
    summary = dict(summary)
    latest = {k: summary.pop(k) for k in cards.EVALUATED if k in summary}
    earlier = []
    for each in [*summary.pop(_EARLIER, []), latest]:
        if weights and each.get("evaluation", {}).get("weights") == weights:
            summary |= each
        elif each:
            earlier.append(each)
    if earlier:
        summary[_EARLIER] = earlier
    return summary


def write_summary(run_dir, summary):
    """Writes `summary.json` in one step."""
    path = pathlib.Path(run_dir) / _SUMMARY
    write_text(path, json.dumps(summary, indent=2) + "\n")


def write_text(path, text):
    """Writes a text in one step."""
    with _files.replacing(path) as staged:
        staged.write_text(text, newline="", **_ANY_NAME)


def read_summary(run_dir):
    """What `summary.json` holds; nothing if there is none."""
    path = pathlib.Path(run_dir) / _SUMMARY
    if not path.exists():
        return {}
    try:
        summary = {**json.loads(path.read_text("utf-8"))}
        records.check_summary(summary)
        return summary
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{_SUMMARY} must be the JSON object that was written there. "
            f"Received: {str(path)!r} ({error}). Mend it, or move it elsewhere"
        ) from None
