"""Replications of the papers' claims."""
