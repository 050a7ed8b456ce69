"""How to reach a device: one file per kind of link, and the import of what other tools measured.

A link module exposes `push(bundle, device)`, `run(bundle, device, ...)` and `pull(device, ...)`. What runs there is a
`runners.DeviceRunner`: the C++ program in `runner/`, which `build_runner` compiles, or any program that prints the
lines of `heard`.
"""
