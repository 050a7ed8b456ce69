"""What each subcommand does: call the public function of the same name and say what came of it."""

from __future__ import annotations

import inspect as python_inspect
import io
import json
import textwrap
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgediff.cli.describe import (
    describe_bundle,
    estimates_text,
    parity_text,
    quality_text,
    setting_text,
    summary_text,
    target_text,
)
from edgediff.cli.text import format_bytes, format_table, show_progress
from edgediff.errors import ConfigError, LinkError, OutputError, unknown

if TYPE_CHECKING:
    from edgediff.bundle import Bundle
    from edgediff.runtime.latency import LatencyTable

if TYPE_CHECKING:
    from edgediff.estimate import PlanEstimate


@dataclass(frozen=True)
class Answer:
    """`data` is what --json prints, `text` what a person reads, `code` the exit status."""

    data: Any
    text: str
    code: int = 0


def build(args: Namespace) -> Answer:
    """`flow.build`, or with --dry-run `flow.plan_build`."""
    from edgediff import flow

    if not args.out and not args.dry_run:
        raise ConfigError("build needs --out DIR, or --dry-run to see the plan only", code="usage")
    choices = {
        "recipe": args.recipe,
        "target": args.target,
        "backends": args.backend,
        "budget": args.budget,
        "device": args.device,
    }
    with show_progress(quiet=args.json) as progress:
        if args.dry_run:
            plan = flow.plan_build(args.model, **choices, progress=progress)
            return Answer(plan.model_dump(mode="json", by_alias=True, exclude_none=True), str(plan))
        bundle = flow.build(args.model, **choices, out=args.out, overwrite=args.overwrite, progress=progress)
    text = f"{bundle.plan}\n\n{summary_text(bundle)}\nwrote {args.out}"
    return Answer({"bundle": args.out, **describe_bundle(bundle.manifest)}, text)


def distill(args: Namespace) -> Answer:
    """`flow.distill_model`, with what is given here in place of the recipe's own settings."""
    from edgediff import flow
    from edgediff.config import parse
    from edgediff.documents.recipe import DistillTable, load_recipe

    if args.device not in ("auto", "cpu") or args.checkpoint_every < 1:
        raise ConfigError("--device is auto or cpu, --checkpoint-every 1 or more", code="usage")
    recipe = load_recipe(args.recipe)
    names = ("steps", "batch", "accumulate", "rate", "precision", "seed")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if recipe.distill is not None and given:
        table = parse({**recipe.distill.model_dump(), **given}, DistillTable, where="[distill]")
        recipe = recipe.model_copy(update={"distill": table})
    with show_progress(quiet=args.json) as progress:
        record = flow.distill_model(
            args.model,
            recipe=recipe,
            out=args.out,
            data=args.data,
            lora=args.lora,
            lora_scale=args.lora_scale,
            resume=args.resume,
            overwrite=args.overwrite,
            device=args.device,
            checkpoint_every=args.checkpoint_every,
            progress=progress,
        )
    data = {"folder": args.out, **record.model_dump(mode="json", exclude_none=True)}
    lost = record.lora.lost if record.lora else ()
    text = f"wrote {args.out}: {len(record.cuts)} cuts, {record.settings.steps} steps on {record.samples}"
    if record.probe is not None:
        before, after = record.probe
        said = "less" if after < before else "more: the cut alone was better, distil longer or at a lower rate"
        text += f"\noutput loss {before:.4g} after the cut, {after:.4g} at the end ({said})"
    return Answer(data, text + (f"\nLoRA targets lost to the cuts: {', '.join(lost)}" if lost else ""))


def verify(args: Namespace) -> Answer:
    """`verify.verify_bundle`; the result is kept in the manifest. Exit status 1 when a floor is missed."""
    from edgediff.bundle import open_bundle, update_manifest
    from edgediff.pipeline import load_pipeline
    from edgediff.verify import verify_bundle

    bundle = open_bundle(args.bundle)
    with show_progress(quiet=args.json) as progress:
        found = verify_bundle(
            bundle,
            backends=[args.backend] if args.backend else None,
            pipeline=load_pipeline(args.model) if args.model else None,
            progress=progress,
        )
    update_manifest(bundle, parity=found)
    return Answer(found, parity_text(found), 0 if found["ok"] else 1)


