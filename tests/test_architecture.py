import ast
import configparser
import importlib.metadata
import inspect
import pathlib
import re
import subprocess
import sys

import pytest
from absl import flags

import keras_simclr as simclr
import keras_simclr_cli as cli
from keras_simclr import architectures, decoding, evaluation, export, probes

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "keras_simclr"
MODULES = sorted(path.stem for path in PACKAGE.glob("[!_]*.py"))

# A module may import those of lower levels only.
LEVELS = {
    "_checks": 0,
    "_files": 0,
    "_terminal": 0,
    "architectures": 0,
    "cards": 1,
    "trials": 0,
    "devices": 1,
    "duplicates": 1,
    "decoding": 1,
    "exif": 0,
    "flag_texts": 0,
    "pillow_files": 0,
    "official_files": 0,
    "optimizers": 1,
    "orders": 1,
    "replicas": 1,
    "programs": 0,
    "augmentations": 2,
    "similarities": 2,
    "networks": 2,
    "micro_batches": 4,
    "archives": 0,
    "kinds": 0,
    "tfds_builders": 1,
    "source_words": 7,
    "data_kinds": 6,
    "number_files": 5,
    "random_layers": 1,
    "evaluation_views": 7,
    "audio": 3,
    "log_mels": 2,
    "sounds": 6,
    "csv_files": 0,
    "parquet_files": 1,
    "records": 0,
    "keras_files": 4,
    "manifests": 2,
    "splits": 1,
    "scanning": 3,
    "losses": 3,
    "elements": 3,
    "streams": 4,
    "copies": 3,
    "checkpoints": 5,
    "run_files": 6,
    "failures": 6,
    "array_files": 4,
    "folders": 4,
    "lists": 5,
    "shards": 5,
    "iterables": 4,
    "fit_data": 5,
    "vectors": 5,
    "labelled": 6,
    "classifiers": 5,
    "sources": 8,
    "fingerprints": 8,
    "model": 6,
    "imitation": 7,
    "pretrained": 7,
    "collapse": 1,
    "sampling": 1,
    "features": 7,
    "probes": 7,
    "recipe": 9,
    "kind_recipes": 8,
    "export": 8,
    "embedding": 8,
    "doctor": 2,
    "looks": 7,
    "callbacks": 8,
    "logs": 9,
    "finetuning": 8,
    "testing": 7,
    "runs": 10,
    "feature_files": 1,
    "neighbours": 1,
    "curves": 0,
    "thumbnails": 0,
    "pages": 1,
    "accounts": 2,
    "maps": 2,
    "label_errors": 8,
    "image_sets": 8,
    "pictures": 1,
    "comparisons": 9,
    "run_accounts": 11,
    "report": 12,
    "contenders": 9,
    "shipping": 8,
    "evaluation": 10,
    "budgets": 10,
    "planning": 11,
    "classification": 12,
    "distillation": 13,
    "teaching": 14,
    "demo": 13,
    "row_files": 11,
    "official": 13,
    "commands": 15,
    "adapted": 6,
    "series": 7,
    "tables": 7,
    "windows": 1,
    "moments": 0,
    "columns": 2,
}
HEAVY = {
    "PIL",
    "joblib",
    "imagehash",
    "keras_hub",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "pillow_heif",
    "pyarrow",
    "scipy",
    "soundfile",
    "sklearn",
    "tensorflow_datasets",
    "tensorflow_hub",
    "tf2onnx",
    "tf_keras",
}
PUBLIC = [
    "LARS",
    "NTXent",
    "ProjectionHead",
    "RandomColorDistortion",
    "RandomFlip",
    "RandomGaussianBlur",
    "RandomGaussianNoise",
    "RandomResizedCrop",
    "RandomRotate90",
    "ResNet",
    "SimCLRAugmentation",
    "SimCLRModel",
    "dataset_from_arrays",
    "dataset_from_directory",
    "dataset_from_tfds",
    "distill",
    "distill_encoder",
    "evaluate",
    "export_encoder",
    "extract_features",
    "fine_tune",
    "knn_probe",
    "linear_probe",
    "load_official",
    "nt_xent",
    "scaled_learning_rate",
    "warmup_cosine",
]


