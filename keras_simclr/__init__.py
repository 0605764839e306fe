"""SimCLR for TensorFlow 2 and Keras 3.

Unlabelled images in, a useful Keras encoder out:

    import keras_simclr as simclr

    model = simclr.SimCLRModel(
        simclr.ResNet(18, stem="cifar", input_shape=(32, 32, 3))
    )
    model.compile()
    model.fit(unlabeled_ds, epochs=100)
    simclr.export_encoder(model, "my_encoder")
"""

import os as _os

if _os.environ.get(
    "KERAS_BACKEND", "tensorflow"
) != "tensorflow" or _os.environ.get("TF_USE_LEGACY_KERAS", "0") not in (
    "",
    "0",
    "False",
):
    raise ImportError(
        "keras_simclr needs Keras 3 on TensorFlow. Before Python starts, set "
        "KERAS_BACKEND=tensorflow and unset TF_USE_LEGACY_KERAS."
    )

from keras_simclr import (
    audio as audio,
    callbacks as callbacks,
    collapse as collapse,
    folders as folders,
    losses as losses,
    neighbours as neighbours,
    recipe as recipe,
    report as report,
    runs as runs,
    scanning as scanning,
    series as series,
    sounds as sounds,
    tables as tables,
    testing as testing,
)
from keras_simclr.augmentations import (
    RandomColorDistortion as RandomColorDistortion,
    RandomFlip as RandomFlip,
    RandomGaussianBlur as RandomGaussianBlur,
    RandomGaussianNoise as RandomGaussianNoise,
    RandomResizedCrop as RandomResizedCrop,
    RandomRotate90 as RandomRotate90,
    SimCLRAugmentation as SimCLRAugmentation,
)
from keras_simclr.distillation import (
    distill as distill,
    distill_encoder as distill_encoder,
)
from keras_simclr.evaluation import evaluate as evaluate
from keras_simclr.export import export_encoder as export_encoder
from keras_simclr.features import extract_features as extract_features
from keras_simclr.finetuning import fine_tune as fine_tune
from keras_simclr.losses import NTXent as NTXent, nt_xent as nt_xent
from keras_simclr.model import SimCLRModel as SimCLRModel
from keras_simclr.networks import (
    ProjectionHead as ProjectionHead,
    ResNet as ResNet,
)
from keras_simclr.official import load_official as load_official
from keras_simclr.optimizers import (
    LARS as LARS,
    scaled_learning_rate as scaled_learning_rate,
    warmup_cosine as warmup_cosine,
)
from keras_simclr.probes import (
    knn_probe as knn_probe,
    linear_probe as linear_probe,
)
from keras_simclr.sources import (
    dataset_from_arrays as dataset_from_arrays,
    dataset_from_directory as dataset_from_directory,
    dataset_from_tfds as dataset_from_tfds,
)

__version__ = "0.1.0"
