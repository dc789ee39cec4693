"""Modules that the scripts share: data, streams, networks, and the writing of result files."""
