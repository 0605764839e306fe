import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import oracles
from helpers.replicas import mirrored

import keras_simclr as simclr
from keras_simclr import optimizers


def train(optimizer, weight, gradients):
    """The variable after every step."""
    variable = keras.Variable(weight, name="weight")
    run = []
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient)], [variable])
        run.append(variable.numpy())
    return run


def random_steps(shape=(4, 3), steps=4):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(steps + 1, *shape)).astype("float32")
    return values[0], values[1:]


def small_model(optimizer):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)]
    )
    model.compile(optimizer, loss="mse")
    return model


def small_data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(8, 4)), rng.normal(size=(8, 1))


# Goldens: LARSOptimizer of google-research/simclr@383d414,
# tf2/lars_optimizer.py: learning rate 0.5, momentum 0.9, weight decay 0.01.
GOLDEN_WEIGHT = np.array([[1.0, -2.0], [0.5, 0.25]], "float32")
GOLDEN_GRADIENTS = [
    np.array([[0.1, 0.2], [-0.3, 0.4]], "float32") * step for step in (1, 2, 3)
]
GOLDEN_CLASSIC = [
    [0.9997660, -2.0003829, 0.5006275, 0.2491438],
    [0.9993332, -2.0011296, 0.5018218, 0.2475242],
    [0.9987254, -2.0022101, 0.5035270, 0.2452195],
]
GOLDEN_NESTEROV = {
    0: [0.9995554, -2.0007274, 0.5011923, 0.2483733],
    2: [0.9981781, -2.0031826, 0.5050622, 0.2431448],
}
GOLDEN_EXCLUDED = [
    [0.95, -2.1, 0.65, 0.05],
    [0.805, -2.39, 1.085, -0.53],
    [0.5245, -2.951, 1.9265, -1.652],
]


def golden_optimizer(nesterov=False, **kwargs):
    inner = keras.optimizers.SGD(0.5, momentum=0.9, nesterov=nesterov)
    return simclr.LARS(inner, weight_decay=0.01, **kwargs)


def test_classic_momentum_equals_the_official_lars():
    run = train(golden_optimizer(), GOLDEN_WEIGHT, GOLDEN_GRADIENTS)
    for weight, official in zip(run, GOLDEN_CLASSIC, strict=True):
        np.testing.assert_allclose(weight.ravel(), official, rtol=3e-7)


def test_nesterov_momentum_equals_the_official_lars():
    run = train(golden_optimizer(True), GOLDEN_WEIGHT, GOLDEN_GRADIENTS)
    for step, official in GOLDEN_NESTEROV.items():
        np.testing.assert_allclose(run[step].ravel(), official, rtol=3e-7)


@pytest.mark.fault(24)
def test_vector_follows_plain_momentum_without_decay():
    gradients = [gradient.ravel() for gradient in GOLDEN_GRADIENTS]
    run = train(golden_optimizer(), GOLDEN_WEIGHT.ravel(), gradients)
    np.testing.assert_allclose(run, GOLDEN_EXCLUDED, rtol=1e-6)


@pytest.mark.fault(24)
@pytest.mark.parametrize("exclude", ["weight", ["bias", "^weight$"]])
def test_excluded_kernel_follows_plain_momentum(exclude):
    optimizer = golden_optimizer(exclude=exclude)
    run = train(optimizer, GOLDEN_WEIGHT, GOLDEN_GRADIENTS)
    run = np.reshape(run, (3, 4))
    np.testing.assert_allclose(run, GOLDEN_EXCLUDED, rtol=1e-6)