def run(args: Namespace) -> Answer:
    """`runtime.generate_steps`, a step at a time, then the PNG, with what made it in its text chunk; or the WAV."""
    from edgediff.bundle import open_bundle
    from edgediff.runtime import GenerationStep, choose_backend, find_stand_in, generate_steps

    out = Path(args.out)
    if out.suffix.lower() not in (".png", ".wav"):
        raise OutputError("pictures are written as PNG; give a name that ends in .png (.wav for sound)", where=args.out)
    if not out.parent.is_dir():
        raise OutputError(f"the folder '{out.parent}' does not exist; create it", where=args.out)
    bundle = open_bundle(args.bundle)
    suffix = ".wav" if bundle.manifest.kind == "unconditional-audio" else ".png"
    if out.suffix.lower() != suffix:
        raise OutputError(f"the bundle is {bundle.manifest.kind}; give a name that ends in {suffix}", where=args.out)
    steps: list[GenerationStep] = []
    found: Any = None
    with show_progress(quiet=args.json) as progress:
        progress("loading", 0, len(bundle.manifest.program.rows))
        for item in generate_steps(
            bundle,
            args.prompt,
            negative_prompt=args.negative,
            seed=args.seed,
            backend=args.backend,
            threads=args.threads,
        ):
            if isinstance(item, GenerationStep):
                steps.append(item)
                what = item.graph or "held"
                progress(f"{what:<12}{item.seconds_total * 1e3:>7.1f} ms", item.index + 1, item.total)
            else:
                found = item
    made = {"prompt": args.prompt, "negative_prompt": args.negative, "seed": args.seed, "bundle": bundle.manifest.name}
    seconds = sum(step.seconds_total for step in steps)
    if suffix == ".wav":
        found.save(out)
        what, size = "sound", f"{found.seconds:.2f} s at {found.rate} Hz"
    else:
        _save_png(found, out, made)
        what, size = "image", f"{found.width} x {found.height}"
    by = find_stand_in(bundle.manifest, choose_backend(bundle.manifest, args.backend))
    data = {what: args.out, **made, "steps": len(steps), "seconds": seconds, "stand_in": by}
    note = f"\ncomputed by {by}, not by the device's own runtime" if by else ""
    return Answer(data, f"{args.out}: {size}, {len(steps)} steps in {seconds:.2f} s{note}")


def profile(args: Namespace) -> Answer:
    """`profiling.profile_bundle`; the table is kept in the manifest. With several devices `profiling.profile_devices`,
    of which the first table is kept; exit status 1 when a device has none."""
    from edgediff.bundle import open_bundle, update_manifest
    from edgediff.profiling import profile_bundle, profile_devices

    bundle = open_bundle(args.bundle)
    options = {
        "backend": args.backend,
        "runs": args.runs,
        "warmup": args.warmup,
        "threads": args.threads,
        "sustained": args.sustained,
        "per_op": args.per_op,
        "runner": args.runner and Path(args.runner),
    }
    devices = args.device or ["host"]
    with show_progress(quiet=args.json) as progress:
        if len(devices) == 1:
            table = profile_bundle(bundle, device=devices[0], **options, progress=progress)
            update_manifest(bundle, profile=table.model_dump(mode="json", exclude_none=True))
            return Answer(table.model_dump(mode="json", exclude_none=True), str(table))
        found = profile_devices(bundle, devices, **options, progress=progress)
    return _device_profiles(bundle, found)


def _device_profiles(bundle: Bundle, found: dict[str, LatencyTable | LinkError]) -> Answer:
    """A table of every device, and what went wrong with the others."""
    from edgediff.bundle import update_manifest

    tables = {serial: one for serial, one in found.items() if not isinstance(one, LinkError)}
    errors = {serial: one for serial, one in found.items() if isinstance(one, LinkError)}
    plain = {serial: table.model_dump(mode="json", exclude_none=True) for serial, table in tables.items()}
    if plain:
        update_manifest(bundle, profile=next(iter(plain.values())))
    data = {"profiles": plain, "errors": {serial: {"code": e.code, "message": str(e)} for serial, e in errors.items()}}
    texts = [f"{serial}\n{table}" for serial, table in tables.items()] + [f"{s}\n{e}" for s, e in errors.items()]
    return Answer(data, "\n\n".join(texts), 1 if errors else 0)


