"""Arguments that several commands take."""

from __future__ import annotations

from edgediff.cli.commands import option

BUNDLE = option("bundle", metavar="BUNDLE", help="folder of a bundle")
OVERWRITE = option("--overwrite", action="store_true", help="replace what is there")
BACKEND = option("--backend", metavar="NAME", help="backend to run on (default: the bundle's first)")
PROGRAM = option("--program", metavar="NAME", help="program of the bundle (default: the one that it names)")
THREADS = option("--threads", type=int, metavar="N", help="threads of the backend (default: its own choice)")
MODEL = option("--model", metavar="MODEL", help="the untouched model, if it is no longer where the bundle says")
