"""Faults and compatibility: killed processes, damaged files, and versions of packages."""
