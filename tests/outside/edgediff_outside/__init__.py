"""What another package writes to plug into edgediff: a module per plug-in, named by entry points in pyproject.toml."""
