"""Take out of result files what names a machine or its folders and says nothing of its speed, and what is bulk."""

from __future__ import annotations

import json
import sys
from pathlib import Path

for name in sys.argv[1:]:
    path = Path(name)
    document = json.loads(path.read_text())
    document.get("machine_info", {}).pop("node", None)
    document.pop("commit_info", None)
    document.pop("command", None)
    document.get("machine", {}).pop("system", None)
    if isinstance(document.get("data"), str):
        document["data"] = document["data"].rpartition("/")[2]
    for view in document.get("views", {}).values():  # scores by task: megabytes where tasks are many, and in no table
        for method in view["methods"].values():
            if len(method.get("scores", [{"tasks": ()}])[0]["tasks"]) > 50:
                del method["scores"]
    for benchmark in document.get("benchmarks", []):
        benchmark["stats"].pop("data", None)
    path.write_text(json.dumps(document, indent=1) + "\n")
