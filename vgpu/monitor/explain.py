"""Where a container's time went, from what the monitor has seen. Pure: rows of history in, a report out.

Each interval between two looks is split into own compute, waiting for the quota, waiting for neighbours, and the rest,
which is the host's. docs/observability.md says how, and what cannot be told apart.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from libcuda_wrap.bindings import DENIALS
from vgpu.monitor import advice
from vgpu.monitor.rates import Rate, rates
from vgpu.monitor.report import HOST, NEIGHBOURS, NOTHING, OWN, PARTS, QUOTA, WORTH_NAMING, Report
from vgpu.monitor.rows import REST, Row

SATURATED = 0.9  # of the GPU's time: then who has nothing running may be waiting for its turn
GAP = 10  # times the usual interval: the monitor did not run, nothing is known
ENOUGH_LOOKS, ENOUGH_SECONDS = 5, 20.0


@dataclass(frozen=True, slots=True)
class Split:
    """One interval, seconds. queued: of the neighbours' part, what may as well be the host's. blame: by neighbour.

    measured: who tells own compute: "driver", "limiter", or "" for nobody. threads: launches waited while
    others of its own ran or waited.
    """

    seconds: float
    parts: Mapping[str, float]
    queued: float
    blame: Mapping[str, float]
    measured: str
    threads: bool
    denied: tuple[int, ...]


def explain(rows: Sequence[Row], container: str, asked_s: float) -> list[Report]:
    """One report a GPU that the container has a slice of. rows: of all containers, oldest first."""
    looks: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in rows:
        looks[row.gpu, row.time_ns].append(row)
    gpus = sorted({row.gpu for row in rows if row.id == container})
    return [_report([looks[key] for key in sorted(looks) if key[0] == gpu], container, asked_s) for gpu in gpus]


def _report(looks: list[list[Row]], container: str, asked_s: float) -> Report:
    """looks: the rows of one GPU, a list for each moment."""
    splits = _splits(looks, container)
    mine = [row for look in looks for row in look if row.id == container]
    last, seconds = mine[-1], sum(split.seconds for split in splits)
    parts = {part: sum(split.parts[part] for split in splits) for part in PARTS}
    blame: Counter[str] = Counter()
    for split in splits:
        blame.update(split.blame)
    denied = {reason: sum(split.denied[number] for split in splits) for number, reason in enumerate(DENIALS)}
    doubts = _doubts(splits, mine, seconds, parts)
    draft = Report(
        id=container,
        name=last.name,
        gpu=last.gpu,
        asked_s=asked_s,
        seconds=seconds,
        looks=len(splits),
        last=last,
        parts=parts,
        blame={name: found for name, found in blame.most_common() if found >= 0.01 * seconds},
        denied={reason: count for reason, count in denied.items() if count},
        verdict=NOTHING,
        confidence="low" if any(weight > 1 for weight, _ in doubts) else "medium" if doubts else "high",
        doubts=tuple(text for _, text in doubts),
        unknown=_unknown(splits),
        advice="",
        findings=tuple(sorted(last.findings)),
    )
    return advice.judge(draft, [row for row in looks[-1] if row.id not in (container, REST)])


def _splits(looks: list[list[Row]], container: str) -> list[Split]:
    pairs = list(zip(looks, looks[1:], strict=False))
    usual = median([after[0].time_ns - before[0].time_ns for before, after in pairs]) if pairs else 0
    found = []
    for before, after in pairs:
        changed = rates(before, after)
        rate = changed.pop((container, after[0].gpu), None)
        if rate is None or after[0].time_ns - before[0].time_ns > GAP * usual:
            continue
        names = {row.id: row.name for row in after}
        others = {names[identity]: one for (identity, _), one in changed.items() if identity != REST}
        rest = next((row for row in after if row.id == REST), None)
        found.append(_split(rate, others, rest))
    return found


def _split(rate: Rate, others: Mapping[str, Rate], rest: Row | None) -> Split:
    """Shares of one interval, in this order: what surely ran, what surely waited for the quota, then what is left."""
    loads = {name: one.used for name, one in others.items()}
    if rest is not None and rest.sm_percent:
        loads["(processes in no slice)"] = rest.sm_percent / 100
    load = sum(loads.values())
    own, stretched = _own(rate, others, load)
    left = max(0.0, 1.0 - own - stretched)
    quota = min(rate.throttled, left)
    left -= quota
    busy = rest.gpu_percent / 100 if rest is not None and rest.gpu_percent is not None else own + load
    # it had work, the GPU had no time free, and its launches did not wait for the quota: it stood in the GPU's queue,
    # or had nothing to do just then, which nobody can tell from outside
    active = own + stretched + quota > 0.01
    queued = min(left, load) if active and busy >= SATURATED else 0.0
    neighbours = stretched + queued
    parts = {OWN: own, QUOTA: quota, NEIGHBOURS: neighbours, HOST: left - queued}
    return Split(
        seconds=rate.seconds,
        parts={part: share * rate.seconds for part, share in parts.items()},
        queued=queued * rate.seconds,
        blame={name: neighbours * one / load * rate.seconds for name, one in loads.items()} if load else {},
        measured="driver" if rate.sm is not None else "limiter" if rate.busy else "",
        threads=rate.throttled > 1.0 - own - stretched + 0.01,
        denied=rate.denied,
    )


def _own(rate: Rate, others: Mapping[str, Rate], load: float) -> tuple[float, float]:
    """Own compute, and by how much neighbours' time slices stretched what was measured. load: what neighbours ran."""
    if rate.sm is not None:
        # a limiter that is not at work measures nothing: then the driver's figure is all there is
        stretched = min(max(0.0, rate.busy - rate.sm), load)
        return max(rate.busy - stretched, 0.0 if rate.busy else rate.sm), stretched
    total = rate.busy + sum(one.busy for one in others.values())
    own = rate.busy / total if total > 1 else rate.busy  # the GPU has no more than its time
    return own, rate.busy - own


