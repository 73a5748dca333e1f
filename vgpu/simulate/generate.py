"""Writes traces with documented distributions, from a seed.

Arrivals: a Poisson process with a daily wave, 1 + 0.5 sin(2 pi t / day), by thinning. Durations: log-normal, median 20
minutes, sigma 1.2, at least 30 s, at most 7 days. Sizes: MIX below. Users: 50, the i-th as often as 1 / i (Zipf).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from vgpu.simulate import trace_file
from vgpu.simulate.model import Cluster

DAY_S = 86_400
MEDIAN_S, SIGMA, SHORTEST_S, LONGEST_S = 1_200, 1.2, 30, 7 * DAY_S
USERS = 50
# (weight, GPUs, 1/16 of a GPU's memory, percent of its cores)
MIX = {
    "shared": ((20, 1, 1, 10), (25, 1, 2, 10), (20, 1, 4, 25), (15, 1, 8, 50), (10, 1, 8, 25), (10, 1, 16, 100)),
    "mixed": ((25, 1, 2, 15), (20, 1, 4, 30), (20, 1, 8, 50), (20, 1, 16, 100), (10, 2, 16, 100), (5, 8, 16, 100)),
    "lopsided": ((30, 1, 12, 10), (30, 1, 2, 60), (20, 1, 6, 30), (20, 1, 4, 20)),
}
_PRIORITIES = ("high",) + ("normal",) * 7 + ("low",) * 2


def rows(cluster: Cluster, mix: str, count: int, load: float, seed: int) -> Iterator[tuple[object, ...]]:
    """Rows of our own columns, header first. load: work that arrives, as a share of what the cluster can do (the larger
    of its memory's and its cores' share); sizes are of the cluster's smallest GPU.
    """
    chance = random.Random(f"{mix} {count} {load} {seed}")
    sizes = MIX[mix]
    memory_mib = min(kind.memory_bytes for kind in cluster.kinds) >> 20
    weights = [row[0] for row in sizes]
    mean = sum(w * gpus * max(part / 16, cores / 100) for w, gpus, part, cores in sizes) / sum(weights)
    mean_s = MEDIAN_S * math.exp(SIGMA**2 / 2)  # of the log-normal, before it is cut
    peak = 1.5 * load * cluster.gpus / (mean * mean_s)
    names = [f"user{number:02}" for number in range(1, USERS + 1)]
    often = [1 / number for number in range(1, USERS + 1)]
    yield trace_file.OWN
    now, made = 0.0, 0
    while made < count:
        now += chance.expovariate(peak)
        if chance.random() * 1.5 > 1 + 0.5 * math.sin(2 * math.pi * now / DAY_S):
            continue
        _, gpus, part, cores = chance.choices(sizes, weights)[0]
        lasts = round(min(max(chance.lognormvariate(math.log(MEDIAN_S), SIGMA), SHORTEST_S), LONGEST_S))
        user = chance.choices(names, often)[0]
        made += 1
        yield f"job{made}", user, int(now), lasts, gpus, memory_mib * part // 16, cores, chance.choice(_PRIORITIES), 1
