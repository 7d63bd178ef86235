"""The command line: the only printer, the only exit codes."""
