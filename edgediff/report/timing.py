"""Latency and memory as measured, with what they were measured on."""

from __future__ import annotations

from edgediff.report.charts import bars, stacked, ticks
from edgediff.report.markup import (
    Child,
    Html,
    code,
    facts,
    figure,
    join,
    macs,
    milliseconds,
    missing,
    percent,
    table,
    tag,
)
from edgediff.report.subject import Subject
from edgediff.runtime.latency import SHOWN_OPERATORS, LatencyTable, throttling, throttling_curve

MEGABYTE = "MB"
BEWARE = {
    "estimated": "Estimated, not measured: computed from the target's peak rates.",
    "emulated": "Emulated: run on another machine in the device's stead. These are not the device's times.",
    "vendor-estimate": "The vendor's estimate, not measured.",
}
MADE = {
    "measured": "Measured on",
    "estimated": "Times estimated for",
    "emulated": "Times emulated for",
    "vendor-estimate": "Times estimated by the vendor's tools for",
}


def latency_section(subject: Subject) -> Html:
    """Loads, first run, end to end, memory; then every graph."""
    if subject.profile is None:
        return missing("Latency and memory", f"edgediff profile {subject.quoted}{subject.option}")
    found = subject.profile
    return join(
        [
            _caveats(found),
            _whole(found),
            _sustained(found),
            _split(subject, found),
            _graphs(found),
            _npu(found),
            _operators(found),
            _device(found),
        ]
    )


def image_time(found: LatencyTable | None) -> Child:
    """p50 of an image, over what it is where it was not measured."""
    said = milliseconds(found.end_to_end_ms.p50 if found else None)
    return said if found is None or found.source == "measured" else join([said, tag("small", found.source)])


def _caveats(found: LatencyTable) -> Html:
    lines: list[str] = []
    if found.source in BEWARE:
        lines.append(BEWARE[found.source])
    if found.npu:
        lines.append("The NPU's part alone: what the CPU does beside it is in nobody's estimate.")
    if found.complete is False:
        lines.append("The run ended early: these are the images that had been made by then.")
    if found.device.is_busy:
        lines.append(
            f"The machine was busy: load average {found.device.load_average:g} on {found.device.cores} cores before "
            "the run. These times are upper bounds."
        )
    return join(tag("p", line, class_="caveat") for line in lines)


def _whole(found: LatencyTable) -> Html:
    loads, image = found.load_ms, found.end_to_end_ms
    cold = {True: "files dropped from the page cache", False: "files stayed in the page cache"}
    parts = f"{milliseconds(loads.hashing)} of it reading and hashing; " if loads.hashing is not None else ""
    pairs: list[tuple[str, Child]] = [
        (
            "Image, end to end",
            _pair(
                f"p50 {milliseconds(image.p50)}",
                f"p90 {milliseconds(image.p90)}, p95 "
                f"{milliseconds(image.p95)}, n {image.n} after {found.warmup} warm-up",
            ),
        ),
        ("First image", _pair(milliseconds(found.first_run_ms), "includes what is done late")),
        (
            "Cold load",
            _pair(
                milliseconds(loads.cold),
                parts + cold.get(loads.cache_dropped, "page cache: not known")
                if loads.cache_dropped is not None
                else parts,
            ),
        ),
        ("Warm load", _pair(milliseconds(loads.warm), "again in the same process")),
        ("Outside the graphs", _pair(percent(found.overhead_fraction, 1), "scheduler, guidance, caches, tokenizer")),
        (
            "Peak memory",
            _pair(
                figure(found.peak_rss_mb, 0, MEGABYTE),
                f"{figure(found.base_rss_mb, 0, MEGABYTE)} of it libraries before the bundle",
            ),
        ),
    ]
    return facts(pairs)


def _sustained(found: LatencyTable) -> Html:
    """The throttling curve of a run that is long enough to have one."""
    slower = throttling(found.samples.end_to_end_ms)
    if slower is None:
        return Html("")
    points = throttling_curve(found.samples.end_to_end_ms)
    rows = [("p0", f"until {seconds:.0f} s", took, milliseconds(took)) for seconds, took in points]
    words = f"One image after the other: the last fifth takes {slower:.2f} of the first. Median image of each stretch:"
    return join([tag("h4", "Sustained"), tag("p", words, class_="note"), bars(rows, "Median image over a long run")])


