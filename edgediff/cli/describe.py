"""A bundle in words and as plain data, as `inspect`, `build` and `unpack` show it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgediff.cli.text import format_table

if TYPE_CHECKING:
    from edgediff.bundle import Bundle
    from edgediff.runtime.manifest import Manifest


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
    from edgediff.documents.plan import shorten

    operator, _, place = what.partition(" in module ")
    return f"{operator} in {shorten(place, 40 - len(operator))}" if place else operator
