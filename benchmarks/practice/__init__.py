"""Decisions of users: defaults, pretrained networks, streams without task labels."""