def imports(path, *, top_level=False):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_public_names_are_these():
    names = [
        name
        for name, value in vars(simclr).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    ]
    assert sorted(names) == PUBLIC


def test_version_is_readable_without_importing_tensorflow():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (version,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
    ]
    assert version == simclr.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def own_imports(module):
    return {
        name.split(".")[1]
        for name in imports(PACKAGE / f"{module}.py")
        if name.startswith("keras_simclr.")
    }


def test_every_module_has_its_level():
    files = {path.stem for path in PACKAGE.glob("*.py")}
    new = files - LEVELS.keys() - {"__init__", "__main__"}
    assert not new, (
        f"Give {', '.join(sorted(new))} a level in LEVELS: one more than the "
        "highest of the modules that it imports. Then describe it in "
        "CONTRIBUTING.md."
    )
    assert not LEVELS.keys() - files, "LEVELS names modules that are gone."


@pytest.mark.parametrize("module", LEVELS)
def test_modules_import_in_one_direction(module):
    wrong = {x for x in own_imports(module) if LEVELS[x] >= LEVELS[module]}
    assert not wrong, (
        f"{module} (level {LEVELS[module]}) must not import "
        f"{', '.join(sorted(wrong))}. Move what it needs into a module below "
        "both, or raise its level if nothing above imports it."
    )


def reached(module):
    """All modules that are imported with one, directly or not."""
    found, rest = set(), [module]
    while rest:
        new = own_imports(rest.pop()) - found
        found |= new
        rest += new
    return found


@pytest.mark.parametrize(
    ("module", "strangers"),
    [
        (
            "model",
            {
                "decoding",
                "duplicates",
                "folders",
                "scanning",
                "sources",
                "runs",
            },
        ),
        ("similarities", {"losses"}),
        ("sampling", {"features", "model"}),
        ("_checks", LEVELS.keys()),
        ("_files", LEVELS.keys()),
        ("_terminal", LEVELS.keys() - {"__init__"}),
    ],
)
def test_modules_know_nothing_of_strangers(module, strangers):
    assert not reached(module) & strangers


@pytest.mark.parametrize(
    ("module", "others"),
    [
        ("recipe", set()),
        ("_terminal", set()),
        ("_files", set()),
        ("_checks", {"numpy"}),
    ],
)
def test_what_checks_a_command_line_does_not_wait_for_keras(module, others):
    """They are read without the package, for `--help` and wrong flags."""
    roots = imports(PACKAGE / f"{module}.py", top_level=True)
    roots = {name.split(".")[0] for name in roots}
    assert roots <= sys.stdlib_module_names | others


@pytest.mark.parametrize(
    "path",
    [*sorted(PACKAGE.glob("*.py")), ROOT / "keras_simclr_cli.py"],
    ids=lambda p: p.stem,
)
def test_modules_and_functions_are_short(path):
    lines = len(path.read_text().splitlines())
    assert lines <= 700 or path.stem == "augmentations"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            docstring = ast.get_docstring(node, clean=False) or ""
            size = node.end_lineno - node.lineno - docstring.count("\n")
            assert size <= 60, node.name


def test_one_name_is_one_thing():
    """No two modules define the same name, unless it is their own affair."""
    homes = {}
    for path in [*PACKAGE.glob("*.py")]:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                homes.setdefault(node.name, []).append(path.stem)
    twice = {k: v for k, v in homes.items() if len(v) > 1}
    shared = {name for name in twice if not name.startswith("_")}
    # What `kind_recipes` asks the module of each kind for.
    of_kinds = {"default_augmentation", "default_encoder"}
    assert not shared - of_kinds, twice


@pytest.mark.parametrize("module", MODULES)
def test_heavy_packages_are_imported_where_they_are_used(module):
    roots = {
        name.split(".")[0]
        for name in imports(PACKAGE / f"{module}.py", top_level=True)
    }
    assert not roots & HEAVY


