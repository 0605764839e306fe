"""What the package takes, beside its peers."""
