"""Installs vgpu into a prefix, switches between its versions, and takes it out again.

A version is a folder that is made once and then only read, so a container keeps the files that it was started with:

    source.py      what belongs to a version, out of a build, a package or another installation
    layout.py      the folders of a prefix and the links that say which version new containers get
    version.py     makes a version's folder
    tenants.py     which running container stands on which version, and which layouts it has
    install.py     install, upgrade, roll back
    uninstall.py   prune, uninstall
"""
