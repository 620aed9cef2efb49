"""The command that starts the dashboard: Streamlit takes over this process."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import click

from .common import command, stop


@command("dashboard my-adapter other-adapter --port 8600")
@click.option("--port", type=click.IntRange(1, 65535), default=8501)
@click.option("--host", default="localhost", help="Address to listen on; 0.0.0.0 opens it to the network.")
@click.option(
    "--root",
    "roots",
    multiple=True,
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False),
    help="Visitors may open adapters below DIR by their path; repeatable.  [default: the working directory]",
)
@click.option("--base", metavar="DIR_OR_HUB_ID", help="The base model of adapters that need it (DoRA, HiRA …).")
@click.option("--fleet", metavar="RESULTS", help="The results of a sweep, for the page Fleet.")
@click.option("--public", is_flag=True, help="For strangers: no paths, no Hub, and limits, which the page About names.")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
def dashboard(
    paths: tuple[str, ...],
    port: int,
    host: str,
    roots: tuple[str, ...],
    base: str | None,
    fleet: str | None,
    public: bool,
) -> None:
    """Look at adapters in the browser: those at PATH..., or the bundled ones. Ctrl-C ends it."""
    from ..bundled import app_folder
    from ..extras import require

    try:
        require("dashboard", "dashboard", "streamlit", "cachetools")
        app = app_folder()
        trouble = _unavailable(host, port)
    except (FileNotFoundError, ImportError) as error:
        stop(error)
    if trouble is not None:
        stop(trouble)
    options = [f"--server.port={port}", f"--server.address={host}", "--server.headless=true"]
    # Absolute, so that no path looks like an option; a name that is not a path may be a Hub id.
    named = [os.path.abspath(path) if Path(path).exists() else path for path in paths]  # noqa: PTH100 (links stay)
    served = [f"--root={Path(root).resolve()}" for root in roots or (() if public else (".",))]
    if public:
        served.append("--public")
    if base is not None:
        served.append(f"--base={os.path.abspath(base) if Path(base).exists() else base}")  # noqa: PTH100
    if fleet is not None:
        served.append(f"--fleet={os.path.abspath(fleet) if Path(fleet).exists() else fleet}")  # noqa: PTH100
    script = str(app / "streamlit_app.py")
    arguments = [sys.executable, str(app / "server.py"), *options, script, "--", *served, "--", *named]
    sys.stdout.flush()
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the address that it prints is not a result
    # The server replaces this process, so that Ctrl-C and every other signal reach it.
    os.execv(sys.executable, arguments)


def _unavailable(host: str, port: int) -> str | None:
    """Why the server could not listen there, or None. Checked before Streamlit is loaded, which takes seconds."""
    import socket

    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        return f"--host {host}: not an address ({error.strerror}); expected localhost, 0.0.0.0 or one of this machine"
    reasons = []
    for family, kind, protocol, _, address in places:
        try:
            with socket.socket(family, kind, protocol) as probe:
                if os.name == "posix":  # a port that was just released counts as free, as for the server
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            reasons.append(error)
    taken = next((error for error in reasons if error.errno == errno.EADDRINUSE), None)
    if taken is not None:
        return f"--port {port}: another program uses it; choose another port, such as --port {port % 65535 + 1}"
    if len(reasons) == len(places):  # one of several (IPv6 beside IPv4) may be missing
        return f"--host {host} --port {port}: cannot listen there ({reasons[0].strerror}); choose another host or port"
    return None
