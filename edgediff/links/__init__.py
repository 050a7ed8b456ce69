"""How to reach a device: one file per kind of link, and the import of what other tools measured.

A link module exposes `push(bundle, device)`, `run(bundle, device, ...)` and `pull(device, ...)`.
"""
