"""What a package says about itself, so that an app needs to guess nothing: keys in reverse-domain style.

Apple's converter and the apps around it leave the attention form and the compute units unsaid, and an app that
guesses wrong crashes or runs on the CPU.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING

from edgediff.backends.coreml.link import Description
from edgediff.backends.coreml.settings import Settings
from edgediff.backends.coreml.states import name_states

if TYPE_CHECKING:
    from edgediff.documents.target import Target
    from edgediff.variants import Variants

PREFIX = "io.github.edgediff."
UNITS = {"cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "npu": "CPU_AND_NE"}
TENSORS = {
    "sample": "Noisy latent, batch x channels x height x width; two of them when guidance runs in one batch",
    "timestep": "Timestep of the sampler's row",
    "encoder_hidden_states": "Text embedding, batch x tokens x width; the empty prompt first",
    "class_labels": "Class of each sample",
    "noise_pred": "The network's prediction for each latent, before guidance",
    "input_ids": "Token ids of one text",
    "last_hidden_state": "Embedding of the text, one row per token",
    "z": "Latent, scaled as the manifest says",
    "image": "Picture in [-1, 1], 1 x channels x height x width",
}
BETWEEN = "Handed from one chunk of the network to the next"
STATE = "Feature that an earlier step left, fp16, batch x channels x height x width; one set per picture"
CACHES = {
    "cache_in_": "Feature that an earlier step left, batch x channels x height x width",
    "cache_out_": "Feature for later steps",
}


def describe_package(variants: Variants, target: Target, component: str, islands: tuple[str, ...]) -> Description:
    """The texts and notes of one package."""
    plan, table = variants.plan, target.settings("coreml", Settings)
    tensors = dict(TENSORS)
    for variant in variants.graphs.values():
        for spec in (*variant.inputs, *variant.outputs):
            for prefix, text in CACHES.items():
                if spec.name.startswith(prefix):
                    tensors[spec.name] = text
        if table.cache == "state":
            tensors.update(dict.fromkeys(name_states(variant).values(), STATE))
    notes = {
        "version": importlib.metadata.version("edgediff"),
        "component": component,
        "recipe": plan.recipe_name,
        "recipe_sha256": plan.recipe,
        "plan_sha256": plan.digest(),
        "target_sha256": plan.target,
        "source_model": plan.model.id,
        "source_revision": plan.model.revision or "",
        "source_weights_sha256": plan.model.weights,
        "attention": table.attention,
        "deployment": table.deployment,
        "cache": table.cache,
        "chunks": str(table.chunks),
        "precision": plan.backends["coreml"].precision,
        "fp32_islands": ",".join(islands),
        "compute_units": UNITS[table.unit],
        "compute_units_tested": "none: checked by edgediff.mil",
    }
    return Description(
        short=f"{component} of {plan.model.id}, recipe '{plan.recipe_name}' for {target.name}",
        author="edgediff",
        licence=plan.model.licence,
        version=plan.model.revision or "",
        notes={PREFIX + key: value for key, value in notes.items()},
        tensors=tensors,
        others=BETWEEN,
    )


def read_description(path: Path) -> Description:
    """The description of a package that is on the disk, with the texts of its tensors."""
    from edgediff.mil import open_package

    metadata = open_package(path).spec.description.metadata
    return Description(
        short=metadata.shortDescription,
        author=metadata.author,
        licence=metadata.license,
        version=metadata.versionString,
        notes=dict(metadata.userDefined),
        tensors=TENSORS,
        others=BETWEEN,
    )
