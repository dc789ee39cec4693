"""Whether an object's memory is freed as soon as nothing uses the object."""

import gc
import weakref


def is_freed_without_collection(make):
    """Return whether the object that ``make()`` returns is freed at once, without Python's garbage collection."""
    gc.disable()
    try:
        return weakref.ref(make())() is None
    finally:
        gc.enable()
