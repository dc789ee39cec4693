"""What the papers claim, tried again."""
