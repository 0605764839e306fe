"""What a source holds, in words."""

import numpy as np

from keras_simclr import _checks, scanning
from keras_simclr._files import valid_names
from keras_simclr.folders import ImageFolder
from keras_simclr.labelled import one_per_row


def parts_in_words(source):
    """That the sub-folders are parts and no classes, if they are."""
    if not isinstance(source, ImageFolder) or source.labels is not None:
        return ""
    tops = {path.partition("/")[0] for path in source.paths}
    if not scanning.are_parts(tops):
        return ""
    example = str(source.directory / min(tops))
    example, *parts = valid_names([example, *sorted(tops)])
    return (
        f" in {', '.join(parts)}: parts of a data set, no classes. All are "
        f"taken; for the images and classes of one, name it: {example}"
    )


def not_read_in_words(kinds):
    """Other files, by their kind, that are left alone."""
    if not kinds:
        return ""
    total = sum(kinds.values())
    files = "other files are" if total > 1 else "other file is"
    shown = [f"{count:,} {kind}" for kind, count in kinds.items()]
    return (
        f". {total:,} {files} not read: {_checks.listing(valid_names(shown))}"
    )


def classes_in_words(labels, names):
    """Classes that have names, or labels, or both."""
    if labels is None:
        found = list(names)
    else:
        labels = one_per_row(labels)
        if labels.ndim != 1:
            return ""
        if labels.dtype.kind in "if":  # A negative one means: none.
            labels = labels[labels >= 0]
        classes, sizes = np.unique(labels, return_counts=True)
        found = [
            f"{names[x] if len(names) else x} ({size:,})"
            for x, size in zip(classes.tolist(), sizes, strict=True)
        ]
    if not found:
        return ", no classes"
    listing = _checks.listing(valid_names(found))
    classes = "classes" if len(found) > 1 else "class"
    return f" of {len(found):,} {classes}: {listing}"
