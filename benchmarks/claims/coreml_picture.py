"""A Core ML bundle's picture beside PyTorch's, both by the bundle's own program from one seed.

    python benchmarks/claims/coreml_picture.py BUNDLE OUT.png [--prompt "red heart"] [--seed 0]

Left: the network in PyTorch, fp32. Middle: the bundle's programs, by Core ML on a Mac and by `edgediff.mil` elsewhere.
Right: 16 times their difference. Prints JSON: PSNR of the pictures and of the latent after each step.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from edgediff.backends.eager import eager_runners
from edgediff.bundle import open_bundle
from edgediff.metrics import psnr
from edgediff.runtime import Session, open_session
from edgediff.variants import build_variants
from edgediff.verify import load_source

AMPLIFIED = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompt", default="red heart")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    bundle = open_bundle(args.bundle)
    pipeline = load_source(bundle)
    eager = Session(bundle.manifest, bundle.tokenizers(), eager_runners(build_variants(pipeline, bundle.plan)))
    found = {"eager": run(eager, args), "coreml": run(open_session(bundle, "coreml"), args)}
    (latents, picture), (ours, made) = found.values()
    steps = [
        round(psnr(one, other, float(np.abs(one).max()), cap=200), 1) for one, other in zip(latents, ours, strict=True)
    ]
    difference = np.abs(picture.astype(int) - made.astype(int))
    shown = np.minimum(AMPLIFIED * difference, 255).astype(np.uint8)
    Image.fromarray(np.concatenate([picture, made, shown], axis=1)).save(args.out)
    print(
        json.dumps(
            {
                "prompt": args.prompt,
                "seed": args.seed,
                "image_psnr_db": round(psnr(picture, made, 255.0, cap=99), 1),
                "largest_difference": int(difference.max()),
                "worst_step_db": min(steps),
                "steps_db": steps,
            }
        )
    )


def run(session: Session, args: argparse.Namespace) -> tuple[list[np.ndarray], np.ndarray]:
    latents = [step.latent for step in session.steps(args.prompt, seed=args.seed)]
    return latents, session.decode(latents[-1])


if __name__ == "__main__":
    main()
