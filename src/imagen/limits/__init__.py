"""What is held before work starts, and given back after it, whatever happens in between."""
