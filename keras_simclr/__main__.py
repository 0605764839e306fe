"""`python -m keras_simclr`, the same as `keras-simclr`."""

import sys

from keras_simclr_cli import main

sys.exit(main())
