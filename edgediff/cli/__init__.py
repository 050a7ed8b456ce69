"""The command line: each command is thin and calls one public function."""
