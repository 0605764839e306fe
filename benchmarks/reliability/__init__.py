"""What becomes of faults, many times over."""
