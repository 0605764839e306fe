"""What the recipe of `keras-simclr pretrain` reaches."""
