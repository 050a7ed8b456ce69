"""A reference evaluator for Core ML programs, on any machine: `load("unet.mlpackage").run(sample=...)`.

It reads a saved `.mlpackage` (every function, the weights, whatever compression they are in) and computes it with
PyTorch, so that an artifact made for an iPhone can be checked in Linux CI. Arithmetic is fp32 inside an operation;
with `precision="fp16"` (the default) every result that the program declares fp16 is rounded to fp16, overflow to
infinity included. With "fp32" nothing is rounded: what is left is the error of the weights.

What it is not: the order in which a Neural Engine or a GPU adds up is not reproduced, nor are its speed and limits.
It checks what a program means, and how far fp16 takes it from its source.
"""

from __future__ import annotations

from edgediff.mil.evaluate import Program, load
from edgediff.mil.package import Package, ValueType, open_package

__all__ = ["Package", "Program", "ValueType", "load", "open_package"]