def import_measurements(args: Namespace) -> Answer:
    """`links.reading.read_measurements`; with --into the table is kept in a manifest, as `profile`'s is."""
    from edgediff.bundle import open_bundle, update_manifest
    from edgediff.links._reading import read_measurements

    tables = read_measurements(
        Path(args.file), graph=args.graph, device=args.device, runtime=args.runtime, precision=args.precision
    )
    data = {name: table.model_dump(mode="json", exclude_none=True) for name, table in tables.items()}
    if args.into:
        if len(data) != 1:
            raise ConfigError(
                f"a manifest keeps one table, and '{args.file}' has {len(data)}: {', '.join(data)}",
                code="several_tables",
            )
        update_manifest(open_bundle(args.into), profile=next(iter(data.values())))
    return Answer({"tables": data}, "\n\n".join(f"{name}\n{table}" for name, table in tables.items()))


def estimate(args: Namespace) -> Answer:
    """`flow.estimate_model` on each target."""
    from edgediff import flow

    with show_progress(quiet=args.json) as progress:
        if args.calibrate:
            from edgediff.profiling.calibrate import calibrate_host

            calibrate_host(threads=args.threads or 1, progress=progress)
        found = flow.estimate_model(
            args.model, recipe=args.recipe, targets=args.target or ["host"], backend=args.backend, progress=progress
        )
    if args.plot:
        from edgediff.config import write_text_atomic
        from edgediff.report.devices import devices_plot

        write_text_atomic(Path(args.plot), devices_plot({args.recipe: found}))
    data = [one.model_dump(mode="json", exclude_none=True) for one in found]
    return Answer(data[0] if len(data) == 1 else {"estimates": data}, estimates_text(found))


def evaluate(args: Namespace) -> Answer:
    """`evaluation.evaluate_bundle`; with --out the figures are written for the report."""
    from edgediff.bundle import open_bundle
    from edgediff.config import dump_json, write_text_atomic
    from edgediff.evaluation import evaluate_bundle

    bundle = open_bundle(args.bundle)
    with show_progress(quiet=args.json) as progress:
        found = evaluate_bundle(
            bundle,
            prompts=args.prompts,
            seeds=range(args.seeds),
            backend=args.backend,
            pipeline=args.model,
            progress=progress,
        )
    if args.out:
        write_text_atomic(Path(args.out), dump_json(found))
    return Answer(found, quality_text(found))


def report(args: Namespace) -> Answer:
    """`report.render_report`."""
    from edgediff.bundle import open_bundle
    from edgediff.report import render_report

    bundles = [open_bundle(folder) for folder in args.bundles]
    evaluations = [None if file == "-" else Path(file) for file in args.evaluation]
    estimates = {Path(file).stem: _read_estimates(Path(file)) for file in args.estimates}
    render_report(bundles, args.out, evaluations=evaluations, estimates=estimates)
    return Answer({"report": args.out, "bundles": args.bundles}, f"wrote {args.out}")


def _read_estimates(file: Path) -> list[PlanEstimate]:
    """What `edgediff estimate --json` printed, for one target or several."""
    from edgediff.config import parse, read_text
    from edgediff.estimate import PlanEstimate

    try:
        data = json.loads(read_text(file))
    except ValueError as error:
        raise ConfigError(f"is not JSON: {error}", where=str(file), code="syntax") from error
    found = data.get("estimates", [data]) if isinstance(data, dict) else [data]
    return [parse(one, PlanEstimate, where=str(file)) for one in found]


def inspect(args: Namespace) -> Answer:
    """What a bundle holds, without a runtime."""
    from edgediff.bundle import open_bundle

    bundle = open_bundle(args.bundle)
    return Answer(describe_bundle(bundle.manifest), f"{bundle}\n\n{summary_text(bundle)}")


def compare(args: Namespace) -> Answer:
    """`profiling.compare_bundles`: the time of B over the time of A, in pairs taken one after the other."""
    from edgediff.bundle import open_bundle
    from edgediff.profiling import compare_bundles

    with show_progress(quiet=args.json) as progress:
        found = compare_bundles(
            open_bundle(args.a),
            open_bundle(args.b),
            backend=args.backend,
            runs=args.runs,
            threads=args.threads,
            progress=progress,
        )
    ratio = found["ratio"]
    text = (
        f"{args.b} is {found['verdict']}: {ratio['median']:.3f} of the time of {args.a} "
        f"(95 % interval {ratio['low']:.3f} to {ratio['high']:.3f}, {found['n']} pairs)"
    )
    return Answer(found, text)


def export_layout(args: Namespace) -> Answer:
    """`layouts.export_layout`."""
    from edgediff.bundle import open_bundle
    from edgediff.layouts import export_layout as export

    export(open_bundle(args.bundle), args.layout, Path(args.out))
    return Answer({"layout": args.layout, "out": args.out}, f"wrote {args.out} in the layout '{args.layout}'")


def pack(args: Namespace) -> Answer:
    """`bundle.pack_bundle`."""
    from edgediff.bundle import open_bundle, pack_bundle

    file = pack_bundle(open_bundle(args.bundle, verify=False), args.file, overwrite=args.overwrite)
    size = file.stat().st_size
    return Answer({"file": args.file, "bytes": size}, f"wrote {args.file}, {format_bytes(size)}")


def unpack(args: Namespace) -> Answer:
    """`bundle.unpack_bundle`."""
    from edgediff.bundle import unpack_bundle

    bundle = unpack_bundle(args.file, args.out, overwrite=args.overwrite)
    return Answer({"bundle": args.out, **describe_bundle(bundle.manifest)}, f"{bundle}\n\nwrote {args.out}")


def devices(args: Namespace) -> Answer:
    """`target.list_targets`, read; one target in full when it is named."""
    from edgediff.documents.target import list_targets, load_target

    if args.name:
        target = load_target(args.name)
        return Answer({args.name: target.model_dump(mode="json", exclude_none=True)}, target_text(target))
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


def recipes(args: Namespace) -> Answer:
    """`recipe.list_recipes`, read."""
    from edgediff.documents.recipe import list_recipes, load_recipe

    found = {name: load_recipe(name) for name in list_recipes()}
    rows = [(name, f"{r.sampler.kind} {r.sampler.steps}", r.description) for name, r in found.items()]
    data = {name: r.model_dump(mode="json", exclude_none=True) for name, r in found.items()}
    return Answer(data, format_table(("recipe", "sampler", "what it does"), rows))


def methods(args: Namespace) -> Answer:
    """Every `[[prune]]` and `[[reuse]]` kind with the keys of its table, and those of `[distill]`."""
    from edgediff.documents.recipe import DistillTable
    from edgediff.plugins import load_plugin, plugin_names

    data: dict[str, dict[str, Any]] = {}
    blocks: list[str] = []
    for folder in ("prune", "reuse"):
        data[folder] = {}
        for kind in plugin_names(folder):
            module = load_plugin(folder, kind)
            about = (python_inspect.getdoc(module) or "").split("\n\n")[0].replace("\n", " ")
            data[folder][kind] = {"about": about, "settings": module.Spec.model_json_schema()}
            rows = [(f"  {key}", setting_text(field)) for key, field in module.Spec.model_fields.items()]
            keys = " ".join((module.Spec.__doc__ or "").split())
            said, explained = (
                textwrap.fill(text, 78, initial_indent="  ", subsequent_indent="  ") for text in (about, keys)
            )
            table = format_table(("  key", "what it takes"), rows)
            blocks.append(f'[[{folder}]] kind = "{kind}"\n{said}\n{table}' + (f"\n{explained}" if keys else ""))
    about = (python_inspect.getdoc(DistillTable) or "").split("\n\n")[0].replace("\n", " ")
    data["distill"] = {"[distill]": {"about": about, "settings": DistillTable.model_json_schema()}}
    rows = [(f"  {key}", setting_text(field)) for key, field in DistillTable.model_fields.items()]
    said = textwrap.fill(about, 78, initial_indent="  ", subsequent_indent="  ")
    blocks.append(f"[distill]\n{said}\n{format_table(('  key', 'what it takes'), rows)}")
    return Answer(data, "\n\n".join(blocks))


def doctor(args: Namespace) -> Answer:
    """`doctor.examine`. Exit status 1 when something that every command needs is missing."""
    from edgediff.cli.doctor import as_data, examine, is_healthy

    with show_progress(quiet=args.json) as progress:
        checks = examine(progress)
    rows = [(check.state, check.name, check.detail + (f" -> {check.fix}" if check.fix else "")) for check in checks]
    healthy = is_healthy(checks)
    verdict = "everything that is needed is here" if healthy else "something that every command needs is missing"
    return Answer(as_data(checks), f"{format_table(('', 'what', 'found'), rows)}\n\n{verdict}", 0 if healthy else 1)


def _save_png(image: Any, path: Path, made: dict[str, Any]) -> None:
    """Writes the picture whole or not at all; how it was made stands in its text chunk `edgediff`."""
    from PIL.PngImagePlugin import PngInfo

    from edgediff.config import dump_json, write_bytes_atomic

    info = PngInfo()
    info.add_itxt("edgediff", dump_json(made))
    data = io.BytesIO()
    image.save(data, "PNG", pnginfo=info)
    write_bytes_atomic(path, data.getvalue())
