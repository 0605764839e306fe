"""What a training survives."""
