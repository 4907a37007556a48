"""etl_server beside the servers that users would pick instead: `python -m bench --help`."""
