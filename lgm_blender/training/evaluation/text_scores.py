"""Whether pictures show what a text says: CLIP's opinion where a CLIP is here, and retrieval, which needs none."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.errors import LGMError
from ...worker.weights import File, Weights
from ..loops.lpips import LPIPS

# Looked for in the Hugging Face cache, the first choice first; nothing is fetched.
CLIPS = ("openai/clip-vit-large-patch14", "openai/clip-vit-base-patch16", "openai/clip-vit-base-patch32")
_CLIP_FILES = ("config.json", "model.safetensors", "preprocessor_config.json", "vocab.json", "merges.txt")


class ClipScore:
    """CLIP score (Hessel et al., EMNLP 2021), on torchmetrics' scale: 100 · max(cosine, 0) of picture and text.

    Args:
        folder: Of a CLIP model in transformers' layout.
        device: Where it runs.

    Raises:
        LGMError: If its files are damaged or of another model.
    """

    def __init__(self, folder: Path, device: str):
        import transformers
        from transformers import CLIPModel, CLIPTokenizer

        # The plain name is another implementation where torchvision is installed, with other results.
        processor = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
        model, found = CLIPModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        # Older files hold the positions' buffers; anything else that does not fit would be random weights.
        if missing := set(found["missing_keys"]) | {k for k in found["unexpected_keys"] if "position_ids" not in k}:
            raise LGMError(
                f"The CLIP in {folder} does not fit this transformers: {min(missing)}. Fetch it again.", "weights"
            )
        self.model = model.to(device).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        self.processor = processor.from_pretrained(folder, local_files_only=True)

    @staticmethod
    def find() -> tuple[str, Path] | None:
        """The name and folder of a CLIP in the Hugging Face cache."""
        for name in CLIPS:
            folder, _ = Weights({file: File() for file in _CLIP_FILES}, repository=name).locate()
            if folder is not None:
                return name, folder
        return None

    @torch.inference_mode()
    def __call__(self, pictures: Tensor, text: str) -> float:
        """The mean score of pictures [V, 3, H, W] in 0 to 1."""
        tokens = self.tokenizer([text], truncation=True, max_length=77, return_tensors="pt")
        images = [(p.permute(1, 2, 0) * 255).round().byte().cpu().numpy() for p in pictures]
        pixels = self.processor(images, return_tensors="pt").pixel_values
        device = self.model.device
        output = self.model(tokens.input_ids.to(device), pixels.to(device), tokens.attention_mask.to(device))
        cosine = F.cosine_similarity(output.image_embeds, output.text_embeds)
        return (100 * cosine.clamp_min(0)).mean().item()


class Retrieval:
    """Which of the ground-truth objects do generated views look most like? A text's own should come first.

    R-precision (Park et al., NeurIPS 2021; Jain et al., CVPR 2022) compares pictures with texts and needs CLIP. Here
    pictures are compared with pictures of the object whose caption the text is: by LPIPS's two deepest features, their
    mean over all places and views, each number in standard deviations over the objects, by cosine.

    Args:
        lpips: The network.
        objects: The ground-truth objects' four views at elevation 0, [4, 3, H, W] each.
    """

    def __init__(self, lpips: LPIPS, objects: list[Tensor]):
        self.lpips = lpips
        found = torch.stack([self._describe(pictures) for pictures in objects])
        self.mean, self.deviation = found.mean(0), found.std(0, correction=0).clamp_min(1e-6)
        self.objects = F.normalize((found - self.mean) / self.deviation, dim=1)

    @torch.inference_mode()
    def rank(self, pictures: Tensor, own: int) -> int:
        """The rank from 1 of the object `own` for pictures [4, 3, H, W] in 0 to 1."""
        described = F.normalize((self._describe(pictures) - self.mean) / self.deviation, dim=0)
        alike = self.objects @ described
        return int((alike > alike[own]).sum()) + 1

    @torch.inference_mode()
    def _describe(self, pictures: Tensor) -> Tensor:
        return torch.cat([depth.mean((0, 2, 3)) for depth in self.lpips.features(pictures)[-2:]])
