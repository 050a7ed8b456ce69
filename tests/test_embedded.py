"""The embedded model as shipped, its judge, and the programs that train it. The font is not needed."""

import itertools
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgediff.embedded import vae_training
from edgediff.embedded.contact_sheet import CELL, COLUMNS, draw_sheet
from edgediff.embedded.denoiser_training import Captions, Denoiser, make_text_encoder, make_unet, train_denoiser
from edgediff.embedded.evaluation import choose_prompts
from edgediff.embedded.glyphs import HERE, SIZE, draw_glyphs, find_font, load_glyphs
from edgediff.embedded.judge import JUDGE, SAME, frechet_distance, load_judge
from edgediff.embedded.package import LARGEST, MODEL, swap_in
from edgediff.embedded.tokenizer_training import END, LENGTH, START, merge_pair, spell, split_words, write_tokenizer
from edgediff.embedded.training_loop import Training, load_average
from edgediff.embedded.training_settings import Budget, Settings, pick_device
from edgediff.embedded.vae_training import encode_pictures, make_vae, measure_psnr, normalise_latents, train_vae
from edgediff.errors import EdgeDiffError

SHEET = HERE / "contact_sheet.png"
GLYPHS = load_glyphs()


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(MODEL / "tokenizer")


@pytest.fixture(scope="module")
def judge():
    return load_judge()


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Eight discs of different colours and places, uint8 (8, 64, 64, 3)."""
    rows = np.arange(SIZE)
    disc = lambda i: (rows[:, None] - 20 - 3 * i) ** 2 + (rows[None] - 44 + 3 * i) ** 2 < 200  # noqa: E731
    colours = np.random.default_rng(0).integers(0, 200, (8, 3))
    drawn = [np.where(disc(i)[..., None], colours[i], 255) for i in range(8)]
    return torch.from_numpy(np.stack(drawn).astype(np.uint8))


# --- what is shipped ---------------------------------------------------------------------------------------------


def test_captions_are_unique_and_ids_are_positions():
    assert [glyph.id for glyph in GLYPHS] == list(range(1693))
    names = [name for glyph in GLYPHS for name in (glyph.primary, *glyph.alternatives)]
    assert len(set(names)) == len(names)
    assert all(name == name.lower().strip() and "_" not in name for name in names)


def test_primary_captions_round_trip_through_the_tokenizer(tokenizer):
    for glyph in GLYPHS:
        ids = tokenizer(glyph.primary).input_ids
        assert len(ids) <= LENGTH and ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == glyph.primary.replace(" ", "")


def test_tokenizer_ids_are_stable(tokenizer):
    assert tokenizer("Slice of  PIZZA").input_ids == [1998, 1691, 659, 517, 727, 898, 320, 1999]
    assert (len(tokenizer), tokenizer.model_max_length, tokenizer.pad_token_id) == (2000, LENGTH, 1999)
    assert tokenizer("", padding="max_length").input_ids == [1998] + [1999] * 23


def test_the_shipped_tokenizer_is_what_training_writes(tmp_path):
    """Its first forty merges: all of them take a minute."""
    write_tokenizer([name for glyph in GLYPHS for name in (glyph.primary, *glyph.alternatives)], tmp_path, 514 + 40)
    merges = (tmp_path / "merges.txt").read_text(encoding="utf-8")
    assert (MODEL / "tokenizer" / "merges.txt").read_text(encoding="utf-8").startswith(merges)
    assert len(merges.splitlines()) == 41
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / name).read_bytes() == (MODEL / "tokenizer" / name).read_bytes(), name


def test_plain_clip_rules_give_the_same_ids(tokenizer):
    folder = MODEL / "tokenizer"
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    ranks = {tuple(line.split()): rank for rank, line in enumerate(lines)}

    def encode(word: str) -> list[int]:
        symbols = spell(word)
        while known := [pair for pair in itertools.pairwise(symbols) if pair in ranks]:
            symbols = merge_pair(symbols, min(known, key=ranks.__getitem__))
        return [vocabulary[symbol] for symbol in symbols]

    for text in ["red apple", "Côte d'Ivoire!!", "it's a  2x2 \n grid", "日本 ok", *(g.primary for g in GLYPHS[::40])]:
        middle = [row for word in split_words(text) for row in encode(word)]
        assert tokenizer(text).input_ids == [vocabulary[START], *middle, vocabulary[END]], text


def test_the_package_loads_in_diffusers_and_draws():
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(MODEL, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("red apple", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert image.size == (SIZE, SIZE)
    assert pipeline.unet.config.block_out_channels == [48, 96, 192]
    assert pipeline.scheduler.config.prediction_type == "v_prediction"


def test_the_package_is_small_half_precision_and_licensed():
    from safetensors import safe_open

    files = [path for path in MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LARGEST
    assert sum(path.stat().st_size for path in JUDGE.iterdir()) <= 1_500_000
    for path in (path for path in files if path.suffix == ".safetensors"):
        with safe_open(path, "pt") as tensors:
            assert {tensors.get_slice(key).get_dtype() for key in tensors.keys()} == {"F16"}  # noqa: SIM118
    assert "SIL OPEN FONT LICENSE" in (MODEL / "OFL.txt").read_text(encoding="utf-8")


def test_shipped_latents_are_normalised_so_that_no_scale_is_needed():
    config = json.loads((MODEL / "vae" / "config.json").read_text(encoding="utf-8"))
    assert config["scaling_factor"] == 1.0 and config.get("shift_factor") is None


# --- the judge ---------------------------------------------------------------------------------------------------


def read_sheet() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(real, made, captions) cut out of the committed contact sheet."""
    sheet, captions = np.asarray(Image.open(SHEET).convert("RGB")), choose_prompts(64)
    corners = [((i % COLUMNS) * CELL[0] + 4, (i // COLUMNS) * CELL[1] + 4) for i in range(len(captions))]
    real = np.stack([sheet[y : y + SIZE, x : x + SIZE] for x, y in corners])
    made = np.stack([sheet[y : y + SIZE, x + SIZE + 2 : x + 2 * SIZE + 2] for x, y in corners])
    return real, made, captions


def test_the_judge_finds_its_own_glyphs_and_knows_the_model_s(judge):
    real, made, captions = read_sheet()
    assert judge.retrieval_at_1(real, captions) == 1.0
    rows = [judge.names.index(name) for name in captions]
    assert (judge.embed(real) * judge.gallery[rows]).sum(axis=1).min() > SAME
    assert judge.retrieval_at_1(made, captions) >= 0.6
    assert judge.frechet(real) < judge.frechet(made)


def test_judge_reads_bytes_and_floats_alike(judge):
    real, _, _ = read_sheet()
    signal = torch.from_numpy(real.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
    np.testing.assert_allclose(judge.embed(real), judge.embed(signal), atol=1e-6)
    assert judge.names == tuple(glyph.primary for glyph in GLYPHS)
    np.testing.assert_allclose(np.linalg.norm(judge.gallery, axis=1), 1, atol=1e-5)


def test_flags_with_the_same_picture_count_as_one(judge):
    norway, bouvet = (judge.names.index(f"flag of {name}") for name in ("norway", "bouvet island"))
    assert judge.gallery[norway] @ judge.gallery[bouvet] > SAME


def test_frechet_distance_of_gaussians():
    draw = np.random.default_rng(0).normal(size=(4000, 3))
    assert frechet_distance(draw, draw) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(draw + np.array([2, 0, 0]), draw) == pytest.approx(4, abs=1e-6)
    assert frechet_distance(2 * draw, draw) == pytest.approx(np.trace(np.cov(draw, rowvar=False)), rel=0.01)


def test_judge_refuses_what_it_cannot_judge(judge):
    blank = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    with pytest.raises(EdgeDiffError, match="1 prompts; give one prompt per picture"):
        judge.retrieval_at_1(blank, ["red apple"])
    with pytest.raises(EdgeDiffError, match="not a glyph's primary caption"):
        judge.retrieval_at_1(blank, ["red apple", "a red apple on a table"])
    with pytest.raises(EdgeDiffError, match=r"uint8 \(n, 64, 64, 3\) or floats .* not torch.uint8 \(2, 32, 32, 3\)"):
        judge.embed(blank[:, ::2, ::2])
    with pytest.raises(EdgeDiffError, match="two pictures or more"):
        judge.frechet(blank[:1])
    with pytest.raises(EdgeDiffError, match="is missing"):
        load_judge(Path("nowhere"))


# --- training ----------------------------------------------------------------------------------------------------


def settings(folder: Path, steps: int = 6, **changes) -> Settings:
    return Settings(
        **{
            "name": "micro",
            "folder": folder,
            "budget": Budget(steps=steps),
            "batch": 4,
            "rate": 1e-3,
            "workers": 2,
            **changes,
        }
    )


def micro_denoiser(tokenizer) -> Denoiser:
    torch.manual_seed(0)
    unet = make_unet(block_out_channels=(16, 16, 16), layers_per_block=1, cross_attention_dim=32, attention_head_dim=1)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = make_text_encoder(tokenizer, **sizes)
    return Denoiser(unet, text)


def test_a_stopped_training_continues_exactly(tmp_path, tokenizer, monkeypatch):
    latents = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    captions = Captions(tokenizer, GLYPHS[:8])
    whole = train_denoiser(micro_denoiser(tokenizer), latents, captions, settings(tmp_path / "whole"))

    take_step = Training._take_step

    def press_ctrl_c(self, done):
        if self.step == 2:
            signal.raise_signal(signal.SIGINT)
        take_step(self, done)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_take_step", press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            train_denoiser(micro_denoiser(tokenizer), latents, captions, settings(tmp_path / "halves"))
    assert torch.load(tmp_path / "halves" / "micro.pt", weights_only=True)["counts"][0] == 3
    halves = train_denoiser(micro_denoiser(tokenizer), latents, captions, settings(tmp_path / "halves"))
    assert all(torch.equal(whole[key], halves[key]) for key in whole)
    one, two = (torch.load(tmp_path / side / "micro.pt", weights_only=True) for side in ("whole", "halves"))
    assert all(torch.equal(a, b) for a, b in zip(one["generators"], two["generators"], strict=True))
    assert all(torch.equal(one["module"][key], two["module"][key]) for key in one["module"])
    assert one["counts"][0] == two["counts"][0] == 6


def test_training_the_vae_lowers_its_error_and_normalises_latents(tmp_path, pictures, monkeypatch):
    small = {**vae_training.CONFIG, "block_out_channels": (8, 8, 8), "norm_num_groups": 4}
    monkeypatch.setattr(vae_training, "CONFIG", small)
    torch.manual_seed(0)
    before = measure_psnr(make_vae().eval(), pictures)
    vae = train_vae(pictures, settings(tmp_path, steps=12, rate=1e-2))
    latents = encode_pictures(vae, pictures)
    assert measure_psnr(vae, pictures) > before
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)


def test_normalising_latents_leaves_the_pictures(pictures):
    torch.manual_seed(0)
    vae = make_vae(block_out_channels=(8, 8, 8), norm_num_groups=4).eval()
    latents = encode_pictures(vae, pictures)
    with torch.no_grad():
        before = vae.decode(latents).sample
        normalise_latents(vae, pictures)
        after = vae.decode(encode_pictures(vae, pictures)).sample
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-3)


def test_captions_are_drawn_in_the_stated_shares(tokenizer):
    captions = Captions(tokenizer, GLYPHS[:8])
    rows = torch.full((4000,), 1)
    drawn = captions.draw(rows, torch.Generator().manual_seed(0))
    share = {
        name: (drawn == captions.ids[row]).all(dim=1).float().mean().item()
        for name, row in (("empty", 0), ("primary", captions.first[1]), ("other", captions.first[1] + 1))
    }
    assert share == {
        "empty": pytest.approx(0.08, abs=0.02),
        "primary": pytest.approx(0.86, abs=0.03),
        "other": pytest.approx(0.06, abs=0.02),
    }


def test_training_says_what_is_wrong(tmp_path, tokenizer, monkeypatch):
    with pytest.raises(EdgeDiffError, match="needs hours > 0 or steps > 0"):
        Budget(hours=-1.0)
    with pytest.raises(EdgeDiffError, match="unknown device 'tpu'; it is one of auto, cpu, cuda"):
        pick_device("tpu")
    with pytest.raises(EdgeDiffError, match="a batch of 5 does not divide among 2 workers"):
        settings(tmp_path, batch=5)
    with pytest.raises(EdgeDiffError, match="train micro` first"):
        load_average(settings(tmp_path))
    Training(torch.nn.Linear(2, 2), lambda generator, count: None, settings(tmp_path)).save()
    with pytest.raises(EdgeDiffError, match=r"does not fit .* move it away to start anew"):
        Training(torch.nn.Linear(3, 3), lambda generator, count: None, settings(tmp_path))
    monkeypatch.setenv("EDGEDIFF_EMOJI_FONT", "nowhere.ttf")
    with pytest.raises(EdgeDiffError, match=r"looked at nowhere.ttf.*Only training needs it"):
        find_font()
    with pytest.raises(EdgeDiffError, match="Noto Color Emoji was not found"):
        draw_glyphs(["x"])
    with pytest.raises(EdgeDiffError, match="choose 1 to 1693 captions"):
        choose_prompts(0)


def test_a_diverging_loss_stops_the_run_and_names_the_checkpoint(tmp_path):
    model = torch.nn.Linear(1, 1, bias=False)
    training = Training(model, lambda generator, count: model.weight.sum() * float("nan"), settings(tmp_path))
    with pytest.raises(EdgeDiffError, match=r"micro.pt: the loss became nan at step 0"):
        training.run()


def test_folders_are_swapped_whole(tmp_path):
    for name, text in (("model", "old"), ("model.new", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text)
    swap_in(tmp_path / "model.new", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "file").read_text() == "new"


def test_a_sheet_holds_every_pair(pictures):
    sheet = draw_sheet(pictures.numpy(), pictures.numpy(), [f"disc {i}" for i in range(8)])
    assert sheet.size == (COLUMNS * CELL[0], CELL[1])
