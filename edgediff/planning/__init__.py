"""Decides everything: cuts, schedule, bits, within a budget. No later stage reads the recipe."""