def _operators(found: LatencyTable) -> Html:
    if not found.operators_ms:
        return Html("")
    largest = sorted(found.operators_ms.items(), key=lambda item: -item[1])[:SHOWN_OPERATORS]
    rows: list[list[Child]] = [[code(kind), milliseconds(took)] for kind, took in largest]
    words = "From a picture that was traced and not timed: tracing slows small operators down."
    return join(
        [
            tag("h4", "Largest operators, per call"),
            table(("operator", "time"), rows, numbers=(1,)),
            tag("p", words, class_="note"),
        ]
    )


def _split(subject: Subject, found: LatencyTable) -> Html:
    """Where the median image's time goes: each graph's samples over all images, and the rest."""
    total = sum(found.samples.end_to_end_ms)
    if not total or not found.samples.graphs:
        return Html("")
    images = len(found.samples.end_to_end_ms)
    shares = sorted(((sum(times) / images, graph) for graph, times in found.samples.graphs.items()), reverse=True)
    parts = [(f"p{min(index, 4)}", graph, share) for index, (share, graph) in enumerate(shares)]
    parts.append(("rest", "outside the graphs", max(0.0, total / images - sum(value for _, _, value in parts))))
    entries = [
        tag("li", tag("span", class_=f"patch {kind}"), f"{title} ", tag("b", percent(value * images / total, 1)))
        for kind, title, value in parts
    ]
    label = f"Where the time of an image of {subject.title} goes"
    return join([tag("h4", "Where an image's time goes"), stacked(parts, label), tag("ul", *entries, class_="parts")])


def _graphs(found: LatencyTable) -> Html:
    samples = found.samples.graphs
    everything = [value for times in samples.values() for value in times]
    high = max(everything, default=1.0)
    rows: list[list[Child]] = []
    for graph, times in found.graphs.items():
        drawn = ticks(samples[graph], 0.0, high, f"{len(samples[graph])} calls of {graph}") if graph in samples else ""
        load = found.load_ms.graphs.get(graph)
        rows.append(
            [
                code(graph),
                milliseconds(times.p50_ms),
                milliseconds(times.p90_ms),
                milliseconds(times.p95_ms),
                times.n,
                milliseconds(load),
                drawn,
            ]
        )
    head = ("graph", "p50", "p90", "p95", "calls", "load", "every call, from 0")
    split = any("@" in graph for graph in found.graphs)
    words = "@2 is one call for both prompts, @1 a call for the prompt alone."
    note = tag("p", words, class_="note") if split else None
    return join([tag("h4", "Each graph, per call"), table(head, rows, numbers=(1, 2, 3, 4, 5)), note])


def _npu(found: LatencyTable) -> Html | None:
    """What the vendor's compiler says of each graph."""
    if not found.npu:
        return None
    rows: list[list[Child]] = [
        [
            code(graph),
            f"{one.cycles:,}",
            macs(one.macs),
            one.pieces,
            ", ".join(f"{kib:,.0f} KiB {memory}" for memory, kib in one.memory_kib.items()),
        ]
        for graph, one in found.npu.items()
    ]
    head = ("graph", "cycles", "arithmetic", "pieces", "memory used")
    return join([tag("h4", "On the NPU, by its vendor's compiler"), table(head, rows, numbers=(1, 2, 3))])


def _device(found: LatencyTable) -> Html:
    facts_, before = found.device, found.thermal_before
    affinity = facts_.affinity
    shown = [
        facts_.cpu,
        f"{facts_.cores} cores" if facts_.cores else None,
        f"affinity {', '.join(map(str, affinity))}" if affinity and len(affinity) != facts_.cores else None,
        f"{facts_.threads} threads" if facts_.threads else "threads: the backend's choice",
        f"governor {facts_.governor}" if facts_.governor else None,
        f"{facts_.memory_gb:g} GB memory" if facts_.memory_gb else None,
        facts_.os,
        facts_.runtime,
        f"{before} before, {found.thermal_after or 'not readable'} after" if before else None,
    ]
    return tag("p", "; ".join(part for part in shown if part), ".", class_="note")


def _pair(value: str, beside: str) -> Html:
    return join([tag("b", value), tag("small", beside.rstrip("; ")) if beside else None])
