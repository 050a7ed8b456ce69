"""What a runner on a device prints, and the latency table that it comes to.

JSON lines: `{"load_ms": x}`, `{"graph": name, "ms": x}` for a call, `{"image_ms": x}` after the calls of a picture,
`{"peak_rss_mb": x}`; of warm-up only `{"first_image_ms": x}`. `FACTS` has what else it may say.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from edgediff.runtime.latency import DeviceFacts, LatencyTable, LoadTimes, Samples, Source, graph_times, image_times

STATUS = "edgediff-status"  # printed by the shell after the runner, with its exit status
COMPLAINT = "edgediff-runner: "  # how the runner's last words begin
# What a runner may say once about the whole run, in any of its lines.
FACTS = (
    "load_ms",
    "warm_load_ms",
    "first_image_ms",
    "base_rss_mb",
    "peak_rss_mb",
    "pss_mb",
    "threads",
    "affinity",
    "runtime",
    "graphs_load_ms",
)


@dataclass
class Heard:
    """What a runner has printed so far."""

    images: list[float] = field(default_factory=list)
    graphs: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    complaint: str = ""
    status: int | None = None  # None: the device went away before the runner ended

    def take(self, line: str) -> None:
        """Adds one line; what is neither JSON nor the status is kept as a complaint."""
        if line.startswith(STATUS):
            self.status = int(line.split()[1])
            return
        try:
            said = json.loads(line)
            if "image_ms" in said:
                self.images.append(float(said["image_ms"]))
            elif "ms" in said:
                self.graphs.setdefault(str(said["graph"]), []).append(float(said["ms"]))
            self.facts.update({key: said[key] for key in FACTS if said.get(key) is not None})
        except (ValueError, KeyError, TypeError, AttributeError):  # the runtime's own words, or half a line
            if line.strip() and not self.complaint.startswith(COMPLAINT):
                self.complaint = line.strip()

    def why_it_ended(self) -> str:
        """The end of an error about a run that measured nothing."""
        if self.status is None:
            return "the device went away"
        return f"the runner ended with status {self.status}: {self.complaint.removeprefix(COMPLAINT) or 'no words'}"

    def table(self, source: Source, facts: DeviceFacts, *, bundle: str, warmup: int) -> LatencyTable:
        """The table of at least one image; `complete` says whether the runner came to its end."""
        said, complete = self.facts, self.status == 0
        ran = {key: said.get(key) for key in ("threads", "affinity", "runtime")}
        loads = {"cold": said.get("load_ms"), "warm": said.get("warm_load_ms")}
        inside = sum(map(sum, self.graphs.values()))
        return LatencyTable(
            source=source,
            device=DeviceFacts.model_validate({**facts.model_dump(), **ran}),
            load_ms=LoadTimes.model_validate({**loads, "graphs": said.get("graphs_load_ms", {})}),
            graphs={name: graph_times(times) for name, times in self.graphs.items()},
            end_to_end_ms=image_times(self.images),
            first_run_ms=said.get("first_image_ms"),
            warmup=warmup,
            peak_rss_mb=said.get("peak_rss_mb"),
            base_rss_mb=said.get("base_rss_mb"),
            pss_mb=said.get("pss_mb"),
            overhead_fraction=round(max(0.0, 1 - inside / sum(self.images)), 5) if complete and self.graphs else None,
            measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
            bundle=bundle,
            complete=complete,
            samples=Samples(end_to_end_ms=tuple(self.images), graphs={n: tuple(t) for n, t in self.graphs.items()}),
        )
