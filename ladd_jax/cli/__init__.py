"""The command line: flags, errors, what is checked before a job starts."""
