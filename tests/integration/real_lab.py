"""The real JupyterLab on a loopback port, as a fresh user starts it on a folder of notebooks."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.integration.asking import answers
from tests.integration.real_prometheus import wait_until

_SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # render cells outside the view
    "apputils-extension/notification": {"fetchNews": "false"},  # no prompt, no network
}


@dataclass(frozen=True)
class Lab:
    """Where it is, and the token that opens it."""

    url: str
    token: str

    def address(self, notebook: str) -> str:
        """The page that opens this notebook, and no other that was open before."""
        workspace = Path(notebook).stem
        return f"{self.url}/lab/workspaces/{workspace}/tree/{notebook}?token={self.token}"


@contextlib.contextmanager
def real_lab(notebooks: Path, home: Path) -> Iterator[Lab]:
    """JupyterLab while it runs, with a home of its own; its kernels end with it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lab = Lab(f"http://127.0.0.1:{port}", secrets.token_hex(16))
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        *("--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"),
        f"--IdentityProvider.token={lab.token}",
        f"--ServerApp.root_dir={notebooks}",
        "--LabApp.expose_app_in_browser=True",
        # Only Lab's own browser extensions: jupyter-scheduler, which tests use through its API, has
        # one that needs a later Lab.
        f"--LabApp.labextensions_path={home / 'labextensions'}",
    ]
    log = home / "lab.log"
    with (
        log.open("w") as file,
        subprocess.Popen(command, cwd=notebooks, env=_environment(home), stderr=file) as process,
    ):
        try:
            status = f"{lab.url}/api/status"
            wait_until(lambda: answers(status, token=lab.token), seconds=90)
            yield lab
        finally:
            process.terminate()


def _environment(home: Path) -> dict[str, str]:
    """The user's environment without this machine's Jupyter settings."""
    for name, settings in _SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JUPYTER")}
    return kept | {
        "HOME": str(home),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }
