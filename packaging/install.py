"""Installs what `make build` built into a prefix, or takes it out again: `vgpu install` and `uninstall`, before there
is a vgpu to call.

    python packaging/install.py --prefix /opt/vgpu [--simulate-gpus 2] [--runtime /usr/bin/runc]
    python packaging/install.py --prefix /opt/vgpu --uninstall
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vgpu.cli import main  # the checkout's own, installed or not

if __name__ == "__main__":
    arguments = sys.argv[1:]
    command = "uninstall" if "--uninstall" in arguments else "install"
    sys.argv[1:] = [command, *(argument for argument in arguments if argument != "--uninstall")]
    main()
