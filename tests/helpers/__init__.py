"""What tests share: oracles, stand-ins, and programs for other processes."""