def test_exclude_is_searched_in_the_path_of_the_variable():
    inner = keras.optimizers.SGD(1.0)
    optimizer = simclr.LARS(inner, weight_decay=0.0, exclude="second/kernel")
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, use_bias=False, name="first"),
            keras.layers.Dense(2, use_bias=False, name="second"),
        ]
    )
    before = [kernel.numpy() for kernel in model.trainable_variables]
    gradients = [tf.ones(kernel.shape) for kernel in model.trainable_variables]
    optimizer.apply(gradients, model.trainable_variables)
    first, second = model.trainable_variables
    np.testing.assert_allclose(second, before[1] - 1.0, atol=1e-6)
    length = np.linalg.norm(first.numpy() - before[0])
    np.testing.assert_allclose(
        length, 0.001 * np.linalg.norm(before[0]), rtol=1e-3
    )


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_equal_the_reference_loop(momentum, nesterov, weight_decay):
    weight, gradients = random_steps()
    inner = keras.optimizers.SGD(0.3, momentum=momentum, nesterov=nesterov)
    optimizer = simclr.LARS(
        inner, weight_decay=weight_decay, trust_coefficient=0.1
    )
    expected = oracles.lars(
        weight,
        gradients,
        rate=0.3,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        trust_coefficient=0.1,
    )
    run = train(optimizer, weight, gradients)
    np.testing.assert_allclose(run, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.fault(24)
def test_zero_weight_takes_the_plain_step():
    _, gradients = random_steps(steps=1)
    optimizer = simclr.LARS(keras.optimizers.SGD(0.5))
    (weight,) = train(optimizer, np.zeros((4, 3), "float32"), gradients)
    np.testing.assert_allclose(weight, -0.5 * gradients[0], rtol=1e-6)


@pytest.mark.fault(24)
def test_zero_gradient_leaves_the_weight():
    weight, gradients = random_steps(steps=1)
    optimizer = simclr.LARS(keras.optimizers.SGD(0.5), weight_decay=0.0)
    (after,) = train(optimizer, weight, 0.0 * gradients)
    np.testing.assert_array_equal(after, weight)


@pytest.mark.fault(24)
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_length_of_the_gradient_does_not_matter_without_decay(scale):
    weight, gradients = random_steps()
    runs = [
        train(
            simclr.LARS(
                keras.optimizers.SGD(0.5, momentum=0.9), weight_decay=0.0
            ),
            weight,
            factor * gradients,
        )
        for factor in (1.0, np.float32(scale))
    ]
    np.testing.assert_allclose(*runs, rtol=1e-6)


@functools.cache
def traced_step(jit_compile):
    """A variable, and what applies a gradient to it: traced once for all."""
    optimizer = simclr.LARS(keras.optimizers.SGD(1.0), weight_decay=0.0)
    variable = keras.Variable(random_steps(steps=1)[0])
    optimizer.build([variable])
    return variable, tf.function(
        lambda gradient: optimizer.apply([gradient], [variable]),
        jit_compile=jit_compile,
    )


@pytest.mark.fault(24)
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("weight_scale", [1e-20, 1.0, 1e10])
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e19, 1e30, 1e37])
def test_steps_are_right_at_extremes(weight_scale, scale, jit_compile):
    weight, gradients = random_steps(steps=1)
    weight, gradients = weight_scale * weight, scale * gradients
    variable, apply = traced_step(jit_compile)
    variable.assign(weight)
    apply(tf.constant(gradients[0]))
    lengths = [
        np.linalg.norm(np.asarray(x, "float64")) for x in (weight, gradients)
    ]
    expected = weight - 0.001 * gradients[0] * (lengths[0] / lengths[1])
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-6)


def test_norms_of_float16_do_not_overflow():
    kernel = keras.Variable(np.full((4, 4), 300.0), dtype="float16")
    optimizer = simclr.LARS(
        keras.optimizers.SGD(1.0), weight_decay=0.0, trust_coefficient=0.1
    )
    optimizer.apply([tf.fill((4, 4), tf.constant(500.0, "float16"))], [kernel])
    np.testing.assert_allclose(kernel.numpy(), 270.0)


