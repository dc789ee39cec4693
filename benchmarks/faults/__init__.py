"""What breaks, and what is left after it."""
