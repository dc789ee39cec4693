"""What masks cost: time, memory, and several processes."""
