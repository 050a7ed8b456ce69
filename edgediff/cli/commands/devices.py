"""`edgediff devices`: the targets that come with edgediff."""

from __future__ import annotations

import textwrap
from argparse import Namespace
from typing import TYPE_CHECKING

from edgediff.cli.commands import Answer, Command, option
from edgediff.cli.text import format_table
from edgediff.errors import ConfigError, unknown

if TYPE_CHECKING:
    from edgediff.documents.target import Target


def execute(args: Namespace) -> Answer:
    """`target.list_targets`, read; one target in full when it is named."""
    from edgediff.documents.target import list_targets, load_target

    if args.name:
        target = load_target(args.name)
        return Answer({args.name: target.model_dump(mode="json", exclude_none=True)}, _target_text(target))
    targets = {name: load_target(name) for name in list_targets()}
    for what, word, known in (
        ("backend", args.backend, {name for t in targets.values() for name in t.backends}),
        ("form", args.form, {t.form_factor for t in targets.values()}),
    ):
        if word and word not in known:
            raise ConfigError(unknown(what, word, known), code=f"unknown_{what}")
    chosen = {
        name: t
        for name, t in targets.items()
        if (not args.backend or args.backend in t.backends) and (not args.form or args.form == t.form_factor)
    }
    rows = [
        (name, t.soc.partition(" (")[0], f"{t.memory_gb:g}" if t.memory_gb else "", " ".join(t.backends))
        for name, t in chosen.items()
    ]
    data = {name: t.model_dump(mode="json", exclude_none=True) for name, t in chosen.items()}
    return Answer(data, format_table(("target", "chip", "GB", "backends"), rows))


def _target_text(target: Target) -> str:
    """One device in full: every figure with its source, or the word unverified."""
    unsure = set(target.unverified_figures())
    lines = [f"{target.name}: {target.soc}, {target.os}".rstrip(", ")]
    for name, unit in (("memory_gb", "GB"), ("memory_ceiling_gb", "GB for one app"), ("bandwidth_gbps", "GB/s")):
        value = getattr(target, name)
        if value is not None:
            mark = " (unverified)" if name in unsure else ""
            lines.append(f"{name:<20}{value:g} {unit}{mark}  {target.sources.get(name, '')}".rstrip())
    for where, part in target.compute_units():
        rates = [
            f"{rate} {getattr(part, rate):g}"
            for rate in ("fp32_gflops", "fp16_gflops", "int8_gops")
            if getattr(part, rate) is not None
        ]
        mark = " (unverified)" if part.unverified or not part.source else ""
        lines.append(f"{where:<20}{part.name}: {', '.join(rates) or 'no peak known'}{mark}  {part.source}".rstrip())
    for backend in target.backends:
        table = target.backend(backend)
        how = f"{table.precision} on the {table.unit}, {table.guidance} guidance"
        lines.append(f"{backend:<20}{how}" + "".join(f"; {one}" for one in table.constraints))
    if target.thermal:
        lines.append(f"{'thermal':<20}{target.thermal}")
    return "\n".join(textwrap.fill(line, 80, subsequent_indent=" " * 20, break_on_hyphens=False) for line in lines)


COMMAND = Command(
    execute,
    "the targets that come with edgediff",
    (
        option("name", nargs="?", metavar="TARGET", help="one target, with the source of every figure"),
        option("--backend", metavar="NAME", help="those with this backend only"),
        option("--form", metavar="FORM", help="phone, tablet, laptop, desktop, board, microcontroller or server only"),
    ),
    place=150,
)
