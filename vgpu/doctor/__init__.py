"""vgpu doctor: every failure has a name, a cause and a way out.

catalogue.yaml is the one list of codes. host/ looks at the machine; commands/ has the sub-commands, a file each.
"""