@pytest.mark.fault(25)
def test_weight_decay_is_applied_once():
    weight, gradients = random_steps(steps=1)
    inner = keras.optimizers.SGD(1.0)
    optimizer = simclr.LARS(inner, weight_decay=0.5, trust_coefficient=1.0)
    (after,) = train(optimizer, weight, 0.0 * gradients)
    # Decay alone has the weight's direction, and its length by the ratio.
    np.testing.assert_allclose(after, np.zeros_like(weight), atol=1e-6)
    assert optimizer.weight_decay is None


@pytest.mark.parametrize("jit_compile", [False, True])
def test_steps_are_the_same_eagerly_in_a_graph_and_under_xla(jit_compile):
    weight, gradients = random_steps()
    optimizer = golden_optimizer()
    variable = keras.Variable(weight)
    optimizer.build([variable])
    step = tf.function(
        lambda gradient: optimizer.apply([gradient], [variable]),
        jit_compile=jit_compile,
    )
    for gradient in gradients:
        step(tf.constant(gradient))
    eager = train(golden_optimizer(), weight, gradients)
    np.testing.assert_allclose(variable, eager[-1], rtol=1e-6)
    assert int(optimizer.iterations) == len(gradients)


def test_schedule_advances_with_the_iterations():
    weight, gradients = random_steps(steps=3)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [0, 1], [0.5, 0.25, 0.125]
    )
    optimizer = simclr.LARS(keras.optimizers.SGD(schedule), exclude=".")
    rates = []
    for gradient in gradients:
        rates.append(float(optimizer.learning_rate))
        (after,) = train(optimizer, weight, [gradient])
        np.testing.assert_allclose(
            after, weight - rates[-1] * gradient, rtol=1e-5, atol=1e-6
        )
        optimizer.built = False
    assert rates == [0.5, 0.25, 0.125]


def test_learning_rate_iterations_and_variables_are_the_inner_ones():
    optimizer = golden_optimizer()
    train(optimizer, GOLDEN_WEIGHT, GOLDEN_GRADIENTS)
    inner = optimizer.optimizer
    assert optimizer.iterations is inner.iterations
    assert int(optimizer.iterations) == 3
    assert optimizer.variables == inner.variables
    assert len(optimizer.variables) == 3  # Iterations, rate and momentum.


def test_learning_rate_can_be_set():
    optimizer = golden_optimizer()
    optimizer.learning_rate = 0.25
    assert float(optimizer.learning_rate) == 0.25
    assert float(optimizer.optimizer.learning_rate) == 0.25


def test_config_comes_back_with_its_schedule():
    schedule = simclr.warmup_cosine(0.3, 100, warmup_steps=10)
    optimizer = simclr.LARS(
        keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True),
        weight_decay=0.25,
        trust_coefficient=0.5,
        exclude=["head", "gate"],
        name="mine",
    )
    config = json.dumps(keras.saving.serialize_keras_object(optimizer))
    copy = keras.saving.deserialize_keras_object(json.loads(config))
    assert json.dumps(keras.saving.serialize_keras_object(copy)) == config
    assert copy.coupled_weight_decay == 0.25
    assert copy.trust_coefficient == 0.5
    assert copy.exclude == ("head", "gate")
    assert copy.name == "mine"
    assert copy.optimizer.nesterov


