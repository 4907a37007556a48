"""x"""


def dev() -> None:
    """x"""
