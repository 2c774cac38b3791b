"""Datasets behind a web server: nginx where it is installed, and one that knows no ranges."""

import functools
import http.server
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import shardstream
from shardstream import StorageError

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
CONFIGURATION = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
  access_log {folder}/access.log;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """nginx serves a folder: its URL, and its log."""
    if NGINX is None:
        pytest.skip("needs nginx (Debian: nginx-light)")
    folder = tmp_path / "nginx"
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = CONFIGURATION.format(folder=folder, port=port, root=tmp_path)
    if Path.home().stat().st_uid == 0:  # root's workers would become nobody, who may not read here
        text = "user root;" + text
    (folder / "nginx.conf").write_text(text, "utf-8")
    with subprocess.Popen([NGINX, "-c", folder / "nginx.conf"], stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(1000):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None, (folder / "error.log").read_text("utf-8")
                time.sleep(0.01)
            yield f"http://127.0.0.1:{port}", folder / "access.log"
        finally:
            process.terminate()


def test_a_web_server_is_a_store(nginx: tuple[str, Path], write_dataset, tokens, tmp_path: Path) -> None:
    """A dataset behind a web server opens with one request, and reads like a local one, with a cache and without."""
    url, log = nginx
    write_dataset(tokens)

    dataset = shardstream.open(f"{url}/dataset", cache_dir=tmp_path / "cache")
    assert log.read_text("utf-8").count("GET") == 1
    assert np.array_equal(dataset[:], tokens)
    assert np.array_equal(shardstream.open(f"{url}/dataset", cache_dir=False).windows([5, 900], 100)[1], tokens[900:])
    assert dataset.verify().ok


def test_what_a_web_server_does_not_have_is_said(nginx: tuple[str, Path]) -> None:
    """A dataset that is not there is an error at once that says what was looked for."""
    url, _ = nginx

    with pytest.raises(StorageError, match="nowhere/manifest.json: cannot read: there is no such file; a dataset is"):
        shardstream.open(f"{url}/nowhere")


def test_a_server_without_ranges_is_refused(write_dataset, tokens, tmp_path: Path) -> None:
    """A server that sends whole files whatever is asked for is an error that says so, not a slow dataset."""
    write_dataset(tokens)

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Silent, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            dataset = shardstream.open(f"http://127.0.0.1:{server.server_port}/dataset", cache_dir=False)
            with pytest.raises(
                StorageError, match="128 bytes came where 20 were asked for; the server takes no ranges"
            ):
                dataset[:10]
        finally:
            server.shutdown()
            thread.join()
