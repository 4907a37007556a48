"""A transform class as text, and back.

The text is base64 of a cloudpickle of the class and nothing else, so whoever knows cloudpickle can load it. What is
installed (the standard library, site-packages, this package) is in there by name. What is local travels by value: the
class itself and, of each local module that it uses, what its code uses of it. The other side needs none of the files.
"""

from __future__ import annotations

from .dump import local_modules, serialize_class
from .load import check_payload, deserialize_class, load_payload, make_server
from .meta import Meta
from .packed import PackedClass, pack_class

__all__ = [
    "Meta",
    "PackedClass",
    "check_payload",
    "deserialize_class",
    "load_payload",
    "local_modules",
    "make_server",
    "pack_class",
    "serialize_class",
]
