"""What object stores raise, as the errors that requests are answered with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import BadRequestError, FileForbiddenError, ObjectMissingError, ObjectStoreError


@contextmanager
def errors_of_stores(name: str) -> Iterator[None]:
    """Translate what goes wrong with the object `name`."""
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectMissingError(f"Object not found: {error.filename or name}") from None
    except PermissionError as error:
        raise FileForbiddenError(f"The store does not allow it: {error}") from None
    except ValueError as error:
        raise BadRequestError(f"The store has no object of this name: {error}") from None
    except OSError as error:
        raise ObjectStoreError(f"{name}: {error}") from error
