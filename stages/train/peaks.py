"""The most arithmetic that a GPU can do, by its name and the precision of the matrix products, for MFU.

MFU (Chowdhery et al., 2022) is the arithmetic of the model, model/size.py, over this peak. Dense figures in
TFLOP/s from the vendors' data sheets: without sparsity, at the boost clock, fp16 and bf16 with fp32 sums,
fp32 without TF32, which training does not use. Under a power limit no kernel reaches them: an H200 held
672 of its 989 for minutes.

Example: an H200 that trains 182,000 tokens a second at 2.6 GFLOP a token does 473 TFLOP/s: MFU 48% in bf16.
"""

from __future__ import annotations

import re

# name: (fp32, fp16 and bf16, fp8); 0 = the device cannot. The first name that stands in the device's counts.
PEAKS = {
    "GB300": (80, 2500, 5000),
    "B300": (77, 2250, 4500),
    "GB200": (80, 2500, 5000),
    "B200": (75, 2250, 4500),
    "GH200": (67, 989, 1979),
    "H200": (67, 989, 1979),
    "H100 NVL": (60, 835, 1671),
    "H100 PCIe": (51, 756, 1513),
    "H100": (67, 989, 1979),
    "H800": (67, 989, 1979),
    "H20": (44, 148, 296),
    "A100": (19.5, 312, 0),
    "A800": (19.5, 312, 0),
    "L40S": (91.6, 362, 733),
    "L40": (90.5, 181, 362),
    "L4": (30.3, 121, 242),
    "A40": (37.4, 150, 0),
    "A30": (10.3, 165, 0),
    "A10G": (35, 70, 0),
    "A10": (31.2, 125, 0),
    "RTX 6000 Ada": (91.1, 364, 728),
    "RTX A6000": (38.7, 155, 0),
    "RTX 5090": (104.8, 209.5, 419),
    "RTX 4090": (82.6, 165.2, 330.3),
    "RTX 4080": (48.7, 97.5, 194.9),
    "RTX 3090": (35.6, 71, 0),
    "V100": (15.7, 125, 0),
    "T4": (8.1, 65, 0),
}
COLUMN = {"fp32": 0, "fp16": 1, "bf16": 1, "fp8": 2}


def peak_flops(name: str, precision: str) -> float | None:
    """FLOP/s of the device with this name, as CUDA tells it, or None where nobody knows."""
    for known, peaks in PEAKS.items():
        if re.search(rf"\b{known}\b", name):
            return peaks[COLUMN[precision]] * 1e12 or None
    return None
