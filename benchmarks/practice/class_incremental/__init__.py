"""Class-incremental accuracy without task ids, and the bytes that each method needs for it; see ``__main__.py``."""
