"""What preparing is worth: processor time for sampling frames from a clip as it is filmed, and prepared.

    python scripts/prepare.py

The clip: 20 s of 640x360 at 30 frames a second, moving and noisy, H.264 with a keyframe every 5 s. Sampled: 8 and 64
frames at 224x224. Runs of all are interleaved; the median of each is shown, and its ratio to the raw clip's. The
difference is that of the sampled pixels (0..255, mean) from the raw clip's at the same moments.
"""

import argparse
import platform
import statistics
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from perceiver_vl.data.folder import read_folder
from perceiver_vl.data.transcode.one_file import TranscodeSettings
from perceiver_vl.data.transcode.prepare import prepare
from perceiver_vl.media.decode import decoder_version, load_clip

SETTINGS = {
    "jpeg 256": TranscodeSettings(),
    "jpeg 224x224": TranscodeSettings(size=(224, 224)),
    "h264 256": TranscodeSettings(format="h264"),
    "h264 256, all keyframes": TranscodeSettings(format="h264", keyframes=1),
    "h264 224x224": TranscodeSettings(size=(224, 224), format="h264"),
}
SIZE = (224, 224)


def film(path: Path, seconds: int, seed: int) -> None:
    """Write the raw clip."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:360, 0:640]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"g": "150", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for t in range(30 * seconds):
            waves = np.sin(x / 40 + t / 10), np.sin(y / 30 + t / 13), np.sin((x + y) / 50 - t / 7)
            pixels = 127 + 100 * np.stack(waves, axis=-1) + rng.normal(0, 12, (360, 640, 3))
            frame = av.VideoFrame.from_ndarray(pixels.clip(0, 255).astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = t, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def milliseconds(path: Path, count: int) -> float:
    """Of processor time, for `count` frames."""
    begun = time.process_time()
    load_clip(path, count, size=SIZE)
    return 1e3 * (time.process_time() - begun)


def difference(raw: Path, path: Path) -> float:
    """Mean difference of the pixels of 8 frames from those of the raw clip at the same times."""
    small = load_clip(path, 8, size=SIZE)
    wanted = load_clip(raw, timestamps=small.timestamps.tolist(), size=SIZE)
    return float(np.abs(small.frames.astype(int) - wanted.frames).mean())


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "raw").mkdir()
        film(folder / "raw" / "clip.mp4", chosen.seconds, chosen.seed)
        files = {"raw": folder / "raw" / "clip.mp4"}
        for label, settings in SETTINGS.items():
            prepare(read_folder(folder / "raw", need=None), folder / label, settings)
            files[label] = folder / label / "clip.mp4"
        times: dict[tuple[str, int], list[float]] = {(label, count): [] for label in files for count in (8, 64)}
        for _ in range(chosen.runs):
            for label, count in times:
                times[label, count].append(milliseconds(files[label], count))
        print("| file | MB | 8 frames, ms | times less | 64 frames, ms | times less | difference |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for label, path in files.items():
            cells = [label, f"{path.stat().st_size / 1e6:.1f}"]
            for count in (8, 64):
                median = statistics.median(times[label, count])
                cells += [f"{median:.1f}", f"{statistics.median(times['raw', count]) / median:.0f}"]
            print(f"| {' | '.join(cells)} | {difference(files['raw'], path):.1f} |")
        print(f"{chosen.runs} interleaved runs, seed {chosen.seed}; {platform.machine()}; {decoder_version()}")


if __name__ == "__main__":
    main()
