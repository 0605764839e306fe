"""What must hold for long, and whatever comes."""
