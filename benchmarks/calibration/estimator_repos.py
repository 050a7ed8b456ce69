"""Architectures behind calibration rows whose definition lies in a repository of its own, built from checkouts.

`CHECKOUTS` names each repository and the commit that was used; clone them side by side into one folder. Beside them
`pip install ultralytics easyocr` and what they ask for. Only shapes are taken from them: no code of theirs comes with
edgediff.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

CHECKOUTS = {
    "Qualcomm-AI-research/FFNet": "2291ae7",
    "chenjun2hao/DDRNet.pytorch": "bc0e193",
    "XuJiacong/PIDNet": "4c158cf",
    "Megvii-BaseDetection/YOLOX": "6ddff48",
    "WongKinYiu/yolov7": "a207844",
    "ultralytics/yolov5": "5081342f0",
    "clovaai/ext_portrait_segmentation": "9bc1bad",
    "ooooverflow/BiSeNet": "284a8f6",
}


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Imports from `folder` alone: these repositories all have a package called `models`."""
    common = ("models", "model", "utils", "config", "lib", "datasets", "yolox")
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in common}
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.split(".")[0] in common]:
            del sys.modules[name]
        sys.modules.update(before)


def ffnet(root: Path, module: str, name: str, height: int, width: int) -> tuple[nn.Module, Any]:
    with inside(root / "FFNet"):
        import importlib

        networks = importlib.import_module(f"models.{module}")
        create = networks.create_ffnet
        networks.create_ffnet = lambda **o: create(**{**o, "pretrained_weights_path": None, "strict_loading": False})
        network = getattr(networks, name)()
    return network.eval(), [torch.zeros(1, 3, height, width)]


def ddrnet(root: Path) -> tuple[nn.Module, Any]:
    with inside(root / "DDRNet.pytorch" / "lib"):
        from models.ddrnet_23_slim import BasicBlock, DualResNet  # type: ignore[import-not-found]

        network = DualResNet(
            BasicBlock, [2, 2, 2, 2], num_classes=19, planes=32, spp_planes=128, head_planes=64, augment=False
        )
    return network.eval(), [torch.zeros(1, 3, 1024, 2048)]


def pidnet(root: Path) -> tuple[nn.Module, Any]:
    with inside(root / "PIDNet"):
        from models.pidnet import PIDNet  # type: ignore[import-not-found]

        network = PIDNet(m=2, n=3, num_classes=19, planes=32, ppm_planes=96, head_planes=128, augment=False)
    return network.eval(), [torch.zeros(1, 3, 1024, 2048)]


def yolox(root: Path) -> tuple[nn.Module, Any]:
    with inside(root / "YOLOX"):
        from yolox.models import YOLOPAFPN, YOLOX, YOLOXHead  # type: ignore[import-not-found]

        network = YOLOX(YOLOPAFPN(0.33, 0.5), YOLOXHead(80, 0.5)).eval()
        network.head.decode_in_inference = False
    return network, [torch.zeros(1, 3, 640, 640)]


def yolov7(root: Path) -> tuple[nn.Module, Any]:
    with inside(root / "yolov7"):
        from models.yolo import Model  # type: ignore[import-not-found]

        with torch.no_grad():
            network = Model(str(root / "yolov7/cfg/training/yolov7-tiny.yaml")).fuse()
    return network.eval(), [torch.zeros(1, 3, 640, 640)]


def yolov5(root: Path) -> tuple[nn.Module, Any]:
    with inside(root / "yolov5"):
        from models.yolo import DetectionModel  # type: ignore[import-not-found]

        network = DetectionModel(str(root / "yolov5/models/yolov5m.yaml"))
    return network.eval(), [torch.zeros(1, 3, 640, 640)]


def sinet(root: Path) -> tuple[nn.Module, Any]:
    with inside(root / "ext_portrait_segmentation"):
        from models.SINet import SINet  # type: ignore[import-not-found]

        shapes = [
            [[3, 1], [5, 1]],
            [[3, 1], [3, 1]],
            [[3, 1], [5, 1]],
            [[3, 1], [3, 1]],
            [[5, 1], [3, 2]],
            [[5, 2], [3, 4]],
            [[3, 1], [3, 1]],
            [[5, 1], [5, 1]],
            [[3, 2], [3, 4]],
            [[3, 1], [5, 2]],
        ]
        network = SINet(classes=2, p=2, q=8, config=shapes, chnn=1)
    return network.eval(), [torch.zeros(1, 3, 224, 224)]


def bisenet(root: Path) -> tuple[nn.Module, Any]:
    import torchvision

    plain = {name: getattr(torchvision.models, name) for name in ("resnet18", "resnet101")}
    with inside(root / "BiSeNet"):
        for name, build in plain.items():
            setattr(torchvision.models, name, lambda pretrained=False, build=build: build())
        try:
            from model.build_BiSeNet import BiSeNet  # type: ignore[import-not-found]

            network = BiSeNet(12, "resnet18")
        finally:
            for name, build in plain.items():
                setattr(torchvision.models, name, build)
    return network.eval(), [torch.zeros(1, 3, 720, 960)]


def ultra(config: str, segments: bool = False) -> tuple[nn.Module, Any]:
    from ultralytics.nn.tasks import DetectionModel, SegmentationModel

    network = (SegmentationModel if segments else DetectionModel)(config, verbose=False).eval().fuse(verbose=False)
    head = network.model[-1]
    head.stride = [float(one) for one in head.stride]  # it is looked at while shapes run
    return network, [torch.zeros(1, 3, 640, 640)]


def craft() -> tuple[nn.Module, Any]:
    from easyocr.craft import CRAFT

    return CRAFT(pretrained=False).eval(), [torch.zeros(1, 3, 608, 800)]


def cases(root: Path) -> dict[str, Callable[[], tuple[nn.Module, Any]]]:
    """Graphs by name."""
    slim, narrow = "ffnet_S_mobile", "ffnet_NS_mobile"
    return {
        "ffnet_40s": lambda: ffnet(root, slim, "segmentation_ffnet40S_dBBB_mobile", 1024, 2048),
        "ffnet_54s": lambda: ffnet(root, slim, "segmentation_ffnet54S_dBBB_mobile", 1024, 2048),
        "ffnet_78s": lambda: ffnet(root, slim, "segmentation_ffnet78S_dBBB_mobile", 1024, 2048),
        "ffnet_78s_lowres": lambda: ffnet(root, slim, "segmentation_ffnet78S_BCC_mobile_pre_down", 512, 1024),
        "ffnet_122ns_lowres": lambda: ffnet(root, narrow, "segmentation_ffnet122NS_CBB_mobile_pre_down", 512, 1024),
        "ddrnet23_slim": lambda: ddrnet(root),
        "pidnet": lambda: pidnet(root),
        "yolox": lambda: yolox(root),
        "yolov7": lambda: yolov7(root),
        "yolov5": lambda: yolov5(root),
        "sinet": lambda: sinet(root),
        "bisenet": lambda: bisenet(root),
        "yolov10_det": lambda: ultra("yolov10n.yaml"),
        "yolov11_det": lambda: ultra("yolo11n.yaml"),
        "yolov11_seg": lambda: ultra("yolo11n-seg.yaml", True),
        "fastsam_x": lambda: ultra("yolov8x-seg.yaml", True),
        "easyocr/EasyOCRDetector": craft,
    }
