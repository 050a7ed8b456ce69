"""The one description under every method: units, and which of them run at which call."""
