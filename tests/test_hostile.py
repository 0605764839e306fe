"""Wrong values of every flag of every command.

A flag without an entry in `VALUES` or `PLACES` fails the first test here.
"""

import pathlib

import pytest

import keras_simclr_cli as cli
from keras_simclr import commands

COUNTS = ["0", "-5", "1.5", "x", "nan", "", "9" * 5000]
POSITIVE = ["0", "-1", "nan", "inf", "-inf", "x", ""]
AT_LEAST_0 = ["-1", "nan", "inf", "x", ""]
SHARES = ["-0.1", "1.5", "2", "nan", "inf", "x", ""]
NAMES = ["", "x", "None", "AUTO", " auto", "a" * 5000]

# Values that are wrong in themselves.
VALUES = {
    "accept_changed_data": ["maybe", "2", ""],
    "batch_size": [*COUNTS, "1"],
    "batch": [""],
    "bits": [*COUNTS, "7", "32"],
    "blur_rate": SHARES,
    "channels": COUNTS,
    "color_rate": SHARES,
    "columns": [""],
    "count": COUNTS,
    "data": [""],
    "data_dir": [""],
    "decoupled": ["maybe", "2", ""],
    "depth": [*COUNTS, "7"],
    "doctor": ["maybe", "2", ""],
    "draws": [*COUNTS, "1"],
    "encoder": [""],
    "encoders": ["", ",", "a.keras,a.keras"],
    "epochs": COUNTS,
    "flip_rate": SHARES,
    "format": [*NAMES, "npz,csv", ".csv"],
    "formats": [*NAMES, ",", "keras,", "keras,keras", "keras,x"],
    "grayscale_rate": SHARES,
    "hours": POSITIVE,
    "image_size": COUNTS,
    "keep": COUNTS,
    "keep_every": COUNTS,
    "keep_head": ["maybe", "2", ""],
    "labelled": [""],
    "kind": [*NAMES[:-2], "image", "sound"],
    "label": [""],
    "label_weight": SHARES,
    "labels": ["", "0", "-1", "x", "0%", "101%", "100%", "5%%", "5,5", "5,x"],
    "learning_rate": POSITIVE,
    "manifest": [""],
    "micro_batch_size": ["0", "-1", "x", "1.5", "²", ""],
    "model": [""],
    "more_epochs": COUNTS,
    "on_nan": NAMES,
    "output_dir": ["", "~nobody-of-that-name/out"],
    "path": [""],
    "precision": [*NAMES, "float13"],
    "probes": [*NAMES, "linear,linear", "linear,x"],
    "projection_layer": ["-1", "1.5", "x", ""],
    "projection_layers": ["-1", "9", "1.5", "x", ""],
    "query": [""],
    "quiet": ["maybe", "2", ""],
    "rate": [*COUNTS, "999"],
    "report": ["maybe", "2", ""],
    "run_dir": [""],
    "save_minutes": POSITIVE,
    "seconds": POSITIVE,
    "seed": ["-1", str(2**32), str(2**63), "1.5", "x", ""],
    "smallest_crop": [*POSITIVE, "1.5"],
    "split": [""],
    "start_from": [""],
    "stem": NAMES,
    "strategy": NAMES,
    "stride": COUNTS,
    "strength": [*AT_LEAST_0, "3"],
    "teacher": [""],
    "temperature": POSITIVE,
    "tensorboard": ["maybe", "2", ""],
    "test_data": [""],
    "test_split": [""],
    "thorough": ["maybe", "2", ""],
    "trust_coefficient": POSITIVE,
    "unreadable_limit": SHARES,
    "views": [*COUNTS, "1"],
    "warmup_epochs": AT_LEAST_0,
    "weight_decay": AT_LEAST_0,
    "without_dropout": ["maybe", "2", ""],
    "width_multiplier": [*POSITIVE, "1e300"],
    "window": [*COUNTS, "1"],
}
ABSENT = ["absent", "absent/below", "notes.txt/below", "x" * 300, "link"]
# Values that could be right, but for what is there.
PLACES = {
    "columns": [*ABSENT, "full"],
    "data": [*ABSENT, "cifar10", "absent.npz"],
    "data_dir": [*ABSENT, "notes.txt"],
    "encoder": [*ABSENT, "full", "keras_applications:", "notes.npz"],
    "encoders": [*ABSENT, "full", "notes.txt,absent.npz", "keras_hub:"],
    "labelled": [*ABSENT, "cifar10"],
    "manifest": [*ABSENT, "full"],
    "model": [*ABSENT, "notes.txt", "full"],
    "output_dir": ["full", "notes.txt", "notes.txt/below", "x" * 300, "link"],
    "path": ABSENT,
    "query": [*ABSENT, "full"],
    "batch": [*ABSENT, "full"],
    "run_dir": [*ABSENT, "notes.txt", "full"],
    "start_from": [*ABSENT, "full", "keras_application:VGG16", "keras_hub:"],
    "teacher": [*ABSENT, "full", "notes.npz", "keras_hub:"],
    "test_data": [*ABSENT, "cifar10"],
}
RIGHT = {
    "data": "right",
    "model": "right",
    "output_dir": "out",
    "path": "right",
    "batch": "notes.txt",
    "query": "notes.txt",
    "run_dir": "right",
    "teacher": "right",
}
FLAGS = {(c, name) for c, (_, table) in cli._COMMANDS.items() for name in table}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """A directory of what flags may name; no command comes to its work."""
    for name in ("model.keras", "class_names.json"):
        (tmp_path / "right").mkdir(exist_ok=True)
        (tmp_path / "right" / name).write_text("")
    (tmp_path / "full").mkdir()
    for name in ("full/mine.txt", "notes.txt"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    for name in _names(cli._COMMANDS):
        monkeypatch.setattr(commands, f"_{name}", None)


def _names(commands):
    return {name.replace("-", "_") for name in commands}


def listing():
    return sorted(
        (str(path), path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in pathlib.Path().rglob("*")
    )


def right(command, name=None):
    """Arguments of a command, but for one that this flag is instead of."""
    _, table = cli._COMMANDS[command]
    left_out = {k for k, flag in table.items() if flag.instead_of} - {name}
    left_out.add(name and table[name].instead_of)
    names = RIGHT.keys() & table.keys() - left_out
    return [f"--{k}={RIGHT[k]}" for k in RIGHT if k in names]


def refused(arguments, capsys, code, *words):
    """What is said of wrong arguments, of which nothing must remain."""
    before = listing()
    assert cli.main(arguments) == code
    assert listing() == before
    text = capsys.readouterr()
    assert text.out == ""
    assert text.err.startswith(f"keras-simclr: {arguments[0]}: ")
    assert text.err.count("\n") == 1
    assert "Traceback" not in text.err
    for word in words:
        assert word in text.err


def test_every_flag_has_wrong_values():
    names = {name for _, name in FLAGS}
    assert names == VALUES.keys() | PLACES.keys()
    placed = {
        name
        for _, table in cli._COMMANDS.values()
        for name, flag in table.items()
        if flag.place
    }
    assert placed == PLACES.keys()


@pytest.mark.fault(54)
@pytest.mark.parametrize(("command", "name"), sorted(FLAGS))
def test_wrong_values_are_refused_by_the_flags_name(command, name, capsys):
    for code, table in ((2, VALUES), (1, PLACES)):
        for wrong in table.get(name, ()):
            arguments = [command, *right(command, name), f"--{name}={wrong}"]
            refused(arguments, capsys, code, name)


@pytest.mark.parametrize("command", cli._COMMANDS)
def test_wrong_usage_is_refused(command, capsys):
    arguments = [command, *right(command)]
    (pathlib.Path("unknown.txt")).write_text("--nonsense=1\n")
    (pathlib.Path("binary.txt")).write_bytes(b"--output_dir=\xff\n")
    for wrong, word in {
        "--nonsense=1": "'nonsense'",
        "--nononsense": "'nononsense'",
        "--helpfull": "'helpfull'",
        "--flagfile=absent": "flagfile",
        "--flagfile=full": "flagfile",
        "--flagfile=binary.txt": "flagfile",
        "--flagfile=unknown.txt": "'nonsense'",
        "--flagfile": "flagfile",
        "\udcff": "--flag=value",
        "--\udcff=1": "Unknown command line flag",
    }.items():
        refused([*arguments, wrong], capsys, 2, word)
    for name, flag in cli._COMMANDS[command][1].items():
        if flag.kind != "boolean":
            refused([*arguments, f"--no{name}"], capsys, 2, f"no{name}")
            refused([*arguments, f"--{name}"], capsys, 2, f"--{name}")
        if flag.instead_of:
            both = [*arguments, f"--{name}=right"]
            refused(both, capsys, 2, f"--{name}, not both")
        if flag.is_required:
            others = [x for x in arguments if not x.startswith(f"--{name}=")]
            refused(others, capsys, 2, f"--{name}")
        misspelt = f"--{name[:-1]}{name[-1].swapcase()}z=1"
        refused([*arguments, misspelt], capsys, 2, "Did you mean", name)


@pytest.mark.parametrize(
    ("command", "other", "own"),
    [
        ("pretrain", "projection_layer", "projection_layers"),
        ("evaluate", "projection_layers", "projection_layer"),
    ],
)
def test_flags_that_sound_alike_are_told_apart(command, other, own, capsys):
    arguments = [command, *right(command), f"--{other}=1"]
    refused(arguments, capsys, 2, f"'{other}'. Did you mean: {own} ?")


def test_the_last_of_several_counts_and_spaces_do(monkeypatch):
    seen = []
    monkeypatch.setattr(commands, "_demo", seen.append)
    pathlib.Path("flags.txt").write_text("--seed=1\n")
    for arguments, seed in {
        ("--seed=1", "--seed=2"): 2,
        ("--seed", "3"): 3,
        ("--flagfile=flags.txt",): 1,
        ("--flagfile=flags.txt", "--seed=4"): 4,
    }.items():
        assert cli.main(["demo", "--output_dir=out", *arguments]) == 0
        assert seen.pop().seed == seed


def test_home_is_found_in_lists(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.keras").write_text("")
    seen = []
    monkeypatch.setattr(commands, "_evaluate", seen.append)
    arguments = ["evaluate", *right("evaluate"), "--encoders=~/a.keras"]
    assert cli.main(arguments) == 0
    assert seen[0].encoders == [str(tmp_path / "a.keras")]
