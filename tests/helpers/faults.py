"""Which test shows what happens in which fault.

    python tests/helpers/faults.py

writes tests/faults.md: what can go wrong, what must happen then, and the tests
that are marked with `@pytest.mark.fault(number, ...)` to show it.
"""

import ast
import pathlib

TESTS = pathlib.Path(__file__).parents[1]
PATH = TESTS / "faults.md"

# Number: what goes wrong, and what must happen.
FAULTS = {
    "Numbers": {
        1: ("a NaN in a batch", "refused before the step, naming step and row"),
        2: ("infinity in a batch", "the same"),
        3: (
            "NaN on one of several replicas, in float16",
            "all leave the step out; their weights stay equal",
        ),
        4: ("temperature of 0", "refused when the loss is made"),
        5: ("temperature below 0", "the same"),
        6: (
            "temperature that is NaN, infinity, a text, a tensor",
            "the same, telling the value",
        ),
        7: ("temperature far below 0.01", "finite, and the doctor says so"),
        8: ("a batch of one image", "refused: no negatives"),
        9: ("no images, no batches", "refused as an empty dataset"),
        10: (
            "a batch that replicas cannot share",
            "refused before training, with the cure",
        ),
        11: (
            "a last batch that is smaller",
            "left out of arrays and said; a single image is refused",
        ),
        12: ("equal images", "trains; the doctor says so"),
        13: ("images of one colour", "finite views, loss and weights"),
        14: ("projections of zero", "finite; the doctor says so"),
        15: ("projections of 1e30", "the loss of their directions"),
        16: ("projections of 1e-30, or 1e-5 in float16", "the same"),
        17: ("mixed_float16", "float32 loss, finite, near that of float32"),
        18: ("mixed_bfloat16", "trains"),
        19: ("float16 at a temperature of 0.01", "finite, as in float64"),
        20: (
            "an error in the formula of the loss",
            "equals oracles, finite differences, and its invariances",
        ),
        21: ("replicas that see negatives of their own", "equal one device"),
        22: ("identical views", "finite, and the official value"),
        23: (
            "rate of 0, huge rate, warm-up that takes all steps, no steps",
            "refused or told; divergence stops its step",
        ),
        24: (
            "LARS: zero weights or gradients, vectors, exclusions",
            "plain steps; exclusions survive saving",
        ),
        25: ("weight decay applied twice", "once"),
        26: ("every step overflows in float16", "stops with an error"),
        "26b": (
            "NaN that batch norm has seen",
            "moving averages are those before the step",
        ),
    },
    "Images and datasets": {
        27: ("uint8", "the same as floats from 0 to 1"),
        28: ("floats from 0 to 255", "refused with the cure"),
        29: ("floats below 0", "the same"),
        30: ("int32, int64", "the same"),
        31: ("16 bits", "scaled by their depth"),
        32: ("one channel", "trains, without hue and saturation"),
        33: (
            "2, 4 or 13 channels",
            "refused where 3 are needed; else each is jittered by itself",
        ),
        34: ("channels first", "refused with the cure"),
        35: ("images of few pixels, of none, long ones", "refused, or finite"),
        36: ("a blur of an even number of pixels", "odd, at least 3"),
        37: (
            "images of many sizes, ragged batches",
            "canvases and single images work; ragged ones are refused",
        ),
        38: ("animations", "the first picture"),
        39: (
            "all formats and modes of files",
            "read as Pillow reads them, or named as unsupported",
        ),
        40: (
            "files that are empty, cut, HTML",
            "skipped and counted up to a limit, then named",
        ),
        41: ("files that unpack to gigabytes", "refused by their header"),
        42: ("pictures that are to be turned", "turned upright"),
        43: (
            "elements of other forms: labels, dictionaries, texts, None",
            "labels change nothing; other forms are refused",
        ),
        44: (
            "batches or none, without end, of unknown length",
            "refused with the cure, or work",
        ),
        45: (
            "data of all kinds; folders with links, loops, any names",
            "work, or are refused by name",
        ),
        46: (
            "the same seed twice, in other processes, on other cores",
            "the same bits",
        ),
        47: ("views that are equal; a rate of 0", "views differ; identity"),
        48: (
            "augmentations that draw other than the paper",
            "distributions and pixels equal the reference",
        ),
    },
    "Processes, disks, machines": {
        49: ("killed at any moment", "goes on; little is lost"),
        50: ("SIGTERM, SIGINT, twice, anywhere", "kept, and said how to go on"),
        51: ("resumed, from any step", "equals uninterrupted, bit for bit"),
        52: ("resumed on another number of replicas", "the same to 1e-9"),
        53: ("the disk is full", "what was there stays; a sentence"),
        54: (
            "an output that cannot be written, is a file, has odd letters",
            "refused before the work, or works",
        ),
        55: (
            "damaged checkpoints, summaries, manifests, models",
            "found out, passed over or refused by name",
        ),
        56: (
            "resumed with other flags, data, networks",
            "refused, telling the difference",
        ),
        57: ("files of somebody else in the output", "never touched"),
        58: ("training diverges", "what was last finite is kept"),
        59: ("NaN in the first epoch", "nothing is kept as good"),
        60: ("two processes in one directory", "the second is refused"),
        61: (
            "workers that die, or differ in seed or data",
            "an error in all of them",
        ),
        62: ("made outside of the strategy's scope", "refused with the cure"),
        63: (
            "strategies and options that do not work together",
            "refused, telling why",
        ),
        64: (
            "locale C, no HOME, no network, another Keras, clocks that jump",
            "works, or is refused on import with the cure",
        ),
        65: ("packages that are not installed", "the command that installs"),
        66: ("memory that grows, steps traced again", "flat; traced once"),
        67: (
            "encoders that are frozen, random, penalised, of several outputs",
            "told, trained right, or refused with the cure",
        ),
        68: (
            "exports that differ from the model",
            "equal in a fresh process, without this package",
        ),
        69: ("export into what exists, or fails midway", "all or nothing"),
    },
    "Files from strangers": {
        70: ("Keras files with code in them", "refused; no code runs"),
        71: ("configurations of unknown classes or paths", "refused"),
        72: ("HDF5 with links out of it, or huge shapes", "refused unread"),
        73: ("archives that lead out of their folder", "refused or left out"),
        74: ("SavedModels, which are programs", "said to be; run on request"),
        75: (
            "paths that lead away; pipes, devices; what cannot be read",
            "left out or refused by name",
        ),
        76: (
            "names with formulas, markup, line ends",
            "text in tables, pages and cards",
        ),
    },
}
# Number: why no test shows it, or what a test cannot.
NOTES = {
    74: "A SavedModel is a program. `predict` runs that of the classifier it "
    "is given, and nothing else is run: SECURITY.md says so.",
    45: "A folder of a million files: benchmarks/README.md.",
    59: "Nothing chooses a best epoch: the last that is finite is kept.",
    61: "When one dies or hangs, the others end when TensorFlow sees it: after "
    "minutes, which no test waits for.",
    66: "Over hundreds of epochs: `benchmarks/reliability/memory.py`.",
}


