"""Scripts that measure, by kind; README.md says how to run them."""
