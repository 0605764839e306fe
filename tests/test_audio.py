import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.replicas import mirrored

import keras_simclr as simclr
from keras_simclr import audio
from keras_simclr.random_layers import uniforms

RATE = 2000  # A window has 50 samples, a step 20.
SOUNDS = np.random.default_rng(0).uniform(-1, 1, (16, 240)).astype("float32")
SPECTROGRAMS = np.random.default_rng(1).normal(size=(16, 12, 10))
SPECTROGRAMS = SPECTROGRAMS.astype("float32")
SEED = (3, 5)
LAYERS = {
    "crop": lambda: audio.RandomTimeCrop(100),
    "padding": lambda: audio.RandomTimeCrop(300),
    "gain": lambda: audio.RandomGain(6.0),
    "noise": lambda: audio.RandomNoise((5.0, 20.0)),
    "background": lambda: audio.MixBackground(0.8, (5.0, 20.0)),
    "level": audio.LevelNormalization,
    "log_mel": lambda: audio.LogMel(RATE, 8),
    "shift": lambda: audio.RandomFrequencyShift(2),
    "mask": lambda: audio.RandomTimeFrequencyMask(0.5, 0.4),
}
SPECTRAL = "shift", "mask"


def inputs(name):
    return SPECTROGRAMS if name in SPECTRAL else SOUNDS


def draws(count):
    return uniforms(SEED, (16, count)).numpy().astype("float64")


def tones(count, samples=2000):
    """Sounds of two classes, a low and a high tone, of any loudness."""
    rng = np.random.default_rng(7)
    times = np.arange(samples) / RATE
    labels = np.arange(count) % 2
    pitch = np.where(labels, 600.0, 150.0) * rng.uniform(0.9, 1.1, count)
    sounds = np.sin(2 * np.pi * (pitch[:, None] * times + rng.random()))
    sounds *= rng.uniform(0.05, 0.5, (count, 1))
    sounds += rng.normal(0, 0.01, sounds.shape)
    return sounds.astype("float32"), labels


def decibels(values):
    return 10 * np.log10(np.square(values, dtype="float64").mean(axis=1))


