import io
import json
import sys
import types
import urllib.error
import urllib.request
import zipfile

import h5py
import keras
import numpy as np
import pytest
from helpers import standins
from helpers.replicas import mirrored

import keras_simclr as simclr
from keras_simclr import copies, pretrained, runs, trials
from keras_simclr.export import export_encoder
from keras_simclr.pretrained import open_encoder

pytestmark = pytest.mark.usefixtures("eagerly")
PIXELS = np.random.default_rng(0).random((2, 8, 8, 3), "float32")


@pytest.fixture(autouse=True)
def _float32():
    yield
    keras.config.set_dtype_policy("float32")


def small(*layers, shape=(8, 8, 3), name="small"):
    network = standins.encoder(*layers, shape=shape)
    network.name = name
    return network


def assert_same(encoder, other, images=PIXELS):
    np.testing.assert_allclose(
        encoder(images, training=False),
        other(images, training=False),
        rtol=1e-5,
        atol=1e-6,
    )


def message(name, **kwargs):
    with pytest.raises(ValueError, match=r"Received: ") as caught:
        open_encoder(name, **kwargs)
    return str(caught.value)


def test_a_run_a_file_and_an_export_hold_one_encoder(tmp_path):
    """Above 32 pixels, where an export cuts out the centre of images."""
    shape = (40, 40, 3)
    model = simclr.SimCLRModel(small(keras.layers.ReLU(), shape=shape))
    (tmp_path / "run").mkdir()
    runs.save_model(model, tmp_path / "run")
    export_encoder(model, tmp_path / "export", formats=["keras"])
    model.encoder.save(tmp_path / "encoder.keras")
    images = np.random.default_rng(0).random((2, *shape), "float32")
    for place in ("run", "run/model.keras", "export", "encoder.keras"):
        encoder = open_encoder(tmp_path / place)
        assert isinstance(encoder, keras.Model)
        assert encoder.input_shape == (None, *shape)
        assert_same(encoder, model.encoder, images)


def test_networks_without_size_of_their_own_get_another(tmp_path):
    network = small(keras.layers.BatchNormalization())
    network.layers[1].moving_mean.assign(np.arange(6.0))
    network.save(tmp_path / "any.keras")
    encoder = open_encoder(tmp_path / "any.keras", input_shape=(12, 10, 3))
    assert encoder.input_shape == (None, 12, 10, 3)
    any_size = small(keras.layers.BatchNormalization(), shape=(None, None, 3))
    any_size.set_weights(network.get_weights())
    assert_same(encoder, any_size, np.ones((2, 12, 10, 3), "float32"))
    any_size.save(tmp_path / "any.keras")
    encoder = open_encoder(tmp_path / "any.keras", input_shape=(8, 8, 3))
    assert_same(encoder, network)
    for beside in (network, simclr.SimCLRModel(network)):
        encoder = open_encoder(tmp_path / "any.keras", beside=beside)
        assert_same(encoder, network)
    text = message(tmp_path / "any.keras", beside=any_size)
    assert text.startswith(
        f"{str(tmp_path / 'any.keras')!r} takes images of any size"
    )
    assert text.endswith('input_shape=(224, 224, 3)).save("encoder.keras")')


def test_what_depends_on_the_size_of_images_keeps_it(tmp_path):
    path = tmp_path / "flat.keras"
    flat = [keras.Input((8, 8, 3)), keras.layers.Flatten()]
    for network in (flat, [*flat, keras.layers.Dense(4)]):
        keras.Sequential(network).save(path)
        assert open_encoder(path).input_shape == (None, 8, 8, 3)
        text = message(path, input_shape=(9, 9, 3))
        assert text.endswith(
            "can only be made for images of the size that it was trained on. "
            "Received: images of 9 x 9 pixels. Leave out the size"
        )


