"""vgpu doctor image: would this image start with a slice? Nothing of it runs, and nothing of it is unpacked.

source.py finds the image (a folder, an archive, an engine), archive.py and layer.py read what it is packed in,
tree.py is the file tree that comes of its layers; examine.py looks at it, with oci_hook/preflight.py as at every start.
"""
