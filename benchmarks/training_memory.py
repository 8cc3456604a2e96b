"""Peak memory of a training step by pixel of a crop.

    python benchmarks/training_memory.py [width] [input_stride] [batch]

Prints bytes per pixel of the batch at the network's input resolution (crop pixels by
``input_stride`` squared): what ``plan.BYTES_PER_PIXEL`` is set from. On a GPU if there is one.
"""

import resource
import sys

import torch

from steelsight.models.config import Loss, Network
from steelsight.models.losses import training_loss
from steelsight.models.res_unet import build_network

WARM_UP_CROPS = 1


def peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def main() -> None:
    width, stride, batch = (float(a) for a in (sys.argv[1:] + ["1", "1", "8"][len(sys.argv) - 1 :]))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = build_network(4, Network(width=width, input_stride=int(stride))).to(device).train()
    optimiser = torch.optim.AdamW(network.parameters())
    before = 0
    for crops in (WARM_UP_CROPS, int(batch)):
        x = torch.randn(crops, 1, 256, 512, device=device)
        masks = torch.rand(crops, 4, 256, 512, device=device) > 0.95
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = network(x)
        training_loss(logits, masks, network.mask_stride, Loss(), 48).total.backward()
        optimiser.step()
        optimiser.zero_grad()
        if crops == WARM_UP_CROPS:
            before = peak_bytes()
    pixels = (batch - WARM_UP_CROPS) * 256 * 512 / stride**2
    print(f"{device}: peak {peak_bytes() / 1e9:.2f} GB with {batch:.0f} crops of 256 x 512 px,")
    print(f"{(peak_bytes() - before) / pixels:.0f} bytes per pixel beyond the first crop")


if __name__ == "__main__":
    main()