def test_saved_model_goes_on_with_momentum_and_iterations(tmp_path):
    x, y = small_data()
    schedule = simclr.warmup_cosine(1.0, 50, warmup_steps=5)
    model = small_model(
        simclr.LARS(keras.optimizers.SGD(schedule, momentum=0.9))
    )
    model.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert int(copy.optimizer.iterations) == 4
    for a, b in zip(
        model.optimizer.variables, copy.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(a, b)
    for each in (model, copy):
        each.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    for a, b in zip(model.weights, copy.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_mixed_float16_trains_through_loss_scaling():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = small_model(
            simclr.LARS(keras.optimizers.SGD(1.0), trust_coefficient=0.1)
        )
    finally:
        keras.config.set_dtype_policy("float32")
    before = model.get_weights()
    history = model.fit(*small_data(), epochs=2, verbose=0)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert isinstance(model.optimizer.inner_optimizer, simclr.LARS)
    assert np.isfinite(history.history["loss"]).all()
    assert int(model.optimizer.inner_optimizer.iterations) > 0
    assert all(
        (a != b).any() for a, b in zip(before, model.get_weights(), strict=True)
    )


def test_learning_rate_callbacks_reach_the_inner_optimizer():
    model = small_model(simclr.LARS(keras.optimizers.SGD(0.5)))
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    history = model.fit(*small_data(), epochs=2, verbose=0, callbacks=[halve])
    assert history.history["learning_rate"] == [0.25, 0.125]
    assert float(model.optimizer.optimizer.learning_rate) == 0.125


@pytest.mark.parametrize("optimizer", ["sgd", None, keras.optimizers.SGD])
def test_what_is_no_optimizer_is_refused(optimizer):
    with pytest.raises(TypeError) as error:
        simclr.LARS(optimizer)
    assert str(error.value) == (
        "`optimizer` must be a Keras optimizer, for example "
        "keras.optimizers.SGD(0.3, momentum=0.9). "
        f"Received: optimizer={optimizer!r}"
    )


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop", "Lamb"])
def test_optimizer_that_ignores_the_length_of_the_gradient_is_refused(name):
    with pytest.raises(ValueError) as error:
        simclr.LARS(getattr(keras.optimizers, name)())
    assert str(error.value) == (
        "`optimizer` must take steps that are linear in the gradient, such as "
        "those of keras.optimizers.SGD: elsewhere the trust ratio has no "
        f"effect. Received: optimizer={name}"
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("weight_decay", 0.1),
        ("clipnorm", 1.0),
        ("clipvalue", 0.5),
        ("global_clipnorm", 1.0),
        ("use_ema", True),
        ("loss_scale_factor", 2.0),
        ("gradient_accumulation_steps", 2),
    ],
)
def test_inner_option_that_would_be_skipped_is_refused(option, value):
    with pytest.raises(ValueError) as error:
        simclr.LARS(keras.optimizers.SGD(0.1, **{option: value}))
    assert str(error.value) == (
        f"`optimizer` must not use `{option}`, which LARS would skip "
        f"silently. Received: {option}={value!r}"
    )


@pytest.mark.fault(24)
def test_exclusion_after_construction_is_refused():
    with pytest.raises(ValueError) as error:
        golden_optimizer().exclude_from_weight_decay(var_names=["bias"])
    assert str(error.value) == (
        "`LARS` does not support `exclude_from_weight_decay`, which is not "
        "saved with the optimizer. Name the variables when you make it: "
        "LARS(optimizer, exclude=[pattern, ...])"
    )


@pytest.mark.parametrize("weight_decay", [-0.1, float("nan"), "1e-6", None])
def test_weight_decay_below_zero_is_refused(weight_decay):
    with pytest.raises(ValueError) as error:
        simclr.LARS(keras.optimizers.SGD(0.1), weight_decay=weight_decay)
    assert str(error.value) == (
        "`weight_decay` must be a number of at least 0. "
        f"Received: weight_decay={weight_decay!r}"
    )


@pytest.mark.parametrize("trust_coefficient", [0, -1.0, True])
def test_trust_coefficient_that_is_not_positive_is_refused(trust_coefficient):
    with pytest.raises(ValueError) as error:
        simclr.LARS(
            keras.optimizers.SGD(0.1), trust_coefficient=trust_coefficient
        )
    assert str(error.value) == (
        "`trust_coefficient` must be a positive number. "
        f"Received: trust_coefficient={trust_coefficient!r}"
    )


# Goldens: google-research/simclr@383d414, tf2/model.py, WarmUpAndCosineDecay:
# CIFAR-10 with batches of 512, and ImageNet with batches of 4096.
@pytest.mark.parametrize(
    ("rate", "batch_size", "rule", "peak"),
    [
        (1.0, 512, "linear", 2.0),
        (0.3, 4096, "linear", 4.8),
        (0.075, 4096, "sqrt", 4.8),
    ],
)
def test_scaled_rate_equals_the_official_peak(rate, batch_size, rule, peak):
    scaled = simclr.scaled_learning_rate(rate, batch_size, rule=rule)
    assert scaled == pytest.approx(peak, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "official"),
    [
        (0, 0.0),
        (1, 0.00204918),
        (488, 1.0),
        (975, 1.99795079),
        (976, 2.0),
        (49316, 1.00001633),
        (97656, 0.0),
        (97657, 0.0),
        (200000, 0.0),
    ],
)
def test_warmup_cosine_equals_the_official_schedule(step, official):
    schedule = simclr.warmup_cosine(2.0, 97657, warmup_steps=976)
    assert float(schedule(step)) == pytest.approx(official, rel=1e-5, abs=1e-7)