def marked():
    """Tests by the numbers of the faults that they are marked with.

    Raises:
        ValueError: If a mark stands anywhere but before a test function.
    """
    found = {}
    for path in sorted(TESTS.glob("test_*.py")):
        text = path.read_text()
        count = 0
        for name, node in _named(ast.parse(text), path.stem):
            for mark in getattr(node, "decorator_list", []):
                if not ast.unparse(mark).startswith("pytest.mark.fault("):
                    continue
                count += 1
                if not node.name.startswith("test_"):
                    raise ValueError(f"A mark of no test: {name}")
                for number in mark.args:
                    found.setdefault(number.value, []).append(name)
        if count != text.count("pytest.mark.fault("):
            raise ValueError(f"A mark that is none of a function: {path}")
    return found


def _named(tree, place):
    """What a module defines, and what its classes do, by pytest's names."""
    for node in tree.body:
        if hasattr(node, "name"):
            name = f"{place}::{node.name}"
            yield name, node
            if isinstance(node, ast.ClassDef):
                yield from _named(node, name)


def uncovered():
    """Numbers without a test or a note; and those marked that are no fault."""
    numbers = {number for part in FAULTS.values() for number in part}
    covered = marked().keys()
    return numbers - covered - NOTES.keys(), covered - numbers


def text():
    tests = marked()
    lines = [
        "# Faults, and the tests of them",
        "",
        "Written by `python tests/helpers/faults.py`, from the tests' marks.",
    ]
    for part, faults in FAULTS.items():
        lines += ["", f"## {part}", "", "| # | fault | must happen | tests |"]
        lines.append("|---|---|---|---|")
        for number, (fault, wanted) in faults.items():
            names = [f"`{name}`" for name in tests.get(number, ())]
            cell = "<br>".join([*names, *filter(None, [NOTES.get(number)])])
            lines.append(f"| {number} | {fault} | {wanted} | {cell} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PATH.write_text(text())
