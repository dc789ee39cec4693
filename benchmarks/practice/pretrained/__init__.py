"""Accuracy and bytes of tasks inside a pretrained network, for several methods; see ``__main__.py``."""
