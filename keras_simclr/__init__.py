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

from keras_simclr.augmentations import (
    RandomColorDistortion as RandomColorDistortion,
)
from keras_simclr.augmentations import (
    RandomFlip as RandomFlip,
)
from keras_simclr.augmentations import (
    RandomGaussianBlur as RandomGaussianBlur,
)
from keras_simclr.augmentations import (
    RandomGaussianNoise as RandomGaussianNoise,
)
from keras_simclr.augmentations import (
    RandomResizedCrop as RandomResizedCrop,
)
from keras_simclr.augmentations import (
    RandomRotate90 as RandomRotate90,
)
from keras_simclr.augmentations import (
    SimCLRAugmentation as SimCLRAugmentation,
)
from keras_simclr.data import (
    dataset_from_arrays as dataset_from_arrays,
)
from keras_simclr.data import (
    dataset_from_tfds as dataset_from_tfds,
)
from keras_simclr.losses import NTXent as NTXent
from keras_simclr.losses import nt_xent as nt_xent
from keras_simclr.model import SimCLRModel as SimCLRModel
from keras_simclr.networks import (
    ProjectionHead as ProjectionHead,
)
from keras_simclr.networks import (
    ResNet as ResNet,
)
from keras_simclr.optimizers import (
    LARS as LARS,
)
from keras_simclr.optimizers import (
    scaled_learning_rate as scaled_learning_rate,
)
from keras_simclr.optimizers import (
    warmup_cosine as warmup_cosine,
)

__version__ = "0.1.0"