def test_without_warmup_the_schedule_starts_at_its_peak():
    schedule = simclr.warmup_cosine(2.0, 10)
    rates = [float(schedule(step)) for step in range(11)]
    expected = [1 + np.cos(np.pi * step / 10) for step in range(11)]
    np.testing.assert_allclose(rates, expected, atol=1e-6)


@pytest.mark.fault(23)
@pytest.mark.parametrize("warmup_steps", [100, 101])
def test_warmup_that_takes_all_steps_is_refused(warmup_steps):
    with pytest.raises(ValueError) as error:
        simclr.warmup_cosine(1.0, 100, warmup_steps=warmup_steps)
    assert str(error.value) == (
        "`warmup_steps` must be less than `total_steps`. Received: "
        f"warmup_steps={warmup_steps}, total_steps=100"
    )


@pytest.mark.fault(23)
def test_rate_that_is_not_positive_is_refused():
    for make in (
        lambda: simclr.warmup_cosine(0.0, 10),
        lambda: simclr.scaled_learning_rate(0.0, 256),
    ):
        with pytest.raises(ValueError) as error:
            make()
        assert str(error.value) == (
            "`learning_rate` must be a positive number. "
            "Received: learning_rate=0.0"
        )


@pytest.mark.fault(23)
@pytest.mark.parametrize(
    ("name", "minimum", "value", "make"),
    [
        ("total_steps", 1, 0, lambda x: simclr.warmup_cosine(1.0, x)),
        (
            "warmup_steps",
            0,
            0.5,
            lambda x: simclr.warmup_cosine(1.0, 9, warmup_steps=x),
        ),
        ("batch_size", 1, 0, lambda x: simclr.scaled_learning_rate(1.0, x)),
    ],
)
def test_counts_out_of_range_are_refused(name, minimum, value, make):
    with pytest.raises(ValueError) as error:
        make(value)
    assert str(error.value) == (
        f"`{name}` must be an integer of at least {minimum}. "
        f"Received: {name}={value!r}"
    )


def test_unknown_scaling_rule_is_refused():
    with pytest.raises(ValueError) as error:
        simclr.scaled_learning_rate(1.0, 256, rule="squrt")
    assert str(error.value) == (
        "`rule` must be one of 'linear', 'sqrt'. "
        "Received: rule='squrt'. Did you mean 'sqrt'?"
    )


def test_default_optimizer_warms_up_to_a_rate_that_can_be_set():
    """As the schedule from 0 to 0.25 that it had once, bit for bit."""
    schedule = keras.optimizers.schedules.PolynomialDecay(0.0, 50, 0.25)
    for step in (0, 1, 7, 33, 49, 50, 80):
        weights = [keras.Variable([0.5]) for _ in range(2)]
        optimizer = optimizers.default_optimizer()
        plain = keras.optimizers.SGD(schedule, momentum=0.9)
        for each, weight in zip((optimizer, plain), weights, strict=True):
            each.build([weight])
            each.iterations.assign(step)
            each.apply([tf.constant([0.3])], [weight])
        np.testing.assert_array_equal(*weights)
    before = weights[0].numpy()
    scaled = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=1.0)
    scaled.learning_rate = 0.0
    assert float(optimizer.learning_rate) == 0.0
    optimizer.learning_rate.assign(0.5)
    assert float(optimizer.optimizer.learning_rate) == 0.5
    copy = optimizers.LARS.from_config(optimizer.get_config())
    assert copy.warmup_steps == 50
    assert float(copy.learning_rate) == 0.5
    optimizer.apply([tf.constant([0.0])], [weights[0]])
    momentum = 0.9 * -0.25 * np.float32(0.3)
    np.testing.assert_allclose(weights[0], before + momentum, rtol=1e-6)


