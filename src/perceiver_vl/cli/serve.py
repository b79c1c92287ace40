"""`perceiver-vl serve`: the page and the HTTP interface."""

from pathlib import Path
from typing import Annotated

import typer

from perceiver_vl.cli.options import ThreadsOption, require_extra
from perceiver_vl.utils.console import err, out
from perceiver_vl.utils.threads import count_threads


def serve(
    index: Annotated[
        list[str], typer.Option(help="Index: a folder, or s3://bucket/index (may be repeated, for one model's).")
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own needs a token.")
    ] = "127.0.0.1",
    host_name: Annotated[
        list[str] | None,
        typer.Option(
            "--host-name", metavar="NAME", help="A name by which it is called, as in a proxy (may be repeated)."
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="File with the token (default: PERCEIVER_VL_TOKEN, or a new one, printed)."),
    ] = None,
    certificate: Annotated[Path | None, typer.Option("--tls-certificate", help="Certificate, as PEM.")] = None,
    key: Annotated[Path | None, typer.Option("--tls-key", help="Its key, as PEM.")] = None,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="A proxy in front speaks TLS, and says who asks (X-Forwarded-For).")
    ] = False,
    root: Annotated[
        list[Path] | None,
        typer.Option("--root", metavar="FOLDER", help="Also serve files that links in the media folder lead to here."),
    ] = None,
    ask_model: Annotated[
        Path | None,
        typer.Option("--ask-model", help="Model that answers questions (default: the index's, by choices)."),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Where the index's model is now, if it has moved.")] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="No updates of the index from the page.")] = False,
    rate: Annotated[float, typer.Option(min=0, help="Requests a second of one client; 0: any number.")] = 50.0,
    gather: Annotated[
        float, typer.Option(min=0, max=1000, help="Milliseconds to wait for others to be answered together.")
    ] = 3.0,
    most_at_once: Annotated[int, typer.Option("--most-at-once", min=1, help="Requests answered together.")] = 32,
    most_waiting: Annotated[int, typer.Option("--most-waiting", min=1, help="Requests that may wait.")] = 256,
    patience: Annotated[float, typer.Option(min=0.1, help="Seconds that a request may wait for its turn.")] = 10.0,
    most_upload: Annotated[int, typer.Option("--most-upload", min=1, help="Megabytes of an upload.")] = 64,
    vision_cache: Annotated[
        int, typer.Option("--vision-cache", min=0, help="Megabytes for clips that were asked about.")
    ] = 512,
    threads: ThreadsOption = None,
) -> None:
    """Serve a page to search, watch and ask, and an HTTP interface, on this machine."""
    require_extra("starlette", "serve")
    from perceiver_vl.serve.run import serve as run
    from perceiver_vl.serve.settings import ServeSettings, UploadLimits, find_token
    from perceiver_vl.serve.worker import QueueSettings

    token, is_new = find_token(host, token_file, behind_proxy)
    settings = ServeSettings(
        tuple(index),
        host,
        port,
        model,
        ask_model,
        token,
        tuple(host_name or ()),
        behind_proxy,
        certificate,
        key,
        tuple(root or ()),
        rate,
        burst=max(200.0, 4 * rate),
        can_index=not read_only,
        vision_cache_bytes=vision_cache << 20,
        threads=count_threads(threads),
        queue=QueueSettings(most_waiting, patience, most_at_once, gather / 1e3),
        uploads=UploadLimits(most_bytes=most_upload << 20),
    )

    def say(address: str) -> None:
        if token is not None and is_new:
            err.print("the token is in the address; keep it to yourself")
        out.print(f"{address}?token={token}" if token is not None and is_new else address)
        out.file.flush()

    run(settings, say)
