"""What users decide: defaults, pretrained networks, tasks that nobody names."""
