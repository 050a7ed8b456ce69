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
    from edgediff.runtime.evidence import read_evidence

    program = manifest.program()
    components: dict[str, int] = {}
    for graph in manifest.graphs.values():
        components[graph.component] = max(components.get(graph.component, 0), graph.parameters)
    evidence = read_evidence(manifest.evidence, manifest.name)
    profile = evidence.profile.get(manifest.default)
    used = tuple(dict.fromkeys(pair for name in manifest.programs for pair in used_graphs(manifest, name)))
    return {
        "kind": manifest.kind,
        "name": manifest.name,
        "sampler": program.sampler,
        "steps": program.steps,
        "rows": len(program.rows),
        "bytes": sum(entry.bytes for entry in manifest.files),
        "parameters": sum(components.values()),
        "macs_per_image": macs_per_image(manifest, manifest.default),
        "program": manifest.default,
        "programs": {name: _describe_program(manifest, name) for name in manifest.programs},
        "backends": list_backends(manifest),
        "graphs": {name: _describe_graph(manifest, name, used) for name in manifest.graphs},
        "memory": {name: need for name in list_backends(manifest) if (need := _memory_needs(manifest, name))},
        "parity_ok": evidence.parity.ok if evidence.parity is not None else None,
        "profile": None if profile is None else profile.model_dump(mode="json", exclude_none=True),
    }


def macs_per_image(manifest: Manifest, name: str) -> int:
    """Multiply-accumulates of one picture: every call, both sides where it is guided, texts and decoder."""
    from edgediff.runtime import used_graphs

    program = manifest.program(name)
    calls = {(graph, batch): times * batch for (graph, batch), times in program.calls().items()}
    texts = {encoder.graph for encoder in manifest.encoders.values()}
    once = {pair: 2 if pair[0] in texts and program.guides else 1 for pair in used_graphs(manifest, name)}
    return sum(manifest.graphs[graph].macs * times for (graph, _), times in {**once, **calls}.items())


def _describe_program(manifest: Manifest, name: str) -> dict[str, Any]:
    program = manifest.program(name)
    return {
        "sampler": program.sampler,
        "steps": program.steps,
        "rows": len(program.rows),
        "takes": list(program.takes),
        "strength": program.strength,
        "guidance": None if program.guidance is None else program.guidance.model_dump(),
        "graphs": list(program.graphs()),
        "macs_per_image": macs_per_image(manifest, name),
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
        "rows": sum(row.graph == name for program in manifest.programs.values() for row in program.rows),
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
    profile = bundle.evidence.profile.get(manifest.default)
    profiled = "not measured yet: edgediff profile"
    if profile is not None:
        profiled = f"p50 {profile.end_to_end_ms.p50:.0f} ms an image"
        profiled += "" if profile.source == "measured" else f" ({profile.source}, not measured)"
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