def test_an_encoder_computes_in_the_policy_that_is_set(tmp_path):
    path = tmp_path / "encoder.keras"
    network = simclr.ResNet(
        10, width_multiplier=0.1, stem="cifar", input_shape=(8, 8, 3)
    )
    network.save(path)
    keras.config.set_dtype_policy("mixed_bfloat16")
    encoder = open_encoder(path)
    layers = copies.nested_layers(encoder)
    assert {x.dtype_policy.name for x in layers} == {"mixed_bfloat16"}
    assert {type(x) for x in layers} == {
        type(x) for x in copies.nested_layers(network)
    }
    for weight, other in zip(encoder.weights, network.weights, strict=True):
        np.testing.assert_array_equal(weight, other)


def test_a_copy_without_chance_draws_nothing():
    drops = keras.Sequential(
        [keras.layers.Dropout(0.5), keras.layers.GaussianNoise(0.3)]
    )
    network = small(drops, keras.layers.SpatialDropout2D(0.5))
    for is_random in (True, False):
        copy = copies.copy_for(network, (8, 8, 3), is_random=is_random)
        images = trials.examples((8, 8, 3))
        drew = trials.is_random(lambda x, f=copy: f(x, training=True), images)
        assert drew is is_random
        assert_same(copy, network)


def dense(name="top", activation=None):
    return keras.layers.Dense(5, activation, name=name)


def alone(width, *layers):
    return keras.Sequential([keras.Input((width,)), *layers], name="probe")


@pytest.mark.parametrize("is_nested", [False, True])
@pytest.mark.parametrize("has_front", [False, True])
@pytest.mark.parametrize(
    ("top", "words"),
    [
        ([dense(activation="softmax")], "'top', softmax of 5"),
        ([keras.layers.Dropout(0.1), dense("logits")], "'logits', logits of 5"),
        ([dense(), keras.layers.Softmax(name="p")], "'p', softmax of 5"),
        ([dense(), alone(5, keras.layers.Softmax(name="p"))], "'p', softmax"),
        (
            [alone(6, dense(), keras.layers.Softmax(name="p"))],
            "'p', softmax of 5",
        ),
    ],
)
def test_a_classifier_is_refused_with_the_layer_to_take(
    top, words, has_front, is_nested, tmp_path
):
    front = [keras.layers.Rescaling(2.0)] * has_front
    network = [keras.Input((8, 8, 3)), *front, small(), *top]
    network = keras.Sequential(network)
    if is_nested:  # As with a view in front.
        inputs = keras.Input((8, 8, 3))
        outputs = network(keras.layers.Cropping2D(0)(inputs))
        network = keras.Model(inputs, outputs)
    path = tmp_path / "classifier.keras"  # As `finetune` leaves it.
    network.save(path)
    text = message(tmp_path)
    assert f"whose top is {words}" in text
    cure = text.partition("Take ")[2].partition(": ")[2]
    if not cure:
        assert has_front
        assert isinstance(top[0], keras.Model)
        return
    cure = cure.replace("...", repr(str(path)))
    cure = cure.replace("encoder.keras", str(tmp_path / "cured.keras"))
    exec(cure, {"keras": keras})
    assert open_encoder(tmp_path / "cured.keras").output_shape == (None, 6)


def test_the_head_is_kept_of_what_has_one(tmp_path):
    model = simclr.SimCLRModel(small(), simclr.ProjectionHead(1, units=3))
    model.save(tmp_path / "model.keras")
    model.encoder.save(tmp_path / "mine.keras")
    head = pretrained.open_head(tmp_path)
    for weight, other in zip(
        head.weights, model.projection_head.weights, strict=True
    ):
        np.testing.assert_array_equal(weight, other)
    for name in (tmp_path / "mine.keras", "keras_applications:VGG16"):
        with pytest.raises(ValueError, match=r"none. Leave out --keep_head$"):
            pretrained.open_head(name)