@pytest.mark.parametrize("samples", [100, 240, 300])
@pytest.mark.parametrize("has_sizes", [False, True])
def test_crop_is_a_window_of_the_valid_part(samples, has_sizes):
    lengths = np.random.default_rng(2).integers(1, 241, 16)
    lengths = lengths if has_sizes else np.full(16, 240)
    sounds = SOUNDS * (np.arange(240) < lengths[:, None])
    sizes = lengths[:, None] if has_sizes else None
    layer = audio.RandomTimeCrop(samples)
    views = layer(sounds, seed=SEED, sizes=sizes)
    at_rest = layer(sounds, training=False, sizes=sizes)
    for row, draw in enumerate(draws(1)[:, 0]):
        sound = sounds[row, : lengths[row]]
        room = abs(lengths[row] - samples)
        for view, start in (
            (views[row], int(draw * (room + 1))),
            (at_rest[row], room // 2),
        ):
            expected = np.pad(sound, (start, room - start))
            if lengths[row] > samples:
                expected = sound[start : start + samples]
            np.testing.assert_array_equal(view, expected)


def test_crop_never_sees_what_lies_behind_a_sound():
    sounds = SOUNDS.copy()
    sounds[:, 150:] = np.nan
    sizes = np.full((16, 1), 150)
    for training in (True, False):
        views = audio.RandomTimeCrop(200)(
            sounds, training=training, seed=SEED, sizes=sizes
        )
        assert np.isfinite(views).all()


def test_every_window_is_drawn():
    sounds = np.tile(np.arange(12.0, dtype="float32"), (400, 1))
    starts = audio.RandomTimeCrop(10)(sounds, seed=SEED)[:, 0].numpy()
    counts = np.bincount(starts.astype(int))
    assert len(counts) == 3
    assert counts.min() > 100


def test_sounds_are_equally_loud_whatever_pads_them():
    sounds, _ = tones(8)
    sounds[0] = 0
    padded = np.pad(sounds, ((0, 0), (300, 500)))
    found = audio.LevelNormalization()(padded).numpy()
    level = np.sqrt(np.square(sounds, dtype="float64").mean(axis=1))
    expected = padded[1:] * (0.1 / level[1:, None])
    np.testing.assert_allclose(found[1:], expected, atol=1e-5)
    assert not found[0].any()


def test_gain_is_uniform_in_decibels():
    views = audio.RandomGain(6.0)(SOUNDS, seed=SEED)
    gains = 12 * draws(1) - 6
    np.testing.assert_allclose(views, SOUNDS * 10 ** (gains / 20), rtol=1e-5)


def test_noise_is_as_many_decibels_softer_as_drawn():
    sounds, _ = tones(64)
    layer = audio.RandomNoise((10.0, 20.0))
    noise = layer(sounds, seed=SEED) - sounds
    softer = decibels(sounds) - decibels(noise)
    assert 10 < softer.min() < 12
    assert 18 < softer.max() < 20
    # It is white, and not the sound: each half of the spectrum has half.
    power = np.square(np.abs(np.fft.rfft(noise, axis=1)))
    share = power[:, :500].sum(axis=1) / power.sum(axis=1)
    np.testing.assert_allclose(share, 0.5, atol=0.1)
    assert not layer(np.zeros((2, 9), "float32"), seed=SEED).numpy().any()


def test_background_is_another_sound_of_the_same_eight():
    # Each sound has a frequency of its own, by which it is found again.
    times = np.arange(400)
    bins = 10 + 4 * np.arange(24)
    sounds = np.sin(2 * np.pi * bins[:, None] * times / 400).astype("float32")
    layer = audio.MixBackground(0.75, (5.0, 20.0))
    found = set()
    for number in range(100):
        added = layer(sounds, seed=(0, number)) - sounds
        levels = np.abs(np.fft.rfft(added, axis=1))[:, bins] / 200
        for row, level in enumerate(levels):
            others = np.flatnonzero(level > 1e-3)
            assert len(others) <= 1
            if len(others):
                softer = -20 * np.log10(level[others[0]])
                assert 5 <= softer <= 20
                found.add((row, others[0]))
            else:
                found.add((row, None))
    groups = [range(8), range(8, 16), range(16, 24)]
    expected = {(a, b) for x in groups for a in x for b in x if a != b}
    assert found == expected | {(row, None) for row in range(24)}


def test_a_sound_alone_has_no_background():
    layer = audio.MixBackground(1.0)
    np.testing.assert_array_equal(layer(SOUNDS[0], seed=SEED), SOUNDS[0])


def log_mels(sound, rate, bands):
    """A log-mel spectrogram in float64, by FFT and loops."""
    window, hop = rate * 25 // 1000, rate // 100
    low, high = (1127 * np.log(1 + f / 700) for f in (60, rate / 2))
    mels = low + (high - low) / (bands + 1) * np.arange(bands + 2)
    edges = 700 * (np.exp(mels / 1127) - 1)
    points = int(max(2 * window, np.ceil(rate / np.diff(edges).min())))
    hann = np.sin(np.pi * np.arange(window) / window) ** 2
    rows = []
    for start in range(0, len(sound) - window + 1, hop):
        frame = sound[start : start + window].astype("float64") * hann
        power = np.abs(2 / hann.sum() * np.fft.rfft(frame, points)) ** 2
        frequencies = np.fft.rfftfreq(points, 1 / rate)
        row = []
        for left, middle, right in zip(edges, edges[1:], edges[2:]):  # noqa: B905
            heights = np.interp(frequencies, [left, middle, right], [0, 1, 0])
            row.append(np.log(max(heights @ power, 1e-8)))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize(("rate", "bands"), [(2000, 8), (8000, 64), (22050, 5)])
def test_log_mel_equals_an_independent_one(rate, bands):
    sounds = np.random.default_rng(0).normal(0, 0.1, (2, rate // 5))
    found = audio.LogMel(rate, bands)(sounds.astype("float32"))
    expected = [log_mels(sound, rate, bands) for sound in sounds]
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_log_mel_of_silence_is_its_floor_and_of_a_tone_its_band():
    times = np.arange(400) / RATE
    sounds = np.float32([0 * times, np.sin(2 * np.pi * 500 * times)])
    silence, tone = audio.LogMel(RATE, 8)(sounds).numpy()
    np.testing.assert_allclose(silence, np.log(1e-8), rtol=1e-6)
    edges = np.linspace(1127 * np.log1p(60 / 700), 1127 * np.log1p(10 / 7), 10)
    nearest = np.abs(edges[1:-1] - 1127 * np.log1p(5 / 7)).argmin()
    assert set(tone.argmax(axis=1)) == {nearest}


def test_every_band_hears_something():
    for rate, bands in ((1000, 64), (8000, 128), (44100, 256)):
        layer = audio.LogMel(rate, bands)
        assert (layer._triangles.numpy().max(axis=0) > 0.1).all()


def test_adapted_bands_have_mean_0_and_standard_deviation_1():
    sounds = np.random.default_rng(0).normal(0, 0.1, (150, 400))
    sounds[:, 200:] *= np.linspace(0, 1, 200)
    layer = audio.LogMel(RATE, 8)
    plain = np.concatenate([log_mels(x, RATE, 8) for x in sounds])
    layer.adapt(sounds)
    np.testing.assert_allclose(layer.mean, plain.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(layer.stddev, plain.std(axis=0), rtol=1e-4)
    values = layer(sounds).numpy().reshape(-1, 8)
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(values.std(axis=0), 1, atol=1e-4)
    layer.adapt(np.zeros((2, 400)))  # Again, to what has no deviation.
    np.testing.assert_allclose(layer(np.zeros((1, 400), "float32")), 0)


def test_shift_moves_bands_and_repeats_the_outermost():
    views = audio.RandomFrequencyShift(2)(SPECTROGRAMS, seed=SEED).numpy()
    steps = np.floor(draws(1)[:, 0] * 5).astype(int) - 2
    assert len(set(steps)) == 5
    for view, original, step in zip(views, SPECTROGRAMS, steps, strict=True):
        for band in range(10):
            source = min(max(band - step, 0), 9)
            np.testing.assert_array_equal(view[:, band], original[:, source])


def test_mask_hides_one_stretch_of_each_axis():
    views = audio.RandomTimeFrequencyMask(0.5, 0.4)(SPECTROGRAMS, seed=SEED)
    for row, (wide, at, high, up) in enumerate(draws(4)):
        expected = SPECTROGRAMS[row].copy()
        width, height = int(wide * 7), int(high * 5)
        start, top = int(at * (13 - width)), int(up * (11 - height))
        expected[start : start + width] = 0
        expected[:, top : top + height] = 0
        np.testing.assert_array_equal(views[row], expected)


def test_masks_can_be_all_and_nothing():
    nothing = audio.RandomTimeFrequencyMask(0, 0)(SPECTROGRAMS, seed=SEED)
    np.testing.assert_array_equal(nothing, SPECTROGRAMS)
    shares = [
        np.mean(layer(np.ones((200, 10, 1), "float32"), seed=SEED) == 0)
        for layer in [audio.RandomTimeFrequencyMask(1.0, 0)]
    ]
    np.testing.assert_allclose(shares, 0.5, atol=0.1)


@pytest.mark.parametrize("name", LAYERS)
def test_part_of_a_batch_is_as_in_the_batch(name):
    layer = LAYERS[name]()
    whole = layer(inputs(name), seed=SEED)
    for first in (0, 8):
        part = inputs(name)[first : first + 8]
        found = layer(part, seed=SEED, part=(first, 16))
        np.testing.assert_allclose(found, whole[first : first + 8], atol=1e-5)


@pytest.mark.parametrize("name", [x for x in LAYERS if x != "background"])
def test_a_row_is_as_it_is_alone(name):
    layer = LAYERS[name]()
    others = inputs(name).copy()
    others[:-1] *= 50  # Neighbours change nothing.
    for training in (True, False):
        rows = [
            layer(batch, training=training, seed=SEED, part=part)[-1]
            for batch, part in (
                (inputs(name), None),
                (others, None),
                (inputs(name)[-1:], (15, 16)),
            )
        ]
        for row in rows[1:]:
            np.testing.assert_allclose(row, rows[0], atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_nothing_is_drawn_at_rest(name):
    simclr.testing.assert_at_rest(LAYERS[name](), inputs(name))


def augmentation():
    layers = [
        audio.RandomTimeCrop(1000),
        audio.LevelNormalization(),
        audio.RandomGain(),
        audio.MixBackground(),
        audio.RandomNoise(),
        audio.LogMel(RATE, 16),
        audio.RandomFrequencyShift(1),
        audio.RandomTimeFrequencyMask(),
    ]
    layers[5].adapt(tones(32)[0])
    return layers


def make_model(**kwargs):
    keras.utils.set_random_seed(1)
    model = simclr.SimCLRModel(
        audio.default_encoder((48, 16), 0.25),
        augmentation=augmentation(),
        **kwargs,
    )
    model.compile(keras.optimizers.Adam(1e-3))
    return model


@pytest.fixture(scope="module")
def trained():
    sounds, _ = tones(64)
    model = make_model()
    history = model.fit(sounds, batch_size=32, epochs=6, verbose=0)
    return model, history.history["loss"]


def test_model_of_sounds_learns_what_tones_there_are(trained):
    model, losses = trained
    sounds, labels = tones(64)
    assert model.kind.name == "audio"
    assert losses[-1] < losses[0] - 0.2
    features = model.predict(sounds, verbose=0)
    result = simclr.knn_probe(
        features[:32], labels[:32], features[32:], labels[32:]
    )
    assert result.accuracy > 0.9


def test_sounds_of_any_length_come_padded_with_their_sizes(trained):
    model, _ = trained
    sounds, _ = tones(4)
    padded = np.pad(sounds[:, :800], ((0, 0), (0, 500)))
    sizes = np.full((4, 1), 800, "int32")
    alone = model.predict(sounds[:, :800], verbose=0)
    found = model.predict({"images": padded, "sizes": sizes}, verbose=0)
    np.testing.assert_allclose(found, alone, atol=1e-4)
    one = model.predict(sounds[:1, :800], verbose=0)
    np.testing.assert_allclose(one, alone[:1], atol=1e-4)


def test_loaded_model_has_the_adapted_statistics(trained, tmp_path):
    model, _ = trained
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert abs(loaded.augmentation[5].mean.numpy()).max() > 1
    sounds, _ = tones(8)
    expected = model.predict(sounds, verbose=0)
    found = loaded.predict(sounds, verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_exports_agree_with_the_model(trained, tmp_path):
    model, _ = trained
    sounds, _ = tones(8)
    simclr.export_encoder(model, tmp_path / "encoder")
    expected = model.predict(sounds, verbose=0)
    module = tf.saved_model.load(tmp_path / "encoder/saved_model")
    np.testing.assert_allclose(module(sounds), expected, atol=1e-4)
    # The plain one takes what the crop would leave.
    plain = keras.saving.load_model(tmp_path / "encoder/encoder.keras")
    found = plain.predict(sounds[:, 500:1500], verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def trained_sgd(replicas=1, **options):
    """Losses and weights after two steps, without batch norm.

    Micro-batches have statistics of their own.
    """
    sounds, _ = tones(32, samples=1200)
    dataset = {"images": sounds, "sizes": np.full((32, 1), 1100, "int32")}
    keras.utils.set_random_seed(1)
    with mirrored(replicas).scope():
        encoder = keras.Sequential(
            [
                keras.Input((48, 16)),
                keras.layers.Conv1D(8, 3),
                keras.layers.GlobalAveragePooling1D(),
            ]
        )
        model = simclr.SimCLRModel(
            encoder,
            keras.layers.Dense(8, use_bias=False),
            augmentation=augmentation(),
            **options,
        )
        is_reference = replicas == 1 and not options
        model.compile(keras.optimizers.SGD(1.0), run_eagerly=is_reference)
    history = model.fit(dataset, batch_size=16, shuffle=False, verbose=0)
    return [history.history["loss"], *model.get_weights()]


def test_replicas_and_micro_batches_train_as_one_device():
    expected = trained_sgd()
    for options in ({"replicas": 2}, {"micro_batch_size": 8}):
        for one, other in zip(trained_sgd(**options), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_layers_refuse_what_they_cannot_take():
    for call, message in (
        (lambda: audio.LogMel(500), "`rate` must be an integer of at least"),
        (lambda: audio.RandomGain(0), "`decibels` must be a positive number"),
        (
            lambda: audio.RandomNoise((20, 10)),
            "`decibels` must be a pair (low, high) with 0 < low <= high",
        ),
        (
            lambda: audio.RandomTimeFrequencyMask(1.5),
            "`time` must be from 0 to 1. Received: time=1.5",
        ),
        (
            lambda: audio.LogMel(RATE)(np.zeros((2, 49), "float32")),
            "`LogMel` needs sounds of at least 50 samples, a window of 25 ms",
        ),
        (
            lambda: audio.RandomGain()(np.zeros((2, 9, 1), "float32")),
            "Sounds must have the shape (batch, samples) or (samples,). Recei",
        ),
        (
            lambda: audio.RandomGain()(np.zeros((2, 9), "int16")),
            "Sounds must be floats. Received: dtype int16.",
        ),
        (
            lambda: audio.LogMel(RATE).adapt(np.zeros(100)),
            "`sounds` must be an array of shape (N, samples). Received: ",
        ),
        (
            lambda: audio.LogMel(RATE).adapt(np.full((3, 100), np.nan)),
            "`sounds` must be finite. Received: NaN or infinity in one of the",
        ),
        (
            lambda: audio.default_encoder((48, 16), 0),
            "`width_multiplier` must be a positive number",
        ),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert message in str(error.value)


def test_model_refuses_sounds_that_are_none(trained):
    model, _ = trained
    for sounds, message in (
        (np.zeros((4, 1000, 1), "float32"), "Sounds must come in batches of 2"),
        (np.full((4, 1000), np.nan, "float32"), "must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            model.predict(sounds, verbose=0)


def test_views_need_a_window_of_the_spectrogram():
    with pytest.raises(ValueError, match="at least 200 samples, which are 25"):
        audio.default_augmentation(199, 8000)
    assert len(audio.default_augmentation(200, 8000)) == 8
