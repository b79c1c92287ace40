"""A process of its own that decodes one upload, with limits on its memory and time: whatever the file does to a
decoder, it does it here. Run by `uploads`, as `python -m perceiver_vl.serve.decode_upload`.

Standard output: a line of JSON (`shape`, `duration`, or `error`), then the frames' bytes.
"""

import json
import resource
import sys
from pathlib import Path
from typing import Any


def main(path: str, name: str, frames: str, height: str, width: str, seconds: str, memory: str) -> None:
    """Decode at most so many frames of a file at this size, within so many seconds and bytes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 1))  # SIGXCPU, not SIGKILL, tells why
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it writes to a pipe alone
    import numpy as np
    from PIL import Image

    from perceiver_vl.media.decode import stream_clip
    from perceiver_vl.utils.errors import MediaError

    try:
        small = []
        for clip in stream_clip(path, int(frames), chunk=1):  # resized as `resize_frame` does, without torch
            small.append(Image.fromarray(clip.frames[0]).resize((int(width), int(height)), Image.Resampling.BICUBIC))
        about: dict[str, Any] = {"shape": (len(small), int(height), int(width), 3), "duration": clip.duration}
        data = b"".join(np.asarray(one).tobytes() for one in small)
    except MediaError as error:
        about, data = {"error": f"{name}: {error.reason.replace(path, Path(name).name)}"}, b""
    except MemoryError:
        about, data = {"error": f"{name}: needs more memory than an upload may have"}, b""
    sys.stdout.buffer.write(json.dumps(about).encode() + b"\n" + data)


if __name__ == "__main__":
    main(*sys.argv[1:])