def test_images_are_of_the_starts_size_if_it_has_one(tmp_path):
    for shape, side in (
        ((8, 8, 3), 8),
        ((None, None, 3), None),
        ((8, 9, 3), None),
    ):
        small(shape=shape).save(tmp_path / "encoder.keras")
        assert pretrained.own_side(tmp_path) == side
    assert pretrained.own_side("keras_applications:VGG16") is None


class Noisy(keras.layers.Layer):
    """Draws in training, by a rate that its config does not have."""

    def call(self, images, training=False):
        return keras.random.dropout(images, 0.5) if training else images


def test_encoders_that_draw_train_on_one_device_only(tmp_path):
    encoder = small(keras.layers.Dropout(0.5), name="mine")
    with pytest.warns(UserWarning, match=r"--without_dropout turns it off"):
        pretrained.check_chance(encoder, is_cached=False)
    with pytest.raises(ValueError, match=r"'mine' in micro-batches\. Turn"):
        pretrained.check_chance(encoder, is_cached=True)
    with (
        mirrored(2).scope(),
        pytest.raises(ValueError, match=r"'mine' on 2 devices\. Turn it"),
    ):
        pretrained.check_chance(encoder, is_cached=False)
    encoder.save(tmp_path / "drops.keras")
    quiet = open_encoder(tmp_path / "drops.keras", is_random=False)
    pretrained.check_chance(quiet, is_cached=True)
    with pytest.raises(ValueError, match="'mine', which still draws random"):
        pretrained._without_chance(small(Noisy(), name="mine"))


def test_names_of_nothing_are_refused(tmp_path):
    (tmp_path / "notes.keras").write_text("mine")
    assert message(tmp_path / "notes.keras").startswith(
        "An encoder must be a file that Keras can load. Received: "
    )
    with pytest.raises(FileNotFoundError, match=r"^An encoder must be a run"):
        open_encoder(tmp_path)
    assert "Did you mean 'VGG16'?" in message("keras_applications:VGG-16")
    shape = (32, 32, 1)
    text = message("keras_applications:VGG16", input_shape=shape)
    assert text.endswith("Received: 'VGG16' for images with 1")
    small().save(tmp_path / "rgb.keras")
    text = message(tmp_path / "rgb.keras", input_shape=(8, 8, 1))
    assert text.endswith("Take --channels=3, or another encoder")


def with_layer(module, name, **config):
    """Adds what is no layer to a network."""

    def change(parts):
        network = json.loads(parts["config.json"])
        layer = {"module": module, "class_name": name, "config": config}
        network["config"]["layers"].append({**layer, "registered_name": None})
        parts["config.json"] = json.dumps(network)

    return change


def with_weights(put):
    """Puts something else in place of the first weight."""

    def change(parts):
        file = io.BytesIO(parts["model.weights.h5"])
        with h5py.File(file, "r+") as weights:
            names = []
            weights.visititems(
                lambda name, item: (
                    names.append((name, item))
                    if isinstance(item, h5py.Dataset)
                    else None
                )
            )
            name = names[0][0]
            del weights[name]
            put(weights, name)
        parts["model.weights.h5"] = file.getvalue()

    return change


def linked(weights, name):
    weights[name] = h5py.ExternalLink("/etc/passwd", "/x")


def of_64_gib(weights, name):
    weights.create_dataset(name, (2**34,), "f4", chunks=(1024,))


HOSTILE = {
    "lambda": None,
    "system": with_layer("os", "system", command="touch ran"),
    "download": with_layer("keras.utils", "get_file", origin="http://a.b/c"),
    "program": with_layer("keras.layers", "TFSMLayer", filepath="/saved"),
    "unknown": with_layer("mine", "Layer"),
    "link": with_weights(linked),
    "size": with_weights(of_64_gib),
}


