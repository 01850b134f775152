"""A Stable Diffusion pipeline of the smallest size that has all its parts, with random weights.

It shows the mechanics of `lora` in seconds on a CPU, without a download. It draws nothing that looks like anything.
"""

import json
import string
import tempfile
from pathlib import Path

import torch

try:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
except ImportError as error:
    raise ImportError("Stable Diffusion needs diffusers, peft and transformers: pip install 'callkit[lora]'") from error

WIDTH = 32  # of the text embedding, and of the U-Net's outer level
LATENTS = 4  # channels of a latent image
TOKENS = 32  # characters of a prompt, and two for its beginning and end


def tokenizer() -> CLIPTokenizer:
    """One token per letter or digit: byte pairs without a single merge."""
    characters = string.ascii_lowercase + string.digits
    words = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
        Path(folder, "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)


def pipeline(seed: int = 0) -> StableDiffusionPipeline:
    """Text encoder, U-Net, autoencoder (images of 16 x 16 to latents of 8 x 8) and Stable Diffusion's scheduler."""
    words = tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(seed)
        pipe = StableDiffusionPipeline(
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                block_out_channels=(16, 32),
                norm_num_groups=8,
                sample_size=16,
                latent_channels=LATENTS,
                scaling_factor=5.0,
            ),
            text_encoder=CLIPTextModel(text),
            tokenizer=words,
            unet=UNet2DConditionModel(
                sample_size=8,
                in_channels=LATENTS,
                out_channels=LATENTS,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                block_out_channels=(WIDTH, WIDTH),
                layers_per_block=1,
                cross_attention_dim=WIDTH,
                attention_head_dim=4,  # by its name; in Stable Diffusion it is the number of heads
                norm_num_groups=8,
            ),
            scheduler=DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        # As after training: a nearly deterministic encoder, and scaled latents of about zero mean and unit variance.
        last = pipe.vae.quant_conv
        last.weight[LATENTS:], last.bias[LATENTS:] = 0, -12
        grey = pipe.vae.encode(torch.zeros(1, 3, 16, 16)).latent_dist.mean
        last.bias[:LATENTS] -= grey.mean((0, 2, 3))
    pipe.set_progress_bar_config(disable=True)
    return pipe
