"""Schedulers as tables of numbers, and the only loop that samples with PyTorch."""
