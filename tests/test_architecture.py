import ast
import inspect
import pathlib
import re
import subprocess
import sys

import pytest

import keras_simclr as simclr

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "keras_simclr"
MODULES = sorted(path.stem for path in PACKAGE.glob("[!_]*.py"))

# A module may import those of lower levels only.
LEVELS = {
    "_checks": 0,
    "_files": 0,
    "cards": 0,
    "devices": 1,
    "duplicates": 1,
    "decoding": 1,
    "optimizers": 1,
    "replicas": 1,
    "augmentations": 2,
    "similarities": 2,
    "networks": 2,
    "micro_batches": 2,
    "scanning": 2,
    "losses": 3,
    "elements": 3,
    "copies": 3,
    "folders": 3,
    "fit_data": 4,
    "sources": 5,
    "model": 5,
    "collapse": 1,
    "sampling": 1,
    "features": 6,
    "probes": 6,
    "recipe": 6,
    "export": 6,
    "embedding": 7,
    "callbacks": 7,
    "finetuning": 7,
    "testing": 7,
    "runs": 8,
    "evaluation": 8,
    "planning": 8,
    "classification": 9,
    "demo": 9,
    "official": 10,
}
HEAVY = {
    "PIL",
    "imagehash",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "pyarrow",
    "scipy",
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


@pytest.mark.parametrize("module", [*MODULES, "_checks"])
def test_modules_import_in_one_direction(module):
    own = {
        name.split(".")[1]
        for name in imports(PACKAGE / f"{module}.py")
        if name.startswith("keras_simclr.")
    }
    assert all(LEVELS[name] < LEVELS[module] for name in own), own


@pytest.mark.parametrize("module", MODULES)
def test_heavy_packages_are_imported_where_they_are_used(module):
    roots = {
        name.split(".")[0]
        for name in imports(PACKAGE / f"{module}.py", top_level=True)
    }
    assert not roots & HEAVY


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.glob("*.py")), ids=lambda p: p.stem
)
def test_private_and_old_interfaces_are_not_used(path):
    text = path.read_text()
    assert not re.search(
        r"keras\.src|tf\.compat|tf\.keras|tensorflow_addons", text
    )
    assert "absl" not in {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize(
    "path",
    [*sorted(PACKAGE.glob("*.py")), ROOT / "keras_simclr_cli.py"],
    ids=lambda p: p.stem,
)
def test_no_file_can_make_it_run_code(path):
    """No pickle, no `eval`, and Keras's safe mode stays on."""
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & {"pickle", "dill", "cloudpickle", "joblib", "marshal"}
    tree = ast.parse(path.read_text())
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
