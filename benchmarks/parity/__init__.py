"""Values of the package beside those of another library."""
