"""Write parameters as a checkpoint that `OlmoeForCausalLM.from_pretrained` reads."""

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, OlmoeConfig

HERE = Path(__file__).parent
NANO = HERE.parent / "src" / "moescope" / "models" / "nano"
FILES = ("model.safetensors", "config.json", "generation_config.json")


def save_model(weights: dict[str, torch.Tensor], config: OlmoeConfig, folder: Path) -> None:
    """Write weights (as bfloat16), config.json and generation_config.json, each file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        scratch = Path(name)
        config = OlmoeConfig(**{**config.to_dict(), "architectures": ["OlmoeForCausalLM"], "dtype": "bfloat16"})
        config.save_pretrained(scratch)
        GenerationConfig(eos_token_id=config.eos_token_id, pad_token_id=config.eos_token_id).save_pretrained(scratch)
        tensors = {n: t.detach().cpu().to(torch.bfloat16).contiguous() for n, t in checkpoint_names(weights).items()}
        save_file(tensors, scratch / "model.safetensors", metadata={"format": "pt"})
        for file in FILES:
            (scratch / file).chmod(0o644)
            (scratch / file).replace(folder / file)


def checkpoint_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names used on disk: OLMoE checkpoints keep each expert's three matrices apart."""
    out: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        if name.endswith("experts.gate_up_proj"):
            base = name.removesuffix("gate_up_proj")
            for e, matrix in enumerate(tensor):
                gate, up = matrix.chunk(2)
                out |= {f"{base}{e}.gate_proj.weight": gate, f"{base}{e}.up_proj.weight": up}
        elif name.endswith("experts.down_proj"):
            base = name.removesuffix("down_proj")
            out |= {f"{base}{e}.down_proj.weight": matrix for e, matrix in enumerate(tensor)}
        elif name != "lm_head.weight":
            out[name] = tensor
    return out


def main() -> None:
    """Publish a snapshot, or the mean of several, as the embedded model."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("snapshots", type=Path, nargs="*", help="folders; default: the last one")
    parser.add_argument("--out", type=Path, default=NANO)
    options = parser.parse_args()
    folders = options.snapshots or sorted((HERE / "output" / "checkpoints").iterdir())[-1:]
    held = [load_file(f / "model.safetensors") for f in folders]
    options.out.mkdir(parents=True, exist_ok=True)
    mean = {n: torch.stack([h[n].float() for h in held]).mean(0).to(torch.bfloat16) for n in held[0]}
    partial = options.out / "model.safetensors.part"
    save_file(mean, partial, metadata={"format": "pt"})
    partial.chmod(0o644)
    partial.replace(options.out / "model.safetensors")
    for file in FILES[1:]:
        shutil.copy(folders[-1] / file, options.out / file)


if __name__ == "__main__":
    main()
