"""Builds the architectures behind the calibration rows with random weights (none: on the meta device), records
their operators and writes edgediff/estimate/calibration/graphs.json.gz. Needs torchvision and timm beside edgediff.

    pip install torchvision timm ultralytics easyocr && python benchmarks/calibration/estimator_graphs.py NCNN REPOS

NCNN is `benchmark/models` of a checkout of Tencent/ncnn (a4d2ea1d when the file was last written), whose own graphs its
benchmark ran; REPOS a folder of the checkouts that `estimator_repos.py` names.
Prints parameters beside what the calibration data says they are, where it says so.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import estimator_ncnn
import estimator_nets as nets
import estimator_repos

from edgediff.estimate.record import record_operators

FOLDER = Path(__file__).parents[2] / "edgediff" / "estimate" / "calibration"
Case = tuple[nn.Module, Any] | tuple[nn.Module, Any, Callable[..., Any]]


def image(*shape: int) -> list[torch.Tensor]:
    return [torch.zeros(1, *shape)]


def tv(name: str, *shape: int, **options: Any) -> Case:
    import torchvision

    extra = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **extra, **options)
    return model.eval(), image(*(shape or (3, 224, 224)))


def tm(name: str, *shape: int) -> Case:
    import timm

    return timm.create_model(name, pretrained=False).eval(), image(*(shape or (3, 224, 224)))


def fused(name: str, side: int = 224) -> Case:
    """A timm network as it is deployed: parallel branches of training folded into one."""
    import timm
    from timm.utils.model import reparameterize_model

    return reparameterize_model(timm.create_model(name, pretrained=False).eval()), image(3, side, side)


def hf(config: str, model: str, inputs: dict[str, Any], call: Any = None, **options: Any) -> Case:
    import transformers

    network = getattr(transformers, model)(getattr(transformers, config)(**options)).eval()
    values = {name: torch.zeros(shape, dtype=kind) for name, (shape, kind) in inputs.items()}
    return (network, values) if call is None else (network, values, call(network))


INT, FLT = torch.long, torch.float32


def text(length: int) -> dict[str, Any]:
    return {"input_ids": ((1, length), INT), "attention_mask": ((1, length), INT)}


def whisper_encoder(width: int, layers: int, heads: int, mels: int = 80) -> Case:
    return hf(
        "WhisperConfig",
        "WhisperModel",
        {"input_features": ((1, mels, 3000), FLT)},
        lambda m: m.encoder,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=1,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        num_mel_bins=mels,
    )


def whisper_decoder(width: int, layers: int, heads: int) -> Case:
    network = nets.CachedDecoder(51865, width, layers, heads, past=200, memory=1500)
    return network.eval(), network.example_inputs()


def marian_encoder(vocabulary: int) -> Case:
    return hf(
        "MarianConfig",
        "MarianModel",
        text(256),
        lambda m: m.encoder,
        vocab_size=vocabulary,
        d_model=512,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        pad_token_id=vocabulary - 1,
        decoder_start_token_id=vocabulary - 1,
    )


def marian_decoder(vocabulary: int) -> Case:
    network = nets.CachedDecoder(vocabulary, 512, 6, 8, past=256, memory=256)
    return network.eval(), network.example_inputs()


def clip() -> Case:
    return hf(
        "CLIPConfig",
        "CLIPModel",
        {"input_ids": ((1, 77), INT), "pixel_values": ((1, 3, 224, 224), FLT)},
        text_config={
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "vocab_size": 49408,
        },
        vision_config={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "patch_size": 16,
            "image_size": 224,
        },
    )


def sd_text() -> Case:
    return hf(
        "CLIPTextConfig",
        "CLIPTextModel",
        {"input_ids": ((1, 77), INT)},
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
    )


def sd_unet() -> Case:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    return model.eval(), [torch.zeros(1, 4, 64, 64), torch.zeros(1), torch.zeros(1, 77, 768)]


def sd_vae() -> Case:
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    model = AutoencoderKL(block_out_channels=[128, 256, 512, 512], layers_per_block=2, **blocks).eval()
    return nets.Decoder(model), [torch.zeros(1, 4, 64, 64)]


def depth_anything() -> Case:
    return hf(
        "DepthAnythingConfig",
        "DepthAnythingForDepthEstimation",
        {"pixel_values": ((1, 3, 518, 518), FLT)},
        backbone_config={
            "model_type": "dinov2",
            "hidden_size": 384,
            "num_attention_heads": 6,
            "num_hidden_layers": 12,
            "image_size": 518,
            "patch_size": 14,
            "mlp_ratio": 4,
            "out_indices": [9, 10, 11, 12],
            "reshape_hidden_states": False,
            "apply_layernorm": True,
        },
        patch_size=14,
        reassemble_hidden_size=384,
        neck_hidden_sizes=[48, 96, 192, 384],
        fusion_hidden_size=64,
        head_in_index=-1,
        head_hidden_size=32,
    )


def segformer() -> Case:
    return hf(
        "SegformerConfig", "SegformerForSemanticSegmentation", {"pixel_values": ((1, 3, 512, 512), FLT)}, num_labels=150
    )


def trocr_decoder() -> Case:
    network = nets.CachedDecoder(64044, 256, 6, 8, past=20, memory=578, ffn=1024, cross=384)
    return network.eval(), network.example_inputs()


CASES: dict[str, Callable[[], Case]] = {
    "resnet18": lambda: tv("resnet18"),
    "resnet50": lambda: tv("resnet50"),
    "resnet101": lambda: tv("resnet101"),
    "resnext50": lambda: tv("resnext50_32x4d"),
    "resnext101": lambda: tv("resnext101_32x8d"),
    "wideresnet50": lambda: tv("wide_resnet50_2"),
    "densenet121": lambda: tv("densenet121"),
    "googlenet": lambda: tv("googlenet"),
    "inception_v3": lambda: tv("inception_v3"),
    "efficientnet_b0": lambda: tv("efficientnet_b0"),
    "efficientnet_b4": lambda: tv("efficientnet_b4"),
    "efficientnet_v2_s": lambda: tv("efficientnet_v2_s"),
    "mnasnet05": lambda: tv("mnasnet0_5"),
    "mobilenet_v2": lambda: tv("mobilenet_v2"),
    "mobilenet_v3_large": lambda: tv("mobilenet_v3_large"),
    "mobilenet_v3_small": lambda: tv("mobilenet_v3_small"),
    "shufflenet_v2": lambda: tv("shufflenet_v2_x0_5"),
    "squeezenet1_1": lambda: tv("squeezenet1_1"),
    "fcn_resnet50": lambda: tv("fcn_resnet50", 3, 520, 520, weights_backbone=None),
    "regnet": lambda: tv("regnet_x_3_2gf"),
    "regnet_y_800mf": lambda: tv("regnet_y_800mf"),
    "resnet_2plus1d": lambda: tv("r2plus1d_18", 3, 16, 112, 112),
    "resnet_3d": lambda: tv("r3d_18", 3, 16, 112, 112),
    "resnet_mixed": lambda: tv("mc3_18", 3, 16, 112, 112),
    "vit": lambda: tv("vit_b_16"),
    "dla102x": lambda: tm("dla102x"),
    "beit": lambda: tm("beit_base_patch16_224"),
    "efficientformer": lambda: tm("efficientformer_l1"),
    "levit": lambda: tm("levit_128s"),
    "mobile_vit": lambda: tm("mobilevit_s", 3, 256, 256),
    "sequencer2d": lambda: tm("sequencer2d_s"),
    "efficientvit_b2_cls": lambda: tm("efficientvit_b2"),
    "efficientvit_l2_cls": lambda: tm("efficientvit_l2"),
    "nasnet": lambda: tm("nasnetalarge"),
    "albert_base_v2_hf": lambda: hf(
        "AlbertConfig", "AlbertForMaskedLM", text(384), hidden_size=768, num_attention_heads=12, intermediate_size=3072
    ),
    "bert_base_uncased_hf": lambda: hf("BertConfig", "BertForMaskedLM", text(384)),
    "distil_bert_base_uncased_hf": lambda: hf("DistilBertConfig", "DistilBertForMaskedLM", text(384)),
    "electra_bert_base_discrim_google": lambda: hf(
        "ElectraConfig",
        "ElectraForPreTraining",
        text(384),
        hidden_size=768,
        embedding_size=768,
        num_attention_heads=12,
        intermediate_size=3072,
    ),
    "mobile_bert_uncased_google": lambda: hf("MobileBertConfig", "MobileBertForMaskedLM", text(384)),
    "nomic_embed_text": lambda: hf("BertConfig", "BertModel", text(128)),
    "openai_clip": clip,
    "depth_anything": depth_anything,
    "depth_anything_v2": depth_anything,
    "segformer_base": segformer,
    "video_mae": lambda: hf(
        "VideoMAEConfig",
        "VideoMAEForVideoClassification",
        {"pixel_values": ((1, 16, 3, 224, 224), FLT)},
        num_labels=400,
    ),
    "trocr/TrOCREncoder": lambda: hf(
        "DeiTConfig",
        "DeiTModel",
        {"pixel_values": ((1, 3, 384, 384), FLT)},
        hidden_size=384,
        num_attention_heads=6,
        intermediate_size=1536,
        image_size=384,
    ),
    "trocr/TrOCRDecoder": trocr_decoder,
    "huggingface_wavlm_base_plus": lambda: hf("WavLMConfig", "WavLMModel", {"input_values": ((1, 160000), FLT)}),
    "whisper_tiny/HfWhisperEncoder": lambda: whisper_encoder(384, 4, 6),
    "whisper_base/HfWhisperEncoder": lambda: whisper_encoder(512, 6, 8),
    "whisper_small/HfWhisperEncoder": lambda: whisper_encoder(768, 12, 12),
    "whisper_small_quantized/WhisperSmallEncoderQuantizable": lambda: whisper_encoder(768, 12, 12),
    "whisper_large_v3_turbo/HfWhisperEncoder": lambda: whisper_encoder(1280, 32, 20, 128),
    "whisper_tiny/HfWhisperDecoder": lambda: whisper_decoder(384, 4, 6),
    "whisper_base/HfWhisperDecoder": lambda: whisper_decoder(512, 6, 8),
    "whisper_small/HfWhisperDecoder": lambda: whisper_decoder(768, 12, 12),
    "whisper_small_quantized/WhisperSmallDecoderQuantizable": lambda: whisper_decoder(768, 12, 12),
    "whisper_large_v3_turbo/HfWhisperDecoder": lambda: whisper_decoder(1280, 4, 20),
    "opus_mt_en_es/OpusMTEncoder": lambda: marian_encoder(65001),
    "opus_mt_es_en/OpusMTEncoder": lambda: marian_encoder(65001),
    "opus_mt_en_zh/OpusMTEncoder": lambda: marian_encoder(65001),
    "opus_mt_zh_en/OpusMTEncoder": lambda: marian_encoder(65001),
    "opus_mt_en_es/OpusMTDecoder": lambda: marian_decoder(65001),
    "opus_mt_es_en/OpusMTDecoder": lambda: marian_decoder(65001),
    "opus_mt_en_zh/OpusMTDecoder": lambda: marian_decoder(65001),
    "opus_mt_zh_en/OpusMTDecoder": lambda: marian_decoder(65001),
    "stable_diffusion_v1_5/text_encoder": sd_text,
    "stable_diffusion_v1_5/unet": sd_unet,
    "stable_diffusion_v1_5/vae": sd_vae,
    "yolov8_det": lambda: (nets.YoloV8(), image(3, 640, 640)),
    "yolov8_seg": lambda: (nets.YoloV8(masks=32), image(3, 640, 640)),
    "fastsam_s": lambda: (nets.YoloV8(width=0.5, classes=1, masks=32), image(3, 640, 640)),
    "unet_segmentation": lambda: (nets.UNet(), image(3, 640, 1280)),
    "real_esrgan_x4plus": lambda: (nets.RRDBNet(), image(3, 128, 128)),
    "xlsr": lambda: (nets.XLSR(), image(3, 128, 128)),
    "yamnet": lambda: (nets.YamNet(), image(1, 96, 64)),
    "pspnet": lambda: (nets.PSPNet(), image(3, 473, 473)),
    "deeplabv3_plus_mobilenet": lambda: (nets.DeepLabPlus(), image(3, 520, 520)),
    "cavaface": lambda: (nets.IRSE100(), image(3, 112, 112)),
    "posenet_mobilenet": lambda: (nets.PoseNet(), image(3, 513, 257)),
    "aotgan": lambda: (nets.AOTGAN(), [torch.zeros(1, 3, 512, 512), torch.zeros(1, 1, 512, 512)]),
    "midas": lambda: (nets.MidasSmall(), image(3, 256, 256)),
    "deepbox/VGG3DDetection": lambda: tv("vgg19_bn"),
    **{
        f"ane/{name}": partial(fused, name, side)
        for name, side in (
            *((f"mobileone_s{n}", 224) for n in range(5)),
            ("efficientformerv2_s0", 224),
            ("efficientformerv2_s1", 224),
            *((f"fastvit_{n}", 256) for n in ("t8", "t12", "s12", "sa12", "sa24", "sa36", "ma36")),
            ("efficientformerv2_s2", 224),
            ("efficientformerv2_l", 224),
            ("efficientformer_l1", 224),
            ("efficientformer_l3", 224),
            ("efficientformer_l7", 224),
            ("mobilenetv2_140", 224),
            ("repvit_m0_9", 224),
            ("repvit_m1_0", 224),
            ("repvit_m1_1", 224),
            ("repvit_m1_5", 224),
            ("repvit_m2_3", 224),
            ("mobilevitv2_100", 256),
            ("mobilenetv2_100", 224),
            ("resnet50", 224),
        )
    },
    "ane/distilbert": lambda: hf("DistilBertConfig", "DistilBertForSequenceClassification", text(128)),
}


# What is deployed picks the word inside and gives one number, where ours gives the scores of the whole vocabulary.
TOKEN_ONLY = ("albert_base_v2_hf", "bert_base_uncased_hf", "distil_bert_base_uncased_hf", "mobile_bert_uncased_google")


def main() -> None:
    with open(FOLDER / "ai_hub_models.csv", newline="", encoding="utf-8") as file:
        published = {row["model"]: row["params_m"] for row in csv.DictReader(file)}
    tables: dict[str, Any] = {}
    for name, build in {**CASES, **estimator_repos.cases(Path(sys.argv[2]))}.items():
        try:
            try:
                with torch.device("meta"):
                    network, inputs, *call = build()
                table = record_operators(call[0] if call else network, inputs, network.eval())
            except (RuntimeError, NotImplementedError):  # looks at values while it is built or run
                network, inputs, *call = build()
                table = record_operators(call[0] if call else network, inputs, network.eval())
        except Exception:
            print(f"{name}: FAILED\n{traceback.format_exc(limit=-3)}")
            continue
        if name in TOKEN_ONLY:
            table = replace(table, ports=0.0)
        said = published.get(name.split("/")[0], "")
        print(
            f"{name:58}{table.macs / 1e9:9.3f} GMACs {table.parameters / 1e6:8.2f} M parameters (published {said})"
            f" {dict(table.unknown) or ''}"
        )
        tables[name] = table.to_data()
    for name, table in estimator_ncnn.read_all(Path(sys.argv[1])).items():
        print(f"{name:58}{table.macs / 1e9:9.3f} GMACs {table.parameters / 1e6:8.2f} M parameters")
        tables[name] = table.to_data()
    FOLDER.mkdir(exist_ok=True)
    data = json.dumps(tables, sort_keys=True, separators=(",", ":")).encode()
    with open(FOLDER / "graphs.json.gz", "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
        packed.write(data)
    print(len(tables), "graphs")


if __name__ == "__main__":
    main()
