"""The AIStore ETL protocol as pure functions. Nothing in here does I/O."""
