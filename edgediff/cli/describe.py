"""What came of a command, in words and as plain data: a bundle, its parity, its quality."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from edgediff.cli.text import format_table
from edgediff.documents.plan import shorten

if TYPE_CHECKING:
    from edgediff.bundle import Bundle
    from edgediff.documents.target import Target
    from edgediff.estimate import PlanEstimate
    from edgediff.runtime.manifest import Manifest

QUALITY_KEYS = ("retrieval_at_1", "frechet", "psnr_db", "ssim")


def describe_bundle(manifest: Manifest) -> dict[str, Any]:
    """`inspect`'s JSON. `macs_per_image` counts a call twice where it is guided; `parameters` takes the largest
    graph of each component, since the others share its weights (a distilled network that takes turns with the
    untouched one does not: there it is the larger of the two)."""
    from edgediff.runtime import list_backends, used_graphs

    program = manifest.program
    calls = [(row.graph, 2 if row.guidance is not None else 1) for row in program.rows if row.graph is not None]
    once = [(program.decode.graph, 1)] if program.decode.graph is not None else []
    if program.encode is not None:
        once.append((program.encode.graph, max(count for _, count in calls)))
    components: dict[str, int] = {}
    for graph in manifest.graphs.values():
        components[graph.component] = max(components.get(graph.component, 0), graph.parameters)
    return {
        "kind": manifest.kind,
        "name": manifest.name,
        "sampler": program.sampler,
        "steps": program.steps,
        "rows": len(program.rows),
        "bytes": sum(entry.bytes for entry in manifest.files),
        "parameters": sum(components.values()),
        "macs_per_image": sum(manifest.graphs[name].macs * count for name, count in (*calls, *once)),
        "backends": list_backends(manifest),
        "graphs": {name: _describe_graph(manifest, name, used_graphs(manifest)) for name in manifest.graphs},
        "memory": {name: need for name in list_backends(manifest) if (need := _memory_needs(manifest, name))},
        "parity_ok": manifest.parity["ok"] if manifest.parity else None,
        "profile": manifest.profile,
    }


def _memory_needs(manifest: Manifest, backend: str) -> dict[str, Any]:
    """Bytes of a backend's programs, weights included, and of what its hungriest graph needs beside them; empty where
    the backend does not say what a graph needs."""
    artifacts = {name: one for name, graph in manifest.graphs.items() if (one := graph.artifacts.get(backend))}
    needs = {name: one.memory_bytes for name, one in artifacts.items() if one.memory_bytes is not None}
    if not needs:
        return {}
    files = {file for one in artifacts.values() for file in one.files}
    programs = sum(entry.bytes for entry in manifest.files if entry.path in files)
    graph = max(needs, key=lambda name: needs[name])
    return {"programs_bytes": programs, "work_bytes": needs[graph], "graph": graph}


def _describe_graph(manifest: Manifest, name: str, used: tuple[tuple[str, int], ...]) -> dict[str, Any]:
    graph = manifest.graphs[name]
    return {
        "component": graph.component,
        "rows": sum(row.graph == name for row in manifest.program.rows),
        "batches": [batch for used_name, batch in used if used_name == name],
        "macs": graph.macs,
        "parameters": graph.parameters,
        "reads": sorted(graph.carries_in),
        "writes": sorted(graph.carries_out),
        "backends": {backend: artifact.precision for backend, artifact in sorted(graph.artifacts.items())},
        "placement": {
            backend: artifact.model_dump(mode="json", include={"delegates", "outside", "memory_bytes"})
            for backend, artifact in sorted(graph.artifacts.items())
            if artifact.delegates or artifact.outside
        },
    }


def summary_text(bundle: Bundle) -> str:
    """What `print(bundle)` does not say: the cost of an image, and what was checked and measured."""
    manifest, facts = bundle.manifest, describe_bundle(bundle.manifest)
    parity = {None: "not verified yet: edgediff verify", True: "verified", False: "a floor was missed"}
    end = (manifest.profile or {}).get("end_to_end_ms")
    profiled = f"p50 {end['p50']:.0f} ms an image" if end else "not measured yet: edgediff profile"
    if end and (source := (manifest.profile or {}).get("source")) != "measured":
        profiled += f" ({source}, not measured)"
    return "\n".join(
        [
            *_placement_lines(manifest),
            f"image      {facts['macs_per_image'] / 1e9:.2f} GMACs, {facts['parameters'] / 1e6:.2f} M parameters",
            f"backends   {', '.join(facts['backends'])}",
            *(
                f"memory     {name}: {need['programs_bytes'] / 1e6:.1f} MB of programs, "
                f"{need['work_bytes'] / 1e6:.1f} MB at work in {need['graph']}"
                for name, need in facts["memory"].items()
            ),
            f"parity     {parity[facts['parity_ok']]}",
            f"profile    {profiled}",
        ]
    )


def _placement_lines(manifest: Manifest) -> list[str]:
    """For backends that hand graphs on: to whom, in how many pieces, what nobody took, memory beside the weights."""
    lines: list[str] = []
    for backend in sorted({name for graph in manifest.graphs.values() for name in graph.artifacts}):
        rows = []
        for name, graph in manifest.graphs.items():
            one = graph.artifacts.get(backend)
            if one is None or not (one.delegates or one.outside):
                continue
            pieces = ", ".join(f"{delegate} x {count}" for delegate, count in one.delegates.items()) or "none"
            memory = f"{one.memory_bytes / 1e6:.1f}" if one.memory_bytes is not None else ""
            rows.append((name, pieces, str(sum(one.outside.values())), memory))
            rows += [("", f"  {count} x {_operator_text(what)}", "", "") for what, count in one.outside.items()]
        if rows:
            lines += [format_table((backend, "delegate", "outside", "MB at work"), rows), ""]
    return lines


def _operator_text(what: str) -> str:
    """An operator and the end of where it is: `sin in ...proj' (Timesteps), embeddings.py:1084`."""
    operator, _, place = what.partition(" in module ")
    return f"{operator} in {shorten(place, 40 - len(operator))}" if place else operator


def parity_text(found: dict[str, Any]) -> str:
    """Conversion error of every graph, of the trajectory at its worst step and of the picture, per backend."""
    rows: list[tuple[str, ...]] = []
    for backend, result in found["backends"].items():
        parts = {f"graph {name}": graph for name, graph in result["graphs"].items()}
        parts[f"latent, worst at step {result['trajectory']['worst_step'] + 1}"] = result["trajectory"]
        parts["picture"] = result["image"]
        for name, part in parts.items():
            floor = f"{part['floor_db']:g}" if "floor_db" in part else ""
            state = "" if part.get("ok", True) else "MISSED"
            rows.append((backend, name, f"{part['psnr_db']:.1f}", floor, state))
    verdict = "every floor holds" if found["ok"] else "a floor was missed"
    notes = [
        f"{backend}: computed by {said}, not by the device's own runtime"
        for backend, result in found["backends"].items()
        if (said := result.get("stand_in"))
    ]
    table = format_table(("backend", "against PyTorch", "PSNR dB", "floor", ""), rows)
    return "\n".join([table, "", *notes, verdict])


def quality_text(found: dict[str, Any]) -> str:
    """The bundle beside the untouched model and beside the untouched model with fewer steps at equal compute."""
    equal = found["equal_compute"]
    columns = (found, found["reference"], equal)
    rows = []
    for key in QUALITY_KEYS:
        values = [column.get(key) for column in columns]
        rows.append((key, *("-" if value is None else f"{value:.4g}" for value in values)))
    headers = ("", "this bundle", "untouched", f"untouched, {equal['sampler']} {equal['steps']}")
    words = {True: "better", False: "worse", None: "no clear difference"}
    gaps = [
        (key, f"{gap['difference']:+.3g}", f"{gap['low']:+.3g} to {gap['high']:+.3g}", words[gap["better"]])
        for key, gap in found["against_equal_compute"].items()
    ]
    against = format_table(("at equal compute", "difference", "95 % interval", "this bundle is"), gaps)
    title = f"{found['n']} pictures of {found['prompts']} prompts"
    return "\n".join([title, "", format_table(headers, rows), "", against, *found["reasons"].values()])


def setting_text(field: Any) -> str:
    """Type and default of one key of a method's table."""
    kind = _type_text(field.annotation)
    if field.is_required():
        return f"{kind}, needed"
    return f"{kind}, default {field.get_default(call_default_factory=True)!r}"