SETTERS = {
    "LearningRateScheduler": keras.callbacks.LearningRateScheduler(max),
    "ReduceLROnPlateau": keras.callbacks.ReduceLROnPlateau(),
}


@pytest.mark.parametrize("name", SETTERS)
def test_rate_that_cannot_be_set_is_refused_before_training(name):
    setters = [SETTERS[name]]
    optimizers.check_rates(optimizers.default_optimizer(), setters, 10)
    for rate in (simclr.warmup_cosine(0.1, 10), lambda: 0.1):
        inner = simclr.LARS(keras.optimizers.SGD(rate))
        for optimizer in (inner, keras.optimizers.LossScaleOptimizer(inner)):
            with pytest.raises(ValueError, match=f"`{name}` needs a learning"):
                optimizers.check_rates(optimizer, setters, 10)


LATE = keras.optimizers.schedules.PiecewiseConstantDecay([5], [0.0, 1.0])


@pytest.mark.fault(23)
@pytest.mark.parametrize(
    ("rate", "trained", "steps", "begin"),
    [
        (simclr.warmup_cosine(0.1, 100), 100, 10, 100),
        (simclr.warmup_cosine(0.1, 100), 100, 0, 100),
        (simclr.warmup_cosine(0.1, 100), 0, 150, 104),
        (simclr.warmup_cosine(0.1, 100, warmup_steps=10), 0, 100, None),
        (simclr.warmup_cosine(0.1, 100), 0, 101, None),
        (keras.optimizers.schedules.CosineDecay(0.1, 100, 0.01), 300, 9, None),
        (keras.optimizers.schedules.CosineDecay(0.1, 100), 300, 1, 300),
        (LATE, 0, 100, None),
        (0.0, 0, 10, 0),
        (0.1, 0, 10, None),
    ],
)
def test_rate_of_0_is_told_before_training(
    rate, trained, steps, begin, recwarn
):
    optimizer = keras.optimizers.LossScaleOptimizer(
        simclr.LARS(keras.optimizers.SGD(rate))
    )
    optimizer.inner_optimizer.iterations.assign(trained)
    optimizers.check_rates(optimizer, [], steps)
    assert [
        f"from about step {begin} to" in str(x.message) for x in recwarn
    ] == ([True] * (begin is not None))
    assert int(optimizer.inner_optimizer.iterations) == trained


def test_restarted_schedule_survives_its_config():
    schedule = optimizers.Restarted(
        optimizers.Restarted(simclr.warmup_cosine(1.0, 4), 4, 0.3, 2), 6, 0.2, 3
    )
    config = keras.saving.serialize_keras_object(schedule)
    copy = keras.saving.deserialize_keras_object(config)
    rates = [float(schedule(step)) for step in range(11)]
    assert rates[4:7:2] == [pytest.approx(0.3), pytest.approx(0.2)]
    assert rates[9:] == [0.0, 0.0]
    assert [float(copy(step)) for step in range(11)] == rates


def test_rates_of_replicas_are_looked_at():
    with mirrored(2).scope():
        optimizers_of_two = [
            simclr.LARS(keras.optimizers.SGD(rate))
            for rate in (0.1, simclr.warmup_cosine(0.1, 10))
        ]
    for optimizer in optimizers_of_two:
        optimizers.check_rates(optimizer, [], 10)
