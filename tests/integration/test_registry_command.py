"""`cdc registry` as a real process."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from cdc.log.embedded import EmbeddedLog


def get(url: str) -> tuple[int, Any]:
    try:
        answer = urlopen(url, timeout=5)
    except HTTPError as error:
        answer = error
    with answer:
        return answer.status, json.loads(answer.read())


def test_it_waits_for_the_log_serves_it_and_stops(tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    file.write_text("pipeline: shop\nsource: postgresql://nobody@127.0.0.1:1/none\nlog: ./shop.log\n")
    command = [sys.executable, "-m", "cdc", "registry", str(file), "--bind", "127.0.0.1:0", "--log-format", "json"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        url = next(found[0] for line in process.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        status, said = get(f"{url}/registry/subjects")
        assert (status, said["error_code"]) == (500, 50001)
        assert "CDC-LOG-101" in said["message"]
        assert get(f"{url}/readyz")[0] == 503
        with EmbeddedLog(tmp_path / "shop.log", free_bytes_min=0) as log:
            number = log.register("shop.public.t-value", "string")
        assert get(f"{url}/registry/schemas/ids/{number}") == (200, {"schema": '"string"'})
        deadline = time.monotonic() + 20
        while get(f"{url}/readyz")[0] != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert get(f"{url}/healthz")[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()


def test_check_looks_at_an_external_registry(tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    text = (
        "pipeline: shop\nsource: postgresql://nobody@127.0.0.1:1/none\nlog: ./shop.log\nregistry: http://127.0.0.1:1\n"
    )
    file.write_text(text)
    command = [sys.executable, "-m", "cdc", "check", str(file), "--json"]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout)
    found = {finding["code"]: finding["where"] for finding in said["result"]["findings"]}
    assert found["CDC-REG-101"].startswith("registry: http://127.0.0.1:1")
