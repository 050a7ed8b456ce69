"""What another package writes to plug into edgediff: one module per plug-in, named by entry points in pyproject.toml."""
