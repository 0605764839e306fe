"""What two runs that are the same have logged alike."""

import csv

_TIMES = ("seconds", "images_per_second")


def untimed(path):
    """Rows of a log: lists of pairs, without the columns of times."""
    with path.open(newline="") as file:
        return [
            [both for both in row.items() if both[0] not in _TIMES]
            for row in csv.DictReader(file)
        ]
