"""Weight updates ΔW held as their factors, one file a structure."""
