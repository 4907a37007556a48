"""`python -m etl_server` is the `etl-server` command."""

from .cli import main

main()
