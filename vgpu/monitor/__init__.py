"""What is going on, shown and explained: top, the monitor service, the exporter, explain.

The way of a figure: collect and nvml read it (`sample`), `rows` lays it flat, `rates` and `truth` compare, `history`
keeps, `explain` judges. Only collect, nvml, history's file and the commands touch the host; the rest is pure.
"""