def test_what_is_imported_is_declared():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    options, extras = setup["options"], setup["options.extras_require"]
    extras = [
        extras[name]
        for name in ("audio", "formats", "hub", "keras_hub", "onnx")
    ]
    texts = options["install_requires"], *extras
    declared = {
        x.lower() for x in re.findall(r"^[\w-]+", "\n".join(texts), re.M)
    }
    files = [*PACKAGE.glob("*.py"), ROOT / "keras_simclr_cli.py"]
    roots = {name.split(".")[0] for path in files for name in imports(path)}
    roots -= {*sys.stdlib_module_names, "keras_simclr", "keras_simclr_cli"}
    origins = importlib.metadata.packages_distributions()
    for root in roots:
        names = {x.lower().replace("_", "-") for x in origins.get(root, [root])}
        assert {x.replace("_", "-") for x in declared} & names, root


def test_files_that_are_no_modules_are_in_the_wheel():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    declared = setup["options.package_data"]["keras_simclr"].split()
    found = [x.name for x in PACKAGE.iterdir() if x.suffix not in (".py", "")]
    assert sorted(declared) == sorted(found)


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.glob("*.py")), ids=lambda p: p.stem
)
def test_private_and_old_interfaces_are_not_used(path):
    text = path.read_text()
    assert not re.search(
        r"keras\.src|tf\.compat|tf\.keras|tensorflow_addons", text
    )
    assert "absl" not in {name.split(".")[0] for name in imports(path)}


@pytest.mark.fault(70)
@pytest.mark.parametrize(
    "path",
    [*sorted(PACKAGE.glob("*.py")), ROOT / "keras_simclr_cli.py"],
    ids=lambda p: p.stem,
)
def test_no_file_can_make_it_run_code(path):
    """No pickle, no `eval`, and Keras's safe mode stays on."""
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & {"pickle", "dill", "cloudpickle", "marshal"}
    text = path.read_text()
    assert not re.search(r"joblib\.(?!cpu_count)", text)
    tree = ast.parse(text)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = {node.func.id for node in calls if isinstance(node.func, ast.Name)}
    assert not called & {"eval", "exec", "compile", "__import__"}
    words = {word.arg for node in calls for word in node.keywords}
    assert not words & {"safe_mode", "allow_pickle"}
    names = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    assert "enable_unsafe_deserialization" not in names


def test_package_says_nothing_on_import():
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import keras_simclr"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""


@pytest.mark.fault(64)
@pytest.mark.parametrize(
    ("name", "value", "cure"),
    [
        ("KERAS_BACKEND", "jax", "KERAS_BACKEND=tensorflow"),
        ("TF_USE_LEGACY_KERAS", "1", "unset TF_USE_LEGACY_KERAS"),
    ],
)
def test_import_names_the_cure_for_another_keras(name, value, cure):
    code = f"import os; os.environ[{name!r}] = {value!r}; import keras_simclr"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "ImportError: keras_simclr needs Keras 3 on TensorFlow"
    )
    assert cure in last


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_show_an_example(name):
    text = inspect.getdoc(getattr(simclr, name))
    assert re.search(r"Example:\n\n( +)?(>>>|```)", text)
    assert len(text.splitlines()[0]) <= 79


def test_help_and_pages_name_all_that_there_is():
    """Where a list cannot be generated: `--help` must not import Keras."""
    depths = ", ".join(map(str, architectures.ARCHITECTURES))
    assert depths.replace(", 200", " or 200") in help_of("depth", "pretrain")
    for name in export.EXPORTS:
        assert re.search(rf"\b{name}\b", help_of("formats", "export"))
    assert help_of("labels", "evaluate", "default") == list(
        map(str, evaluation.LABELS)
    )
    assert help_of("probes", "evaluate", "default") == list(probes.KINDS)
    assert cli._PROBES == evaluation.PROBES
    readme = (ROOT / "README.md").read_text()
    for name in decoding.FORMATS:
        assert name in readme.upper().replace(" ", "")
    table = (ROOT / "CONTRIBUTING.md").read_text()
    for name in LEVELS:
        assert f"`{name}`" in table, f"CONTRIBUTING.md says nothing of {name}."


def help_of(flag, command, attribute="help"):
    values = flags.FlagValues()
    cli.define_flags(command, values)
    return getattr(values[flag], attribute)