@pytest.mark.fault(70, 71, 72)
@pytest.mark.parametrize("kind", HOSTILE)
def test_files_of_strangers_run_and_reach_nothing(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layers = [keras.Input((8, 8, 3)), keras.layers.Flatten()]
    if kind == "lambda":
        layers.append(keras.layers.Lambda(lambda x: 2 * x))
    keras.Sequential([*layers, keras.layers.Dense(3)]).save("right.keras")
    with zipfile.ZipFile("right.keras") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    if HOSTILE[kind]:
        HOSTILE[kind](parts)
    with zipfile.ZipFile("wrong.keras", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    text = message("wrong.keras")
    assert text.startswith("An encoder must be a file that Keras can load.")
    assert sorted(x.name for x in tmp_path.iterdir()) == [
        "right.keras",
        "wrong.keras",
    ]


def test_networks_of_keras_bring_their_weights_and_preprocessing(
    tmp_path, monkeypatch
):
    # Deep networks of random weights say little, which float32 may round away.
    keras.config.set_dtype_policy("float64")
    keras.utils.set_random_seed(0)
    path, shape = tmp_path / "my.weights.h5", (32, 32, 3)
    network = keras.applications.MobileNet(
        include_top=False, weights=None, input_shape=shape, pooling="avg"
    )
    network.save_weights(path)
    monkeypatch.setattr(pretrained, "_WEIGHTS", path)
    encoder = open_encoder("keras_applications:MobileNet", input_shape=shape)
    assert encoder.input_shape == (None, *shape)
    images = np.random.default_rng(0).random((2, *shape))
    wanted = keras.applications.mobilenet.preprocess_input(255 * images)
    expected = network(wanted, training=False)
    np.testing.assert_allclose(
        encoder(images, training=False), expected, rtol=1e-2
    )
    text = message("keras_applications:MobileNet", input_shape=(8, 8, 3))
    assert text.startswith("MobileNet must be one that Keras can make.")


def test_pixels_come_as_each_network_of_keras_wants_them():
    applications = keras.applications
    homes = {
        "ResNet50": applications.resnet,
        "ResNet50V2": applications.resnet_v2,
        "DenseNet121": applications.densenet,
        "MobileNetV3Large": applications.mobilenet_v3,
        "EfficientNetV2B0": applications.efficientnet_v2,
        "VGG19": applications.vgg19,
    }
    assert homes.keys() <= {*pretrained._applications()}
    assert pretrained._SIDES.keys() <= {*pretrained._applications()}
    images = keras.Input((8, 8, 3))
    for name, home in homes.items():
        affine = pretrained._affine(pretrained._home_of(name).preprocess_input)
        front = keras.Model(images, pretrained._prepared(images, *affine))
        expected = home.preprocess_input(255 * PIXELS)
        np.testing.assert_allclose(front(PIXELS), expected, atol=1e-4)


@pytest.mark.fault(64)
def test_without_a_network_the_place_of_the_file_is_told(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    get_file = keras.utils.get_file
    weights = "mobilenet_1_0_224_tf_no_top.h5"

    def fetch(**kwargs):
        return get_file(weights, f"https://a.b/{weights}", cache_dir=tmp_path)

    with pytest.raises(ConnectionError) as caught:
        pretrained._fetched(fetch, (32, 32, 3))
    assert str(caught.value) == (
        "The weights of fetch could not be downloaded (no route). Fetch "
        f"https://a.b/{weights} on a machine with a network, and put it into "
        f"{str(tmp_path / 'models')!r}"
    )


class Tokens(keras.layers.Layer):
    """Patches of an image, after a token for the whole of it if asked for."""

    def __init__(self, has_class_token, **kwargs):
        super().__init__(**kwargs)
        if has_class_token:
            self.cls_token = self.add_weight(shape=(1, 1, 3))
            self.cls_token.assign([[[1.0, 2.0, 3.0]]])

    def call(self, images):
        tokens = keras.layers.Reshape((-1, 3))(images)
        if not hasattr(self, "cls_token"):
            return tokens
        token = keras.ops.ones_like(tokens[:, :1]) * self.cls_token
        return keras.ops.concatenate([token, tokens], axis=1)


def backbone(outputs, input_name):
    images = keras.Input((8, 8, 3), name=input_name)
    inputs = images if input_name is None else {input_name: images}
    return keras.Model(inputs, outputs(images), name="backbone")


@pytest.fixture
def preset(monkeypatch):
    """What stands in for KerasHub, with one preset."""

    def use(outputs, input_name=None, converter=True):
        def open_backbone(name, **kwargs):
            if name != "mine":
                raise ValueError("Unknown preset.\n\nMuch more.")
            return backbone(outputs, input_name)

        def open_converter(name):
            return types.SimpleNamespace(
                scale=[1 / 255, 2 / 255, 3 / 255], offset=[0.0, 0.5, 1.0]
            )

        hub = types.ModuleType("keras_hub")
        hub.models, hub.layers = (
            types.SimpleNamespace(),
            types.SimpleNamespace(),
        )
        hub.models.Backbone = types.SimpleNamespace(from_preset=open_backbone)
        hub.layers.ImageConverter = types.SimpleNamespace(
            from_preset=open_converter
        )
        monkeypatch.setitem(sys.modules, "keras_hub", hub)

    return use


PREPARED = PIXELS * [1.0, 2.0, 3.0] + [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("outputs", "input_name", "expected"),
    [
        (lambda x: x, None, PREPARED.mean((1, 2))),
        (
            lambda x: {"P1": x, "P2": keras.layers.MaxPooling2D(8)(x)},
            "images",
            PREPARED.max((1, 2)),
        ),
        (Tokens(False), "pixel_values", PREPARED.mean((1, 2))),
        (Tokens(True), "images", np.tile([[1.0, 2.0, 3.0]], (2, 1))),
    ],
    ids=["map", "pyramid", "tokens", "class token"],
)
def test_backbones_of_keras_hub_give_one_vector(
    outputs, input_name, expected, preset
):
    preset(outputs, input_name)
    encoder = open_encoder("keras_hub:mine")
    assert encoder.input_shape == (None, 8, 8, 3)
    np.testing.assert_allclose(encoder(PIXELS), expected, rtol=1e-5)


def test_presets_that_are_none_are_refused_in_a_sentence(preset, monkeypatch):
    preset(lambda x: x)
    assert message("keras_hub:other") == (
        "An encoder of KerasHub must be the preset of an image backbone that "
        "can be loaded. Received: 'other' (Unknown preset.). Check its name, "
        "or give the directory of a preset"
    )
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'keras_simclr\[keras"):
        open_encoder("keras_hub:mine")


def test_a_preset_of_keras_hub_itself(tmp_path):
    hub = pytest.importorskip("keras_hub")
    vit = hub.models.ViTBackbone(
        image_shape=(8, 8, 3),
        patch_size=4,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=8,
        dropout_rate=0.1,
    )
    vit.save_to_preset(tmp_path)
    text = message(f"keras_hub:{tmp_path}")
    assert text.endswith("Save its keras_hub.layers.ImageConverter there, too")
    converter = hub.layers.ViTImageConverter(
        image_size=(8, 8), scale=[0.1, 0.2, 0.3], offset=[-1.0, 0.0, 1.0]
    )
    converter.save_to_preset(tmp_path)
    encoder = open_encoder(f"keras_hub:{tmp_path}")
    expected = vit(converter(255 * PIXELS), training=False)[:, 0]
    np.testing.assert_allclose(
        encoder(PIXELS, training=False), expected, rtol=1e-4, atol=1e-5
    )
    encoder.save(tmp_path / "encoder.keras")
    assert_same(open_encoder(tmp_path / "encoder.keras"), encoder)
    text = message(f"keras_hub:{tmp_path}", input_shape=(16, 16, 3))
    assert text.endswith("images of 16 x 16 pixels. Leave out the size")
