"""The one filter with which every picture and every frame is resized."""

import numpy as np

from perceiver_vl.media.sampling import Frames


def resize_frame(frame: Frames, size: tuple[int, int]) -> Frames:
    """(H, W, 3) uint8 → (*size, 3) uint8, squashed: Pillow's bicubic, antialiased, as torch computes it.

    Torch needs a quarter to a tenth of Pillow's time; one value in about 200 differs, by one level of 255.
    """
    if frame.shape[:2] == size:
        return frame
    import torch  # here, so that who looks at a file in its own size does not wait for it
    from torch.nn import functional as F

    frame = np.require(frame, requirements=["C", "W"])  # torch would warn of an array that is read-only
    planes = torch.from_numpy(frame).permute(2, 0, 1)[None]  # (1, 3, H, W), channels last in memory
    resized = F.interpolate(planes, size=size, mode="bicubic", antialias=True)
    result: Frames = np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())
    return result
