"""The metrics: what they are called, what they say, and that Prometheus itself understands them."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.harness import engines
from tests.vgpu.monitor.host import GIB, ROOT, SECOND, Host, refused
from tests.vgpu.monitor.samples import container, process, sample, use
from vgpu.monitor import metrics, truth
from vgpu.monitor.sample import SliceSample
from vgpu.monitor.status import Status

MONITORING = ROOT / "packaging/monitoring"
HOST = metrics.Host("580.65.06", 1.0, 1.5, {"nvml": 2})
NAMES = re.compile(r"\bvgpu_[a-z_]+")


@pytest.fixture(scope="session")
def promtool() -> Path:
    return engines.prometheus().program("promtool")


def values(text: str) -> dict[tuple[str, str], float]:
    """(sample name, value of the most telling label) -> value; for one slice."""
    found = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            label = next((one.labels[key] for key in ("reason", "kind", "le", "part") if key in one.labels), "")
            found[one.name, label] = one.value
    return found


def exposed(families: Any) -> dict[tuple[str, str], float]:
    return {
        (one.name, next((one.labels[key] for key in ("reason", "kind", "le") if key in one.labels), "")): one.value
        for family in families
        for one in family.samples
    }


def busy_host(host: Host, pids: tuple[int, ...] = (1,)) -> str:
    """One container with a figure in every counter."""
    name = host.give_out("job", cores=30)
    host.use(
        name, used_bytes=GIB, peak_bytes=2 * GIB, denied=(3, 0, 1, 2), launches=1000, busy_ns=5 * SECOND,
        throttled_ns=7 * SECOND, waits=[0, 1, 2, 0, 4, 8, 16] + [0] * 14 + [1], pids=pids,
    )  # fmt: skip
    return name


def scrape(host: Host, tmp_path: Path, *arguments: str) -> str:
    file = tmp_path / "vgpu.prom"
    done = host.vgpu("exporter", "--textfile", str(file), *arguments)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return file.read_text()


def test_every_figure_is_exported_in_base_units(host: Host, tmp_path: Path) -> None:
    busy_host(host)
    found = values(scrape(host, tmp_path))
    assert found["vgpu_memory_limit_bytes", ""] == 8 * GIB
    assert found["vgpu_memory_used_bytes", ""] == GIB
    assert found["vgpu_memory_peak_bytes", ""] == 2 * GIB
    assert found["vgpu_cores_limit_ratio", ""] == 0.3
    assert found["vgpu_busy_seconds_total", ""] == 5
    assert found["vgpu_throttled_seconds_total", ""] == found["vgpu_launch_wait_seconds_sum", ""] == 7
    assert found["vgpu_launches_total", ""] == 1000
    assert [found["vgpu_denied_total", reason] for reason in ("quota", "slot", "refused", "driver")] == [3, 0, 1, 2]
    assert found["vgpu_enforcement_active", ""] == 1
    assert found["vgpu_processes", ""] == 1
    # 1 + 2 + 4 are below 16 us, 8 and 16 more below 64 us, one took 1 to 2 seconds
    assert [found["vgpu_launch_wait_seconds_bucket", le] for le in ("1.6e-05", "6.4e-05", "1.04858", "4.1943")] == [
        7, 31, 31, 32,
    ]  # fmt: skip
    assert found["vgpu_launch_wait_seconds_count", ""] == found["vgpu_launch_wait_seconds_bucket", "+Inf"] == 32
    assert found["vgpu_scrape_errors_total", "nvml"] == 1  # no simulated driver is installed in this prefix
    assert found["vgpu_containers", ""] == 1


def test_promtool_finds_nothing_to_complain_about(host: Host, tmp_path: Path, promtool: Path) -> None:
    busy_host(host)
    text = scrape(host, tmp_path)
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_hostile_names_do_not_break_the_format(host: Host, tmp_path: Path, promtool: Path) -> None:
    host.give_out('a"b\\c\nd', container="a" * 64, image="x" * 5000 + "ü")
    host.give_out("half \udc80 pair", container="b" * 64)
    text = scrape(host, tmp_path)
    names = {one.labels["name"] for family in text_string_to_metric_families(text) for one in family.samples
             if "name" in one.labels}  # fmt: skip
    assert names == {'a"b\\c\nd', "half ? pair"}
    assert max(map(len, text.splitlines())) < 600
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0


def test_ended_containers_vanish_and_the_number_of_series_has_a_cap(host: Host, tmp_path: Path) -> None:
    for number in range(5):
        host.give_out(f"job-{number}")
    host.give_out("ended", init=1 << 22)  # no such process
    text = scrape(host, tmp_path, "--max-containers", "3")
    assert text.count("\nvgpu_memory_limit_bytes{") == 3
    assert 'name="ended"' not in text
    found = values(text)
    assert (found["vgpu_containers", ""], found["vgpu_exporter_dropped_containers", ""]) == (5, 2)


def test_an_account_that_cannot_be_read_is_an_error_and_the_rest_is_there(host: Host, tmp_path: Path) -> None:
    (host.box(host.give_out("broken")) / "usage").write_bytes(b"")
    busy_host(host)
    text = scrape(host, tmp_path)
    assert text.count("\nvgpu_memory_limit_bytes{") == 2
    assert text.count("\nvgpu_memory_used_bytes{") == 1
    assert values(text)["vgpu_scrape_errors_total", "usage"] == 1


def test_the_drivers_figures_and_the_gpus_are_there() -> None:
    seen = sample(container(), processes=(process(sm_percent=25.0), process("", pid=9)))
    found = exposed(metrics.metrics(seen, Status(True, {("job", 0, truth.BYPASS): "pid 9"}), HOST, 500))
    assert found["vgpu_driver_memory_bytes", ""] == GIB
    assert found["vgpu_driver_busy_ratio", ""] == 0.25
    assert (found["vgpu_gpu_memory_bytes", ""], found["vgpu_gpu_memory_used_bytes", ""]) == (80 * GIB, 10 * GIB)
    assert (found["vgpu_gpu_busy_ratio", ""], found["vgpu_gpu_slices", ""]) == (0.5, 1)
    assert (found["vgpu_gpu_memory_given_bytes", ""], found["vgpu_gpu_cores_given_ratio", ""]) == (8 * GIB, 0.3)
    assert (found["vgpu_cores_overcommit_limit_ratio", ""], found["vgpu_monitor_running", ""]) == (1.5, 1)
    assert {kind: found["vgpu_finding", kind] for kind in truth.KINDS} == {
        truth.UNACCOUNTED: 0, truth.INACTIVE: 0, truth.BYPASS: 1,
    }  # fmt: skip


def test_what_is_not_known_has_no_series() -> None:
    unknown = container(slices=(SliceSample(0, "GPU-0", GIB, 100, None),))
    families = list(metrics.metrics(sample(unknown, container("b", slices=(SliceSample(0, "GPU-0", GIB, 100, use()),))),
                                    Status(False, {}), HOST, 500))  # fmt: skip
    used = next(family for family in families if family.name == "vgpu_memory_used_bytes")
    assert [one.labels["container"] for one in used.samples] == ["b"]
    assert not any(family.name == "vgpu_finding" for family in families)  # the monitor does not run
    driver = next(family for family in families if family.name == "vgpu_driver_memory_bytes")
    assert driver.samples == []  # both are at work, but the driver lists no process of them


def test_addresses_and_files_that_cannot_be_are_refused(host: Host, tmp_path: Path) -> None:
    refused(host.vgpu("exporter", "--listen", "9411"), "VGPU-CFG-003", "--listen '9411'", "127.0.0.1:9411")
    refused(host.vgpu("exporter", "--listen", ":70000"), "VGPU-CFG-003", "--listen ':70000'")
    refused(host.vgpu("exporter", "--listen", "192.0.2.1:9411"), "VGPU-MON-004", "192.0.2.1:9411")
    refused(host.vgpu("exporter", "--textfile", f"{tmp_path}/no/x.prom"), "VGPU-MON-004", "no/x.prom")
    assert host.vgpu("exporter", "--max-containers", "0").returncode == 2


def test_a_port_in_use_is_refused(host: Host) -> None:
    with host.running("exporter", "--listen", "127.0.0.1:0") as exporter:
        port = listening(exporter)
        refused(host.vgpu("exporter", "--listen", f"127.0.0.1:{port}"), "VGPU-MON-004", "address already in use")


def listening(exporter: subprocess.Popen[str]) -> int:
    """The port that it says it serves on."""
    assert exporter.stderr
    found = re.search(r":(\d+)/metrics$", exporter.stderr.readline())
    assert found
    return int(found[1])


def documented() -> set[str]:
    """The metrics of the table in docs/observability.md."""
    return set(re.findall(r"^\| `(vgpu_[a-z_]+)", (ROOT / "docs/observability.md").read_text(), re.MULTILINE))


def families() -> set[str]:
    """Every name that a scrape can have, as PromQL has it."""
    seen = sample(container(), processes=(process(),))
    found = set()
    for family in metrics.metrics(seen, Status(True, {}), HOST, 500):
        found |= {one.name for one in family.samples}
    return found


def test_every_metric_is_documented() -> None:
    plain = {re.sub(r"_(bucket|sum|count)$", "", name) if "wait_seconds" in name else name for name in families()}
    assert documented() == plain


def expressions() -> list[str]:
    """All that dashboard and alerts ask for."""
    board = json.loads((MONITORING / "dashboard.json").read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    found += [variable["definition"] for variable in board["templating"]["list"] if "definition" in variable]
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    return found + [rule["expr"] for group in rules["groups"] for rule in group["rules"]]


def test_dashboard_and_alerts_ask_only_for_metrics_that_exist() -> None:
    asked = {name for expression in expressions() for name in NAMES.findall(expression)}
    assert len(asked) > 15
    assert asked - families() == set()


def test_each_alert_fires_and_stays_quiet(promtool: Path) -> None:
    done = subprocess.run(
        [promtool, "test", "rules", "alerts_test.yaml"], cwd=MONITORING, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    names = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    fired: dict[str, set[bool]] = {}
    for test in yaml.safe_load((MONITORING / "alerts_test.yaml").read_text())["tests"]:
        for one in test["alert_rule_test"]:
            fired.setdefault(one["alertname"], set()).add(bool(one["exp_alerts"]))
    assert fired == {name: {True, False} for name in names}


@pytest.fixture
def prometheus(simulated: Host, tmp_path: Path) -> Iterator[str]:
    """The address of a Prometheus that scrapes an exporter of a host with one container, at work."""
    server = engines.prometheus()
    busy_host(simulated, pids=())  # with processes that the driver does not list its figures would be unknown
    assert simulated.vgpu("monitor", "--rounds", "1").returncode == 0
    with simulated.running("exporter", "--listen", "127.0.0.1:0") as exporter:
        config = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{listening(exporter)}"]
        config["scrape_configs"][0]["scrape_interval"] = "1s"
        config["rule_files"] = [str(MONITORING / "alerts.yaml")]
        (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
        with (tmp_path / "prometheus.log").open("w") as log:
            process = subprocess.Popen(
                [server.program("prometheus"), f"--config.file={tmp_path}/prometheus.yaml",
                 "--web.listen-address=127.0.0.1:0", f"--storage.tsdb.path={tmp_path}/tsdb"], stdout=log, stderr=log,
            )  # fmt: skip
        try:
            yield address_of(process, tmp_path / "prometheus.log")
        finally:
            process.terminate()
            process.wait(timeout=30)


def address_of(process: subprocess.Popen[bytes], log: Path) -> str:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        found = re.search(r"(?:address|Listening on).*?(127\.0\.0\.1:[1-9]\d+)", log.read_text())
        if found:
            return f"http://{found[1]}"
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def query(server: str, expression: str) -> list[dict[str, Any]]:
    url = f"{server}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        told = json.load(answer)
    assert told["status"] == "success", (expression, told)
    result: list[dict[str, Any]] = told["data"]["result"]
    return result


def test_a_real_prometheus_answers_every_query_of_dashboard_and_alerts(prometheus: str) -> None:
    until = time.monotonic() + 60
    while not query(prometheus, "count_over_time(vgpu_containers[1m]) >= 3") and time.monotonic() < until:
        time.sleep(0.5)
    assert [one["value"][1] for one in query(prometheus, "vgpu_memory_used_bytes")] == [str(GIB)]
    assert [one["value"][1] for one in query(prometheus, 'up{job="vgpu"}')] == ["1"]
    empty = []
    for expression in expressions():
        if expression.startswith("label_values("):
            continue
        plain = expression.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$name", ".*")
        if not query(prometheus, plain):
            empty.append(expression)
    # comparisons are empty while all is well; what is drawn has values
    assert [expression for expression in empty if not re.search(r" (==|>) ", expression)] == []
