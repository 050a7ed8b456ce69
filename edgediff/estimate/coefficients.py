"""What the roofline's efficiencies are on each kind of compute unit, runtime and precision: fitted figures, as data."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from pydantic import Field

from edgediff.config import Model, read_json
from edgediff.estimate.operators import KINDS

FILE = Path(__file__).parent / "coefficients.json"
# Natural logarithms added to the spread for each step that an answer is away from what was measured.
OTHER_RUNTIME, OTHER_PRECISION, OTHER_CLASS, NEW_SILICON = 0.25, 0.2, 0.6, 0.15
FAMILIES = ("hexagon", "ethos-u")  # architectures of one family share coefficients: hexagon-v73, ethos-u55-256
ALIASES = {"executorch/qnn": "qnn", "executorch/coreml": "coreml", "eager": "onnxruntime"}


class Group(Model):
    """Coefficients of one (class of compute unit, runtime, precision).

    `macs[kind]` is the peak over the rate reached, so 4 means a quarter of the peak; `traffic[kind]` the same of
    the memory bandwidth for activations, `weights` for weights. `operator_us[kind]` is added per operator and
    `call_us` per call, on a device whose peak is the class's `reference_gflops`; slower devices take longer by
    the square root of the ratio. `spread` is the standard deviation of log(measured / estimated); `rows` how many
    measurements stand behind it (0: a guess from the specifications), from `source`.
    """

    macs: dict[str, float]
    traffic: dict[str, float]
    weights: float = Field(gt=0)
    operator_us: dict[str, float]
    call_us: float = Field(ge=0)
    reference_gflops: float = Field(gt=0)
    spread: float = Field(gt=0)
    bias: float = 0.0
    rows: int = Field(default=0, ge=0)
    source: str = ""


class Coefficients(Model):
    """`groups` by `class|runtime|precision`; `silicon` how much longer a measured chip takes than its figures
    say (a factor, by `chip|runtime`)."""

    groups: dict[str, Group]
    silicon: dict[str, float] = {}


@lru_cache(maxsize=1)
def load_coefficients() -> Coefficients:
    """The fitted coefficients that come with the package."""
    return read_json(FILE, Coefficients)


def family_of(architecture: str) -> str:
    """`hexagon-v75` -> `hexagon`; most architectures are their own family."""
    return next((name for name in FAMILIES if architecture.startswith(name)), architecture)


def find_group(architecture: str, runtime: str, precision: str) -> tuple[Group, float, str]:
    """The nearest group, what the distance adds to its spread, and how it was found, in words."""
    groups, family, runtime = load_coefficients().groups, family_of(architecture), ALIASES.get(runtime, runtime)
    if exact := groups.get(f"{family}|{runtime}|{precision}"):
        return exact, 0.0, "fitted for this runtime" if exact.rows else "from the specifications alone"
    kin = [key.split("|") for key in groups if key.split("|")[0] == family]
    for match, extra, words in (
        (lambda k: k[1] == runtime, OTHER_PRECISION, "taken from another precision"),
        (lambda k: k[2] == precision, OTHER_RUNTIME, "taken from another runtime"),
        (lambda k: True, OTHER_RUNTIME + OTHER_PRECISION, "taken from another runtime and precision"),
    ):
        if found := [key for key in kin if match(key)]:
            return groups["|".join(found[0])], extra, f"{words} ({found[0][1]}, {found[0][2]})"
    default = groups.get(f"any|any|{precision}") or groups["any|any|fp16"]
    return default, OTHER_CLASS, "no measurement on a device of this kind"


def check_complete(group: Group) -> bool:
    """Whether every kind of operator has its figures."""
    return all(set(KINDS) <= set(table) for table in (group.macs, group.traffic, group.operator_us))
