"""`python -m keras_simclr`: as `keras-simclr`, which starts faster."""

import sys

from keras_simclr_cli import main

sys.exit(main())