def _doubts(splits: list[Split], mine: list[Row], seconds: float, parts: Mapping[str, float]) -> list[tuple[int, str]]:
    """(weight, why); a weight of 2 makes the confidence low, 1 medium."""
    found = []
    if len(splits) < ENOUGH_LOOKS or seconds < ENOUGH_SECONDS:
        found.append((2, f"only {seconds:.0f} s in {len(splits)} intervals were watched"))
    if not all(row.known for row in mine):
        found.append((2, "its account could not always be read"))
    if mine[-1].findings:
        found.append(
            (2, f"the monitor holds {', '.join(sorted(mine[-1].findings))} against it: its account may lack work")
        )
    if splits and not any(split.measured for split in splits):
        found.append((2, "neither the driver nor the limiter says how much it computed"))
    elif any(split.measured == "limiter" for split in splits):
        found.append(
            (1, "the driver does not say who computed how much: neighbours' part is inferred from measured times")
        )
    queued = sum(split.queued for split in splits)
    if queued > 0.5 * parts[NEIGHBOURS] and queued > WORTH_NAMING * seconds:
        found.append((1, "while the GPU was full, waiting for its turn and having nothing to do look the same"))
    if any(split.threads for split in splits):
        found.append((1, "launches waited while others of its own ran or waited: their time is cut to what passed"))
    return found


def _unknown(splits: list[Split]) -> tuple[str, ...]:
    found = ["how full the GPU was while it computed: the driver tells time, not occupancy"]
    found.append("memory and bus bandwidth that neighbours took: it shows as own compute")
    found.append("what the host's part was: CPU, disk, network, or nothing to do")
    if splits and not any(split.measured == "driver" for split in splits):
        found.append("how much processes outside of slices computed")
    return tuple(found)
