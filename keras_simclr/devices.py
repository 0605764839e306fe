"""What this machine is: strategies, precision, memory."""

import collections
import os
import time

import keras
import tensorflow as tf

from keras_simclr import _checks


def only_cpus():
    """Whether TensorFlow has neither a GPU nor a TPU."""
    devices = tf.config.list_logical_devices()
    return all(device.device_type == "CPU" for device in devices)


def cores():
    """CPU cores that this process may use, in a container too."""
    import joblib

    return joblib.cpu_count()


def make_strategy(name):
    """Makes the strategy that the command line calls by a name.

    `"auto"`: the machines of `TF_CONFIG` if it is set, else all GPUs, or TPUs,
    if there are several, else one device. Refuses other names, and several
    workers without `TF_CONFIG`.
    """
    _checks.choice("strategy", name, _STRATEGIES)
    has_cluster = "TF_CONFIG" in os.environ
    if name == "auto":
        if has_cluster:
            name = "multi_worker"
        elif tf.config.list_physical_devices("TPU"):
            name = "tpu"
        else:
            gpus = tf.config.list_physical_devices("GPU")
            name = "mirrored" if len(gpus) > 1 else "one"
    if name == "multi_worker" and not has_cluster:
        raise ValueError(
            "`strategy` multi_worker needs the environment variable TF_CONFIG, "
            "which names all workers and this one. It is not set."
        )
    return _STRATEGIES[name]()


def _tpu():
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu="local")
    tf.tpu.experimental.initialize_tpu_system(resolver)
    return tf.distribute.TPUStrategy(resolver)


_STRATEGIES = {
    "auto": None,
    "one": tf.distribute.get_strategy,
    "mirrored": tf.distribute.MirroredStrategy,
    "multi_worker": tf.distribute.MultiWorkerMirroredStrategy,
    "tpu": _tpu,
}


def describe_devices(strategy):
    """One line about the devices found, and how many work."""
    devices = tf.config.list_logical_devices()
    kinds = collections.Counter(device.device_type for device in devices)
    found = ", ".join(f"{n} x {kind}" for kind, n in sorted(kinds.items()))
    return f"{found} found; training on {strategy.num_replicas_in_sync}"


def fastest_precision():
    """The dtype policy in which convolutions train clearly fastest here."""
    seconds = {}
    for dtype in ("float32", "bfloat16"):
        images = tf.ones((32, 16, 16, 64), dtype)
        kernel = tf.ones((3, 3, 64, 64), dtype)
        step = tf.function(_convolve_and_back)
        tries = []
        for _ in range(6):
            start = time.perf_counter()
            for gradient in step(images, kernel):
                gradient.numpy()  # Waits for the device.
            tries.append(time.perf_counter() - start)
        seconds[dtype] = min(tries)
    is_faster = seconds["bfloat16"] < 0.8 * seconds["float32"]
    return "mixed_bfloat16" if is_faster else "float32"


def _convolve_and_back(images, kernel):
    with tf.GradientTape() as tape:
        tape.watch((images, kernel))
        outputs = tf.nn.conv2d(images, kernel, 1, "SAME")
    return tape.gradient(outputs, (images, kernel))


def forget_models():
    """Frees the memory of models that are no longer used.

    `keras.backend.clear_session` alone would also reset the dtype policy.
    """
    policy = keras.config.dtype_policy()
    keras.backend.clear_session()
    keras.config.set_dtype_policy(policy)


def duration(seconds):
    """A time in words.

    >>> duration(90), duration(600)
    ('90.0 seconds', '10.0 minutes')
    """
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"
