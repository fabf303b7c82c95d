"""The calls of docs/sessions.md, over HTTP as they stand."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "sessions.md").read_text()


def test_the_curl_calls_of_the_page_work_as_they_stand(trainer):
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    calls = [call for block in blocks for call in block.split("curl ")[1:]]
    assert len(calls) == 9
    for call in calls:
        words = shlex.split(call)
        body = words[words.index("-d") + 1] if "-d" in words else None
        method = words[words.index("-sX") + 1] if "-sX" in words else "POST" if body else "GET"
        path = next(word for word in words if word.startswith("localhost")).removeprefix("localhost:8421")
        path = path.replace("/models/net", "/models/of_the_page")
        content = body and body.replace('"model": "net"', '"model": "of_the_page"')
        answer = trainer.request(method, path, content=content, headers={"Content-Type": "application/json"})
        assert answer.is_success, answer.text
        if path.endswith("/first") and method == "GET":
            documented = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
            assert answer.json().keys() == json.loads(documented[-1]).keys()
