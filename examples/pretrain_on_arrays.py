"""Pretraining on arrays with compile() and fit().

Trains a small encoder on the 1,797 handwritten digits of scikit-learn, without
their labels, and exports it.

    python examples/pretrain_on_arrays.py --output_dir=digits_encoder

One minute on two cores of an Intel Xeon, without a GPU (November 2026).
"""

import keras
from absl import app, flags
from sklearn.datasets import load_digits

import keras_simclr as simclr

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", "digits_encoder", "Where to export.")
flags.DEFINE_integer("epochs", 40, "Passes over the images.")


def main(argv):
    """Pretrains and exports."""
    del argv
    keras.utils.set_random_seed(0)
    images = load_digits().images[..., None] / 16.0  # (1797, 8, 8, 1) in [0, 1]

    encoder = simclr.ResNet(
        10, width_multiplier=0.25, stem="cifar", input_shape=(8, 8, 1)
    )
    # Milder than the paper's recipe: a cut-off or mirrored digit is another.
    augmentation = simclr.SimCLRAugmentation(
        8, scale=(0.35, 1.0), flip_rate=0.0, blur_rate=0.0
    )
    model = simclr.SimCLRModel(encoder, augmentation=augmentation)
    model.compile(loss=simclr.NTXent(temperature=0.3))
    model.fit(images, batch_size=128, epochs=FLAGS.epochs)

    simclr.export_encoder(model, FLAGS.output_dir)
    print(f"{FLAGS.output_dir} holds encoder.keras and saved_model/.")


if __name__ == "__main__":
    app.run(main)