def _type_text(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(map(repr, get_args(annotation)))
    if get_origin(annotation) is tuple and get_args(annotation)[-1] is ...:
        return f"list of {_type_text(get_args(annotation)[0])}"
    if keys := getattr(annotation, "model_fields", None):
        return f"{{ {', '.join(f'{key} = ...' for key in keys)} }}"
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


SHOWN_NAME = 20  # characters of a device, so that the table has 80 columns


def estimates_text(found: Sequence[PlanEstimate]) -> str:
    """A line per target; below it, what the figures stand on."""
    rows = []
    for one in found:
        time, fits = one.latency_ms, {True: "fits", False: "NO", None: "?"}[one.fits]
        room = f"{one.memory_mb / 1e3:.1f}" + (f"/{one.ceiling_mb / 1e3:.2g}" if one.ceiling_mb else "")
        spread = f"{_span(time.low)} to {_span(time.high)}"
        rows.append(
            (one.target[:SHOWN_NAME], f"{one.backend} {one.precision}", _span(time.p50), spread, f"{room} {fits}")
        )
    head = ("device", "runs on", "image", "4 times of 5", "memory, GB")
    notes = ["estimated, not measured"]
    for one in found:
        unsure = f"; unverified: {', '.join(one.unverified)}" if one.unverified else ""
        notes.append(f"{one.target}: {one.basis}{unsure}")
        if one.unknown_operators:
            named = ", ".join(f"{name} ({count})" for name, count in sorted(one.unknown_operators.items()))
            notes.append(f"{one.target}: operators without a class, priced by their traffic: {named}")
    body = "\n".join(textwrap.fill(note, 78, subsequent_indent="  ") for note in notes)
    return f"{format_table(head, rows)}\n\n{body}"


def _span(ms: float) -> str:
    return f"{ms / 1e3:.3g} s" if ms >= 1000 else f"{ms:.3g} ms"


def target_text(target: Target) -> str:
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
