"""python -m vgpu"""

from vgpu.cli import main

main()
